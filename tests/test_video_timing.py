"""One decoding order for independent segments: legal for every reordering, variable rate and segment "
"length."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("av")

from yonos_trt.errors import InputError
from yonos_trt.video.segments import PacketRecord, Segment, SegmentWriter, read_segment
from yonos_trt.video.timing import decoding_times, video_packets


def reordered(times: list[int], depth: int, rng: random.Random) -> list[int]:
    """A decoding order in which no frame is decoded more than ``depth`` places after its place on screen."""
    left, order = list(times), [times[0]]
    left.remove(times[0])
    while left:
        # the first one left must come before `depth` others have overtaken it
        overtaken = sum(t > left[0] for t in order)
        order.append(left[0] if overtaken >= depth else rng.choice(left[: depth + 1]))
        left.remove(order[-1])
    return order


def segment(order: list[int], first: int, last_duration: int = 7) -> Segment:
    records = tuple(PacketRecord(pts, i == 0, 1) for i, pts in enumerate(order))
    return Segment(Path("none"), first, records, b"", last_duration, ())


@given(
    gaps=st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    size=st.integers(1, 20),
    depth=st.integers(0, 4),
    seed=st.integers(0, 999),
)
def test_decoding_times_rise_and_never_pass_the_time_on_screen(
    gaps: list[int], size: int, depth: int, seed: int
) -> None:
    times = [sum(gaps[:i]) for i in range(1, len(gaps) + 1)]
    rng = random.Random(seed)
    segments = [
        segment(reordered(times[at : at + size], depth, rng), at) for at in range(0, len(times), size)
    ]
    shown, decoded = decoding_times(segments)
    order = [record.pts for s in segments for record in s.packets]
    assert shown == times
    assert len(decoded) == len(order)
    assert all(a < b for a, b in pairwise(decoded))
    assert all(dts <= pts for dts, pts in zip(decoded, order, strict=True))


def test_frames_last_until_the_next_and_the_last_as_the_input_says(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "segment-000000", 0)
    for pts in (0, 50, 20):
        writer.add(pts, pts == 0, bytes([pts]))
    written = writer.finish(extradata=b"head", last_duration=9, repeated_s=[0.5])
    assert read_segment(tmp_path / "segment-000000") == written
    packets = [p for _, p in video_packets([written], Fraction(1, 100), 1000)]
    assert [(p.pts, p.dts, p.duration, bytes(p), p.is_keyframe) for p in packets] == [
        (1000, 980, 20, b"\0", True),
        (1050, 1000, 9, b"2", False),
        (1020, 1020, 30, b"\x14", False),
    ]


def test_segments_out_of_order_are_refused() -> None:
    with pytest.raises(InputError, match="out of order"):
        decoding_times([segment([0, 10, 20], 0), segment([15, 30], 3)])
