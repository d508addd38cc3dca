"""Stand-ins for PyNvVideoCodec and CuPy, with the real names and signatures (PyNvVideoCodec 2.2, CuPy 14).

FFmpeg decodes and encodes behind them, in host memory that poses as the device's:

- arrays are of a class of their own, and mixing them with NumPy's is an error, as with CuPy;
- the decoder's surfaces are overwritten by the next `Decode`, as NVDEC's are;
- the encoder delays and reorders its packets, and writes no colour tags, as NVENC does here.

`Faults` makes them fail at a chosen place. `test_video_nvcodec.py` compares the names with the real package.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from av.codec.context import CodecContext, Flags

from yonos_trt.cuda.probe import Device, DriverFacts
from yonos_trt.video.encode import opening
from yonos_trt.video.nvidia import nvcodec

# ---------------------------------------------------------------------------------------------------------
# CuPy


class Array(np.ndarray):
    """An array "on the device"."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        inside = self.__array_interface__
        return {**{k: inside[k] for k in ("shape", "strides", "typestr", "data")}, "version": 3}

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **rest: Any) -> Any:
        for item in (*inputs, *(out or ())):
            if isinstance(item, np.ndarray) and not isinstance(item, Array):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        plain = [item.view(np.ndarray) if isinstance(item, Array) else item for item in inputs]
        if out is not None:
            rest["out"] = tuple(item.view(np.ndarray) for item in out)
        result = getattr(ufunc, method)(*plain, **rest)
        return out[0] if out is not None else np.asarray(result).view(Array)

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called with an array of the device")


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plain, value))
    if isinstance(value, np.ndarray) and not isinstance(value, Array):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value.view(np.ndarray) if isinstance(value, Array) else value


def _lifted(function: Any) -> Any:
    def call(*arguments: Any, out: Any = None, **rest: Any) -> Any:
        if out is not None:
            function(*map(_plain, arguments), out=_plain(out), **rest)
            return out
        return np.asarray(function(*map(_plain, arguments), **rest)).view(Array)

    return call


def make_cupy(allocate: Callable[[int], int] | None = None) -> SimpleNamespace:
    """Return a stand-in of the module ``cupy``; ``.used`` lists the devices that were made current.

    ``allocate`` gives the memory of new arrays: bytes -> address.
    """
    used: list[int] = []

    def empty(shape: tuple[int, ...], dtype: Any = float) -> Array:
        if allocate is None:
            return np.full(shape, 77, dtype).view(Array)
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_ubyte * nbytes).from_address(allocate(nbytes))
        return np.frombuffer(memory, dtype).reshape(shape).view(Array)

    class Device:
        def __init__(self, device: int | None = None) -> None:
            self.id = device

        def __enter__(self) -> Device:
            used.append(int(self.id or 0))
            return self

        def __exit__(self, *_: object) -> None: ...

    def from_dlpack(array: Any) -> Array:
        assert array.__dlpack_device__()[0] == 2, "not in CUDA memory"
        view: Array = array.__dlpack__(stream=1).view(Array)
        return view

    def asarray(array: Any) -> Array:
        """Look at any array of the device, without a copy."""
        if isinstance(array, Array):
            return array
        owner = SimpleNamespace(__array_interface__=array.__cuda_array_interface__, array=array)
        return np.asarray(owner).view(Array)

    def asnumpy(array: Array) -> np.ndarray:
        assert type(array) is Array
        return np.array(array.view(np.ndarray))

    return SimpleNamespace(
        ndarray=Array,
        empty=empty,
        concatenate=_lifted(np.concatenate),
        rint=_lifted(np.rint),
        clip=_lifted(np.clip),
        arange=_lifted(np.arange),
        from_dlpack=from_dlpack,
        asarray=asarray,
        asnumpy=asnumpy,
        cuda=SimpleNamespace(
            Device=Device, get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None)
        ),
        used=used,
    )


# ---------------------------------------------------------------------------------------------------------
# PyNvVideoCodec


@dataclass
class Faults:
    """What goes wrong, and what the stand-in saw."""

    decode_error_at: int | None = None  # number of the Decode call
    lost_frames: set[int] = field(default_factory=set)  # pts
    lost_packets: int = 0  # packets that the encoder keeps for itself
    encode_error_at: int | None = None  # number of the Encode call, over all encoders
    surface_error: bool = False
    decoder_caps: dict[str, int] = field(default_factory=dict)
    encoder_caps: dict[str, int] = field(default_factory=dict)
    opened: list[dict[str, Any]] = field(default_factory=list)  # keywords of each CreateEncoder
    decoded: int = 0
    encoded: int = 0
    device: int = 0


class PyNvVCException(Exception): ...


class PyNvVCExceptionUnsupported(Exception): ...


class cudaVideoCodec(enum.IntEnum):
    MPEG2 = 1
    H264 = 4
    HEVC = 8
    VP9 = 10
    AV1 = 11


