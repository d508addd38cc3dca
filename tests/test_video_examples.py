"""The video examples run, as they are, on a small clip and a tiny engine directory."""

from __future__ import annotations

import asyncio
import io
import shutil
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")

from helpers import load_script, picture  # noqa: E402
from video_clips import shown, write_clip  # noqa: E402

from yonos_trt.sr import SR  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> Any:
    return load_script(EXAMPLES / f"{name}.py")


def test_the_pyav_loop_keeps_frames_and_times(tmp_path: Path, engine_dir: str) -> None:
    source = write_clip(tmp_path / "in.mp4", times=[0, 512, 700, 2000])
    example("video_pyav").main(str(source), str(tmp_path / "out.mp4"), engine_dir)
    assert [t for t, _ in shown(tmp_path / "out.mp4")] == [t for t, _ in shown(source)]
    with av.open(str(tmp_path / "out.mp4")) as clip:
        assert (clip.streams.video[0].height, clip.streams.video[0].width) == (192, 256)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program on this machine")
def test_the_ffmpeg_pipe_gives_a_file(tmp_path: Path, engine_dir: str) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=3, audio=True)
    example("video_ffmpeg_pipe").main(str(source), str(tmp_path / "out.mkv"), engine_dir)
    assert len(shown(tmp_path / "out.mkv")) == 3


def test_a_folder_of_frames_goes_on_where_it_was(tmp_path: Path, engine_dir: str, capsys: Any) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(3):
        Image.fromarray(picture(16, 20, seed=index)).save(frames / f"{index:04}.png")
    main = example("video_frames_folder").main
    main(str(frames), str(tmp_path / "big"), engine_dir)
    (tmp_path / "big" / "0001.png").unlink()
    main(str(frames), str(tmp_path / "big"), engine_dir)
    assert capsys.readouterr().out.splitlines() == [
        "3 frames written, 0 were there",
        "1 frames written, 2 were there",
    ]
    with SR(engine_dir) as sr:
        expected = sr.upscale(picture(16, 20, seed=1))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "big" / "0001.png")), expected)


def test_the_array_loop_counts_frames(tmp_path: Path, engine_dir: str, capsys: Any) -> None:
    source = write_clip(tmp_path / "in.mkv", frames=3)
    example("video_array_loop").main(str(source), engine_dir)
    assert capsys.readouterr().out.startswith("3 frames, ")


def bombs() -> list[bytes]:
    """A PNG of 2.5 gigapixels, and a format that is not one of ours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100)))
    ppm = b"P6 2 2 255\n" + bytes(12)
    return [png + chunk(b"IEND", b""), ppm]


def test_the_service_answers_refuses_and_stays_responsive(engine_dir: str) -> None:
    module = example("video_asyncio_service")
    body = io.BytesIO()
    Image.fromarray(picture(12, 16)).save(body, "PNG")
    gate = threading.Event()

    async def post(port: int, data: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST / HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), content

    async def scenario(sr: SR) -> None:
        service = module.Service(sr, waiting=1)
        quick = service._upscale
        service._upscale = lambda data: (gate.wait(20), quick(data))[1]
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(service.run(0, ready))
        port = await ready
        first = asyncio.create_task(post(port, body.getvalue()))
        while service._queue.qsize():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # the worker holds the first upload
        second = asyncio.create_task(post(port, b"not a picture"))
        await asyncio.sleep(0.2)  # and this one waits
        assert (await post(port, body.getvalue()))[0] == 503
        assert (await post(port, b""))[0] == 413
        gate.set()
        status, content = await first
        assert status == 200
        assert Image.open(io.BytesIO(content)).size == (16 * sr.scale, 12 * sr.scale)
        assert (await second)[0] == 422
        for bad in bombs():
            assert (await post(port, bad))[0] == 422
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server

    with SR(engine_dir) as sr:
        asyncio.run(scenario(sr))
