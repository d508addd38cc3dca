"""Give the packets of independent segments one decoding order, and every frame its duration."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

from yonos_trt.errors import InputError
from yonos_trt.video.info import require_av
from yonos_trt.video.segments import Segment


def decoding_times(segments: list[Segment]) -> tuple[list[int], list[int]]:
    """Return all display times in order, and a decoding time for every packet in decoding order.

    A packet may be decoded no later than it is shown. With a reordering depth d, packet i in decoding order
    is shown no earlier than the (i - d)-th time in display order, which is therefore its decoding time; the
    first d packets go before the start at the pace of the first interval.
    """
    if not segments:
        return [], []
    times: list[int] = []
    depth = 0
    for segment in segments:
        shown = sorted(record.pts for record in segment.packets)
        rank = {pts: place for place, pts in enumerate(shown)}
        depth = max(depth, *(at - rank[record.pts] for at, record in enumerate(segment.packets)))
        times += shown
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise InputError(
            "the segments' frames are out of order; start again with --overwrite without --resume"
        )
    tick = max(1, times[1] - times[0]) if len(times) > 1 else 1
    before = [times[0] - (depth - i) * tick for i in range(min(depth, len(times)))]
    return times, before + times[: len(times) - len(before)]


def video_packets(segments: list[Segment], base: Fraction, shift: int) -> Iterator[tuple[Fraction, Any]]:
    """Yield (decoding time in seconds, packet) for all segments."""
    av = require_av()
    times, decode_times = decoding_times(segments)
    if not segments:
        return
    last = segments[-1].last_duration
    intervals = [later - earlier for earlier, later in pairwise(times)]
    intervals.append(last or (intervals[-1] if intervals else 0))
    durations = dict(zip(times, intervals, strict=True))
    place = 0
    for segment in segments:
        for record, payload in segment.payloads():
            packet = av.Packet(payload)
            packet.pts, packet.dts = record.pts + shift, decode_times[place] + shift
            packet.duration, packet.time_base, packet.is_keyframe = durations[record.pts], base, record.key
            yield decode_times[place] * base, packet
            place += 1
