"""Mutated clips in every container: all frames, or one of our errors; never a part of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

av = pytest.importorskip("av")

from video_clips import run, write_clip  # noqa: E402

from fuzz.mutate import Mutation, fuzz, mutate, mutations, told  # noqa: E402
from yonos_trt.errors import YonosError  # noqa: E402

FRAMES = 8


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
    ]
    return [(clip.suffix, clip.read_bytes()) for clip in clips] + [(".y4m", y4m())]


def test_a_mutated_clip_keeps_its_frames_or_is_refused(
    corpus: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    def check(drawn: tuple[tuple[str, bytes], list[Mutation]]) -> None:
        (suffix, raw), changes = drawn
        path, target = tmp_path / f"mutated{suffix}", tmp_path / "out.mkv"
        path.write_bytes(mutate(raw, changes))
        try:
            report = run(path, target)
        except YonosError as error:
            told(error)
            assert not target.exists()
        else:
            with av.open(str(target)) as made:
                count = sum(1 for _ in made.decode(video=0))
            assert count == report.frames
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

    whole = [clip for clip in corpus if clip[0] != ".ts"]  # a transport stream declares no length either
    assert fuzz(st.tuples(st.sampled_from(whole), st.floats(0.02, 0.98)), check, share=0.3) >= 10


def test_a_pipe_that_ends_inside_a_frame_is_refused(tmp_path: Path) -> None:
    raw = y4m()
    out = io.BytesIO()
    with pytest.raises(YonosError, match="standard input"):
        run(io.BytesIO(raw[:-100]), out)