class PacketData:
    """As the real one: plain numbers, made without arguments."""

    __slots__ = ("bsl", "bsl_data", "dts", "duration", "key", "pts")

    def __init__(self) -> None:
        self.bsl = self.bsl_data = self.dts = self.duration = self.key = self.pts = 0


class NV_ENC_PIC_PARAMS:
    __slots__ = ("inputTimeStamp",)

    def __init__(self) -> None:
        self.inputTimeStamp = 0


class DecodedFrame:
    def __init__(self, surface: np.ndarray, pts: int, faults: Faults) -> None:
        self._surface, self._pts, self._faults = surface, pts, faults

    def getPTS(self) -> int:
        return self._pts

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self._faults.device)

    def __dlpack__(self, stream: Any = 0) -> np.ndarray:
        if stream == 0:
            raise ValueError("Invalid value for stream parameter. Passed value of 0 which is not allowed")
        if self._faults.surface_error:
            raise BufferError("Could not create DL Pack tensor! Invalid typstr: |u2")
        return self._surface


START_CODES = (b"\0\0\0\1", b"\0\0\1")
AV1_BEGINS = (b"\x0a",)  # an OBU of type 1, the sequence header, with its size


class PyNvDecoder:
    RAW: ClassVar = {
        cudaVideoCodec.H264: "h264",
        cudaVideoCodec.HEVC: "hevc",
        cudaVideoCodec.AV1: "libdav1d",
    }

    def __init__(self, codec: cudaVideoCodec, faults: Faults) -> None:
        self._context = CodecContext.create(self.RAW[codec], "r")
        self._begins = AV1_BEGINS if codec is cudaVideoCodec.AV1 else START_CODES
        self._faults = faults
        self._calls = 0
        self._given: list[np.ndarray] = []

    def Decode(self, packet: PacketData) -> list[DecodedFrame]:
        for surface in self._given:
            surface[...] = 0xAA  # used again
        if self._faults.decode_error_at is not None and self._calls >= self._faults.decode_error_at:
            raise PyNvVCException("cuvidParseVideoData returned error CUDA_ERROR_UNKNOWN")
        self._calls += 1
        if packet.bsl:
            data = ctypes.string_at(packet.bsl_data, packet.bsl)
            if self._begins is not None:
                assert data.startswith(self._begins), data[:8]
            if self._begins is AV1_BEGINS:
                self._begins = None  # only the first packet has to say what follows
            item = av.Packet(data)
            item.pts = item.dts = packet.pts
            frames = self._context.decode(item)
        else:
            frames = self._context.decode(None)
        found = [(self._surface(f), f.pts) for f in frames if f.pts not in self._faults.lost_frames]
        self._given = [surface for surface, _ in found]
        self._faults.decoded += len(found)
        return [DecodedFrame(surface, pts, self._faults) for surface, pts in found]

    @staticmethod
    def _surface(frame: Any) -> np.ndarray:
        deep = "10" in frame.format.name
        packed = frame.reformat(format="p010le" if deep else "nv12")
        dtype = np.uint16 if deep else np.uint8
        rows = []
        for plane, height in zip(packed.planes, (frame.height, frame.height // 2), strict=True):
            pitch = plane.line_size // dtype().itemsize
            view = np.frombuffer(memoryview(plane), dtype).reshape(-1, pitch)
            rows.append(view[:height, : frame.width])
        return np.concatenate(rows)


class PyNvEncoder:
    ENCODERS: ClassVar = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
    FORMATS: ClassVar = {"NV12": ("nv12", "|u1", "yuv420p"), "P010": ("p010le", "|u2", "yuv420p10le")}
    KNOWN: ClassVar = {
        *(
            "codec",
            "gpu_id",
            "fps",
            "preset",
            "tuning_info",
            "gop",
            "rc",
            "constqp",
            "bitrate",
            "bf",
            "idrperiod",
        ),
        *("use_ivf_container",),
    }

    def __init__(self, width: int, height: int, fmt: str, options: dict[str, str], faults: Faults) -> None:
        unknown = set(options) - self.KNOWN
        assert not unknown, f"not parameters of CreateEncoder: {unknown}"
        assert options["preset"] in {f"P{n}" for n in range(1, 8)}
        self._size, self._faults, self._fmt = (width, height), faults, self.FORMATS[fmt]
        self._options = options
        self._context = self._open(header=False)
        self._ended = False

    def _open(self, *, header: bool) -> Any:
        name = self.ENCODERS[self._options["codec"]]
        context: Any = CodecContext.create(name, "w")
        context.width, context.height = self._size
        context.pix_fmt = self._fmt[2]
        context.time_base, context.framerate = Fraction(1, 30), Fraction(30)
        context.flags |= int(Flags.global_header) if header else 0
        qp = self._options.get("constqp", "20")
        options = {"preset": "veryfast", "qp": qp, "bf": "2"}
        if name == "libx265":
            lossless = ":lossless=1" if qp == "0" else f":qp={qp}"
            options = {"preset": "ultrafast", "x265-params": f"log-level=none:bframes=2{lossless}"}
        if name == "libsvtav1":
            assert self._options["use_ivf_container"] == "0", "packets would begin with IVF headers"
            options = {"preset": "10", "qp": str(max(1, int(qp) // 4)), "svtav1-params": "enable-overlays=0"}
        context.options = options
        with opening():
            context.open()
        return context

    def GetSequenceParams(self) -> bytes:
        return bytes(self._open(header=True).extradata)

    def Encode(self, frame: Any, picParams: NV_ENC_PIC_PARAMS) -> list[dict[str, Any]]:
        assert not self._ended, "Encode after EndEncode"
        if self._faults.encoded == self._faults.encode_error_at:
            raise PyNvVCException("nvEncEncodePicture failed: NV_ENC_ERR_GENERIC")
        width, height = self._size
        name, typestr, planar = self._fmt
        item = int(typestr[2])
        luma, chroma = (plane.__cuda_array_interface__ for plane in frame.cuda())
        assert (luma["shape"], luma["strides"]) == ((height, width, 1), (item * width, item, item))
        assert chroma["shape"] == (height // 2, width // 2, 2)
        assert chroma["strides"] == (item * width, 2 * item, item)
        assert luma["typestr"] == chroma["typestr"] == typestr
        assert chroma["data"][0] == luma["data"][0] + item * width * height, "uv plane must follow yplane"
        picture = av.VideoFrame(width, height, name)
        for plane, source, rows in zip(picture.planes, (luma, chroma), (height, height // 2), strict=True):
            data = ctypes.string_at(source["data"][0], item * width * rows)
            view = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            view[:rows, : item * width] = np.frombuffer(data, np.uint8).reshape(rows, item * width)
        picture = picture.reformat(format=planar)
        picture.pts, picture.time_base = picParams.inputTimeStamp, Fraction(1, 30)
        self._faults.encoded += 1
        return self._out(self._context.encode(picture))

    def EndEncode(self) -> list[dict[str, Any]]:
        self._ended = True
        packets = self._out(self._context.encode(None))
        return packets[: len(packets) - self._faults.lost_packets]

    @staticmethod
    def _out(packets: list[Any]) -> list[dict[str, Any]]:
        return [
            {"data": bytes(p), "timestamp": p.pts, "picture_type": 3 if p.is_keyframe else 0} for p in packets
        ]


def make_nvc(faults: Faults) -> SimpleNamespace:
    """Return a stand-in of the module ``PyNvVideoCodec``."""
    limits = {"width_max": 4096, "height_max": 4096, "width_min": 48, "height_min": 16}

    def CreateDecoder(
        gpuid: int = 0, codec: Any = cudaVideoCodec.H264, usedevicememory: bool = False
    ) -> PyNvDecoder:
        assert usedevicememory is True
        assert gpuid == faults.device
        return PyNvDecoder(codec, faults)

    def CreateEncoder(
        width: int, height: int, fmt: str, usecpuinputbuffer: bool, **kwargs: Any
    ) -> PyNvEncoder:
        assert usecpuinputbuffer is False
        faults.opened.append(kwargs)
        return PyNvEncoder(width, height, fmt, {k: str(v) for k, v in kwargs.items()}, faults)

    def GetDecoderCaps(gpuid: int = 0, codec: Any = 4, chromaformat: Any = 1, bitdepth: int = 8) -> Any:
        assert bitdepth in (8, 10)
        return {"num_decoder_engines": 1, **limits, **faults.decoder_caps}

    def GetEncoderCaps(gpuid: int = 0, codec: str = "h264") -> Any:
        assert codec in ("h264", "hevc", "av1")
        return {"num_encoder_engines": 1, "support_10bit_encode": 1, **limits, **faults.encoder_caps}

    return SimpleNamespace(
        CreateDecoder=CreateDecoder,
        CreateEncoder=CreateEncoder,
        GetDecoderCaps=GetDecoderCaps,
        GetEncoderCaps=GetEncoderCaps,
        PacketData=PacketData,
        NV_ENC_PIC_PARAMS=NV_ENC_PIC_PARAMS,
        PyNvVCException=PyNvVCException,
        PyNvVCExceptionUnsupported=PyNvVCExceptionUnsupported,
        cudaVideoCodec=cudaVideoCodec,
        cudaVideoChromaFormat=SimpleNamespace(**{"420": 1}),
    )


def install(monkeypatch: pytest.MonkeyPatch, allocate: Callable[[int], int] | None = None) -> Faults:
    """Put both packages and a machine with two GPUs in place; return the knobs that break them."""
    faults = Faults()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", make_nvc(faults))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cupy", make_cupy(allocate))  # type: ignore[arg-type]
    driver = DriverFacts(
        "13.0", (Device(0, "Stand-in", "9.0", 1 << 34), Device(1, "Other", "9.0", 1 << 34)), ""
    )
    monkeypatch.setattr(nvcodec, "probe_driver", lambda: driver)
    return faults
