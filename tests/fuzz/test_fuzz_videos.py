"""Mutated clips in every container: all frames, or one of our errors; never a part of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

av = pytest.importorskip("av")

from video_clips import picture_planes, run, write_clip  # noqa: E402

from fuzz.mutate import Mutation, fuzz, mutate, mutations, told  # noqa: E402
from yonos_trt.errors import InputError, YonosError  # noqa: E402

FRAMES = 8
SILENT = {".ts", ".gif"}  # a transport stream and a GIF say nowhere how many frames they have


def y4m() -> bytes:
    rng = np.random.default_rng(0)
    frames = b"".join(
        b"FRAME\n" + rng.integers(16, 235, 48 * 64 * 3 // 2, dtype=np.uint8).tobytes() for _ in range(FRAMES)
    )
    return b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n" + frames


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    folder = tmp_path_factory.mktemp("clips")
    clips = [
        write_clip(folder / "a.mkv", frames=FRAMES, audio=True, chapters=True),
        write_clip(folder / "b.mp4", frames=FRAMES, audio=True),
        write_clip(folder / "c.mov", frames=FRAMES),
        write_clip(folder / "d.webm", frames=FRAMES, codec="libvpx-vp9", options={"cpu-used": "8"}),
        write_clip(folder / "e.avi", frames=FRAMES, codec="ffv1", options={"slicecrc": "1"}),
        write_clip(folder / "f.ts", frames=FRAMES, options={"bf": "0"}),
        write_clip(folder / "g.mkv", frames=FRAMES, codec="libx265"),
        write_clip(folder / "h.mp4", frames=FRAMES, codec="libx265"),
    ]
    grey = [picture_planes("gray", 48, 64, index)[0].astype(np.uint8) for index in range(FRAMES)]
    pictures = [Image.fromarray(np.dstack([each, each[::-1], 255 - each])) for each in grey]
    for suffix in (".gif", ".png", ".webp", ".avif"):
        clips.append(folder / f"animated{suffix}")
        pictures[0].save(clips[-1], save_all=True, append_images=pictures[1:], duration=100)
    return [(clip.suffix, clip.read_bytes()) for clip in clips] + [(".y4m", y4m())]


def announced(path: Path) -> tuple[list[float], int]:
    """Seconds after the first at which a file has frames, by its packets; how many more its edit list hides.

    What a transport stream has before its first key frame is not shown, as in players.
    """
    with av.open(str(path)) as clip:
        stream: Any = max(clip.streams.video, key=lambda s: ((s.width or 0) * (s.height or 0), s.frames))
        packets = [p for p in clip.demux(stream) if p.size]
        shown = [p for p in packets if p.pts is not None and not p.is_discard]
        if path.suffix == ".ts":
            key = next(p.pts for p in shown if p.is_keyframe)
            shown = [p for p in shown if p.pts >= key]
        first = min(p.pts for p in shown)
        hidden = sum(p.is_discard for p in packets)
        return sorted(float((p.pts - first) * p.time_base) for p in shown), hidden


def times(path: Path) -> list[float]:
    with av.open(str(path)) as made:
        return [float(frame.pts * frame.time_base) for frame in made.decode(video=0)]


def test_the_oracle_sees_every_frame(corpus: list[tuple[str, bytes]], tmp_path: Path) -> None:
    for suffix, raw in corpus:
        (tmp_path / f"whole{suffix}").write_bytes(raw)
        report = run(tmp_path / f"whole{suffix}", tmp_path / "out.mkv", overwrite=True)
        assert report.frames == len(times(tmp_path / "out.mkv")) == FRAMES
        if suffix != ".webp":  # which FFmpeg does not read
            step = 0.1 if suffix in (".gif", ".png", ".avif") else 0.04
            expected = [pytest.approx(step * index, abs=1e-5) for index in range(FRAMES)]
            assert announced(tmp_path / f"whole{suffix}") == (expected, 0)


@pytest.mark.parametrize(
    ("suffix", "part", "nth"), [(".webp", b"ANMF", 6), (".avif", b"minf", 0), (".avif", b"stsd", 0)]
)
def test_a_frame_behind_a_damaged_name_is_not_lost_without_a_word(
    corpus: list[tuple[str, bytes]], tmp_path: Path, suffix: str, part: bytes, nth: int
) -> None:
    """Decoders pass over what they do not know."""
    raw = dict(corpus)[suffix]
    at = [place for place in range(len(raw)) if raw.startswith(part, place)][nth]
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(raw[:at] + b"free" + raw[at + 4 :])
    with pytest.raises(InputError, match=path.name):
        run(path, tmp_path / "out.mkv")
    assert list(tmp_path.iterdir()) == [path]


def test_a_mutated_clip_keeps_its_frames_or_is_refused(
    corpus: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    def check(drawn: tuple[tuple[str, bytes], list[Mutation]]) -> None:
        (suffix, raw), changes = drawn
        path, target = tmp_path / f"mutated{suffix}", tmp_path / "out.mkv"
        mutated = mutate(raw, changes)
        path.write_bytes(mutated)
        try:
            report = run(path, target)
        except YonosError as error:
            named = path.name in told(error)
            assert named
            assert not target.exists()
        else:
            found = times(target)
            assert len(found) == report.frames
            wanted, hidden = (found, 0) if suffix == ".webp" else announced(path)
            for when in wanted:
                assert any(abs(when - other + found[0]) < 0.003 for other in found), when
            shorter = suffix == ".y4m" and len(mutated) < len(raw)  # cut between two frames
            assert len(found) + hidden >= FRAMES or suffix in SILENT or shorter
        for left in sorted(tmp_path.rglob("*"), reverse=True):
            left.rmdir() if left.is_dir() else left.unlink()

    assert fuzz(st.tuples(st.sampled_from(corpus), mutations(2)), check, share=0.7) >= 10


def test_a_cut_clip_is_never_taken_for_a_whole_one(corpus: list[tuple[str, bytes]], tmp_path: Path) -> None:
    """Every container says in some way how much it holds; a y4m stream by ending inside a frame."""

    def check(drawn: tuple[tuple[str, bytes], float]) -> None:
        (suffix, raw), share = drawn
        path, target = tmp_path / f"cut{suffix}", tmp_path / "out.mkv"
        path.write_bytes(raw[: int(share * len(raw))])
        try:
            report = run(path, target)
        except YonosError:
            assert not target.exists()
        else:
            # y4m declares no length: cut between two frames it is a shorter clip
            assert report.frames == FRAMES or suffix == ".y4m"
        for left in sorted(tmp_path.rglob("*"), reverse=True):
            left.rmdir() if left.is_dir() else left.unlink()

    whole = [clip for clip in corpus if clip[0] != ".ts"]  # nor does a transport stream
    assert fuzz(st.tuples(st.sampled_from(whole), st.floats(0.02, 0.98)), check, share=0.3) >= 10


def test_a_pipe_that_ends_inside_a_frame_is_refused(tmp_path: Path) -> None:
    raw = y4m()
    out = io.BytesIO()
    with pytest.raises(YonosError, match="standard input"):
        run(io.BytesIO(raw[:-100]), out)
