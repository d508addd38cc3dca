"""NVDEC and NVENC through PyNvVideoCodec: what they can take, and why a video cannot go that way.

::

    PyAV's packets -> NvdecDecoder -> RGB on the device -> upscale -> NvencEncoder -> packets -> PyAV's muxer
                      (NV12 or P016)                                  (NV12 or P010)

Demuxing, counting, timestamps, segments and muxing stay where they are; only the two codecs change, and
frames do not leave the device between them. Colours are converted by `yonos_trt.video.color` on CuPy's
arrays: PyNvVideoCodec's own RGB output takes no matrix, range or chroma siting from its caller.

What does not fit is refused with its reason (``--hwaccel cuda``) or goes through host memory, which is logged
(``--hwaccel auto``). Names and signatures are those of PyNvVideoCodec 2.2.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from yonos_trt.cuda.probe import probe_driver
from yonos_trt.errors import EngineDeviceError, MissingExtraError
from yonos_trt.video.format import OutputFormat
from yonos_trt.video.info import VideoInfo

#: FFmpeg's codec -> the member of PyNvVideoCodec's ``cudaVideoCodec``.
CODECS = {"h264": "H264", "hevc": "HEVC", "av1": "AV1"}

#: FFmpeg's name of the encoder -> PyNvVideoCodec's ``codec``.
ENCODERS = {"h264_nvenc": "h264", "hevc_nvenc": "hevc", "av1_nvenc": "av1"}


@dataclass(frozen=True, slots=True)
class Surface:
    """How NVDEC and NVENC store the samples of a planar format: luma rows, then Cb and Cr interleaved."""

    encoder_format: str  # PyNvVideoCodec's name for `CreateEncoder`
    typestr: str  # of one sample, as PyNvVideoCodec's own sample programs write it
    shift: int  # unused low bits of a sample


#: by the planar format that holds the same samples
SURFACES = {"yuv420p": Surface("NV12", "|u1", 0), "yuv420p10le": Surface("P010", "|u2", 6)}

PACKAGES = {"PyNvVideoCodec": "PyNvVideoCodec", "cupy": "cupy-cuda13x"}


@dataclass(frozen=True, slots=True)
class Nvidia:
    """The two packages and the GPU they work on."""

    nvc: Any  # PyNvVideoCodec
    xp: Any  # CuPy
    device: int

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the GPU this thread's current one, and wait for what the body gave it."""
        with self.xp.cuda.Device(self.device):
            yield
            self.xp.cuda.get_current_stream().synchronize()

    def to_host(self, array: Any) -> Any:
        """Copy to a NumPy array; what is one already is returned."""
        if not hasattr(array, "__cuda_array_interface__"):
            return array
        with self.xp.cuda.Device(self.device):
            return self.xp.asnumpy(self.xp.asarray(array))


def _installed(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


def open_nvidia(device: int) -> Nvidia:
    """Import PyNvVideoCodec and CuPy for a GPU.

    Raises
    ------
    MissingExtraError
        A package is not installed, or does not load (the message has its reason).
    EngineDeviceError
        There is no such GPU.
    """
    for module in PACKAGES:
        if not _installed(module):
            raise MissingExtraError("--hwaccel cuda", package=module, extra="nvcodec")
    driver = probe_driver()
    indices = [gpu.index for gpu in driver.devices]
    if device not in indices:
        found = driver.problem or f"devices {', '.join(map(str, indices))}"
        raise EngineDeviceError(
            f"--hwaccel cuda needs GPU {device}, found: {found}; choose another -g, or pass --hwaccel none"
        )
    loaded = []
    for module in PACKAGES:
        try:
            loaded.append(importlib.import_module(module))
        except Exception as error:  # PyNvVideoCodec raises RuntimeError where the driver has no video part
            raise MissingExtraError(
                "--hwaccel cuda", package=module, extra="nvcodec", reason=str(error).strip().splitlines()[0]
            ) from error
    return Nvidia(loaded[0], loaded[1], device)


def codec_of(info: VideoInfo) -> str:
    """Return FFmpeg's name of the codec, whichever decoder FFmpeg took for it."""
    return {"libdav1d": "av1", "libaom-av1": "av1"}.get(info.codec, info.codec)


def input_obstacle(info: VideoInfo, nvidia: Nvidia | None = None) -> str | None:
    """Say why NVDEC cannot decode a video as it has to be; None: it can.

    Parameters
    ----------
    info
        The input.
    nvidia
        Where given, the GPU is asked as well.
    """
    codec = codec_of(info)
    if codec not in CODECS:
        return f"{info.codec} is not among the codecs decoded on the device ({', '.join(CODECS)})"
    if info.layout.name not in SURFACES:
        return f"{info.pix_fmt} is not among the formats handled on the device (8- and 10-bit 4:2:0)"
    if info.height_px % 2 or info.width_px % 2:
        return f"{info.height_px} x {info.width_px} is odd, and surfaces of the device have even sizes"
    if info.interlaced:
        return "the video is interlaced"
    if nvidia is None:
        return None
    nvc = nvidia.nvc
    caps = nvc.GetDecoderCaps(
        gpuid=nvidia.device,
        codec=getattr(nvc.cudaVideoCodec, CODECS[codec]),
        chromaformat=getattr(nvc.cudaVideoChromaFormat, "420"),
        bitdepth=info.layout.bits,
    )
    return _too_large(f"NVDEC of GPU {nvidia.device}", codec, info.height_px, info.width_px, caps)


def output_obstacle(form: OutputFormat, nvidia: Nvidia) -> str | None:
    """Say why NVENC cannot encode a format as it has to be; None: it can."""
    codec = ENCODERS[form.vcodec]
    if form.layout.name not in SURFACES or (codec == "h264" and form.layout.bits > 8):
        return f"{codec} in {form.layout.name} is not among the formats encoded on the device"
    if codec == "av1" and form.sample_aspect_ratio not in (None, 1):
        return "AV1 carries no sample aspect ratio, and this video's is not 1"
    caps = nvidia.nvc.GetEncoderCaps(gpuid=nvidia.device, codec=codec)
    if form.layout.bits > 8 and not caps.get("support_10bit_encode", 0):
        return f"NVENC of GPU {nvidia.device} has no 10-bit {codec}"
    return _too_large(f"NVENC of GPU {nvidia.device}", codec, form.height_px, form.width_px, caps)


def _too_large(unit: str, codec: str, height: int, width: int, caps: dict[str, int]) -> str | None:
    most_h, most_w = caps.get("height_max", 0), caps.get("width_max", 0)
    least_h, least_w = caps.get("height_min", 0), caps.get("width_min", 0)
    if not most_h or not most_w:
        return f"{unit} has no {codec}"
    if not (least_h <= height <= most_h and least_w <= width <= most_w):
        return f"{unit} takes {codec} of {least_h} x {least_w} to {most_h} x {most_w}, not {height} x {width}"
    return None
