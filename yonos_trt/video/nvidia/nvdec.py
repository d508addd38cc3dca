"""Decode on the GPU: PyAV's packets in, frames in device memory out, each with its own time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from yonos_trt.errors import InputError
from yonos_trt.video.color import Coding, planes_to_rgb
from yonos_trt.video.info import VideoInfo
from yonos_trt.video.layouts import Layout
from yonos_trt.video.nvidia.nvcodec import CODECS, SURFACES, Nvidia, codec_of

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

#: MP4 and Matroska store H.264 and HEVC with lengths; NVDEC reads start codes. Other codecs pass unchanged.
TO_START_CODES = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}


@dataclass(slots=True)
class DeviceFrame:
    """One decoded frame in device memory; has the attributes of PyAV's frames that the reader looks at."""

    nvidia: Nvidia
    surface: Any  # (3 H / 2, W) uint8 or uint16 on the device, our own copy
    pts: int
    duration: int
    is_corrupt: bool
    height: int
    width: int
    format: SimpleNamespace  # .name: the input's format, if the samples are of that kind
    dts: int | None = None
    interlaced_frame: bool = False

    def rgb(self, layout: Layout, coding: Coding) -> NDArray[Any]:
        """Return (H, W, 3) uint8 or uint16 on the device, by the equations of `yonos_trt.video.color`."""
        shift = SURFACES[layout.name].shift
        with self.nvidia.active():
            samples = self.surface >> shift if shift else self.surface
            chroma = samples[self.height :].reshape(self.height // 2, self.width // 2, 2)
            planes = [samples[: self.height], chroma[..., 0], chroma[..., 1]]
            return planes_to_rgb(planes, layout, coding, xp=self.nvidia.xp, band_rows=self.height)


@dataclass(slots=True)
class _Announced:
    """What a packet says of the frame it holds."""

    duration: int
    corrupt: bool


@dataclass(slots=True)
class NvdecDecoder:
    """Takes packets in file order and gives frames in display order.

    Parameters
    ----------
    nvidia
        Packages and GPU.
    info
        The input, for which `yonos_trt.video.nvidia.nvcodec.input_obstacle` found nothing.
    stream
        PyAV's stream, whose header the conversion to start codes needs.

    Raises
    ------
    InputError
        The decoder does not open.

    Notes
    -----
    NVDEC hides damage inside a picture and does not say so. What is noticed is a frame that is not delivered,
    an error of the decoder, and a packet that the demuxer found damaged.
    """

    nvidia: Nvidia
    info: VideoInfo
    stream: VideoStream
    _announced: dict[int, _Announced] = field(default_factory=dict)
    _filter: Any = None
    _decoder: Any = None
    _header: bytes = b""

    def __post_init__(self) -> None:
        from av.bitstream import BitStreamFilterContext

        nvc, codec = self.nvidia.nvc, codec_of(self.info)
        if codec in TO_START_CODES:
            self._filter = BitStreamFilterContext(TO_START_CODES[codec], self.stream)
        elif self.stream.codec_context.extradata:
            self._header = bytes(self.stream.codec_context.extradata)[4:]  # av1C: 4 bytes, then OBUs
        try:
            self._decoder = nvc.CreateDecoder(
                gpuid=self.nvidia.device,
                codec=getattr(nvc.cudaVideoCodec, CODECS[codec]),
                usedevicememory=True,
            )
        except Exception as error:
            raise InputError(
                f"{self.info.name}: NVDEC does not open for {codec}: {error}; pass --hwaccel none"
            ) from error

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """What decoding may raise for a bad packet."""
        nvc = self.nvidia.nvc
        return (nvc.PyNvVCException, nvc.PyNvVCExceptionUnsupported, RuntimeError)

    def decode(self, packet: Packet[Any]) -> list[DeviceFrame]:
        """Decode one packet; an empty one brings out what the decoder holds.

        Raises
        ------
        InputError
            The packet has no presentation time.
        """
        frames: list[DeviceFrame] = []
        if packet.size:
            if packet.pts is None:
                raise InputError(
                    f"{self.info.name}: a packet has no presentation time, which decoding on the device "
                    "needs; pass --hwaccel none"
                )
            self._announced[packet.pts] = _Announced(packet.duration or 0, packet.is_corrupt)
            for part in [packet] if self._filter is None else self._filter.filter(packet):
                frames += self._feed(part)
            return frames
        for part in [] if self._filter is None else self._filter.filter(None):
            frames += self._feed(part)
        frames += self._collect(self.nvidia.nvc.PacketData())  # no data: the end of the stream
        return frames

    def _feed(self, packet: Packet[Any]) -> Iterator[DeviceFrame]:
        data, self._header = self._header + bytes(packet), b""
        buffer = ctypes.create_string_buffer(data, len(data))
        item = self.nvidia.nvc.PacketData()
        item.bsl_data, item.bsl = ctypes.addressof(buffer), len(data)
        item.pts, item.dts = packet.pts, packet.dts if packet.dts is not None else packet.pts
        item.duration, item.key = packet.duration or 0, int(packet.is_keyframe)
        yield from self._collect(item)
        del buffer  # lives until the decoder has read it

    def _collect(self, item: Any) -> Iterator[DeviceFrame]:
        """Decode and copy at once: the decoder's surfaces are used again by the next packet."""
        for frame in self._decoder.Decode(item):
            try:
                with self.nvidia.active():
                    surface = self.nvidia.xp.from_dlpack(frame).copy()
            except (BufferError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self.info.name}: the surface for {self.info.pix_fmt} cannot be read: {error}; "
                    "pass --hwaccel none"
                ) from error
            pts = int(frame.getPTS())
            said = self._announced.pop(pts, None) or _Announced(0, False)
            rows, width = surface.shape[-2:]
            height = rows * 2 // 3
            bits = 8 * surface.dtype.itemsize
            fits = (
                surface.ndim == 2 and 3 * height == 2 * rows and (bits == 8) == (self.info.layout.bits == 8)
            )
            name = self.info.pix_fmt if fits else f"{bits}-bit surface of {surface.shape}"
            yield DeviceFrame(
                self.nvidia,
                surface,
                pts,
                said.duration,
                said.corrupt,
                height,
                width,
                SimpleNamespace(name=name),
            )
