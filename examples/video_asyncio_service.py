"""An upscaling service on asyncio with a bounded queue: too much work is refused, not piled up.

    python examples/video_asyncio_service.py [ENGINE_DIR] [PORT]
    curl --data-binary @photo.jpg http://127.0.0.1:8765/ > big.png

POST a picture, get a PNG. One worker owns the model; at most `WAITING` uploads wait for it, the next is told
503 at once. The networks run in a thread, so the event loop keeps answering.
"""

from __future__ import annotations

import asyncio
import io
import sys

from yonos_trt import SR
from yonos_trt.errors import YonosError

WAITING = 4
LARGEST_BYTES = 32 << 20


class Service:
    """Answers HTTP uploads with upscaled PNGs."""

    def __init__(self, sr: SR, waiting: int = WAITING) -> None:
        self._sr = sr
        self._queue: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue(waiting)

    def _upscale(self, body: bytes) -> bytes:
        big = self._sr.upscale(body)  # bytes go through the one reader: its formats, its limit of pixels
        return big.save(io.BytesIO(), format="png").getvalue()

    async def work(self) -> None:
        """Take uploads one after the other, for ever."""
        while True:
            body, answer = await self._queue.get()
            try:
                result = await asyncio.to_thread(self._upscale, body)
            except (YonosError, OSError, ValueError) as error:
                if not answer.cancelled():
                    answer.set_exception(error)
            else:
                if not answer.cancelled():
                    answer.set_result(result)

    async def answer(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body for one upload."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((body, answer))
        except asyncio.QueueFull:
            return 503, b"busy, try again\n"
        try:
            return 200, await answer
        except (YonosError, OSError, ValueError) as error:
            return 422, f"{error}\n".encode()

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak just enough HTTP/1.1 for one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            size = next(
                (int(x.split(":")[1]) for x in head.split("\r\n") if x.startswith("content-length:")), 0
            )
            if "expect: 100-continue" in head:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if 0 < size <= LARGEST_BYTES:
                status, body = await self.answer(await reader.readexactly(size))
            else:
                status, body = 413, f"send 1 to {LARGEST_BYTES} bytes\n".encode()
            writer.write(
                f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            )
            writer.write(body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run(self, port: int, ready: asyncio.Future[int] | None = None) -> None:
        """Serve until cancelled; ``ready`` is told the port (0 picks a free one)."""
        server = await asyncio.start_server(self.serve_one, "127.0.0.1", port)
        if ready is not None:
            ready.set_result(server.sockets[0].getsockname()[1])
        worker = asyncio.create_task(self.work())
        try:
            async with server:
                await server.serve_forever()
        finally:
            worker.cancel()


def main(engine_dir: str | None = None, port: str = "8765") -> None:
    with SR(engine_dir) as sr:
        print(f"listening on http://127.0.0.1:{port}/")
        asyncio.run(Service(sr).run(int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
