"""Encode on the GPU: RGB in device memory in, compressed packets with every tag of the input out.

PyNvVideoCodec does not write colour tags. They are put into the finished stream's headers by FFmpeg's
``*_metadata`` bitstream filters, which change nothing else.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.color import rgb_to_planes
from yonos_trt.video.format import EncoderSettings, OutputFormat, output_format
from yonos_trt.video.info import FULL, VideoInfo, require_av
from yonos_trt.video.nvidia.nvcodec import ENCODERS, SURFACES, Nvidia

if TYPE_CHECKING:
    from av.packet import Packet

#: What ``-e`` may set: the parameters of `CreateEncoder` in the API guide that concern the coded picture.
OPTIONS = {
    *(
        "bitrate",
        "maxbitrate",
        "vbvbufsize",
        "vbvinit",
        "rc",
        "constqp",
        "qmin",
        "qmax",
        "initqp",
        "multipass",
    ),
    *("preset", "tuning_info", "gop", "idrperiod", "bf", "lookahead", "aq", "temporalaq", "ldkfs"),
}
PRESETS = tuple(f"p{n}" for n in range(1, 8))
NV_ENC_PIC_TYPE_IDR = 3  # nvEncodeAPI.h
INPUTS_KEPT = 4  # as many as PyNvVideoCodec's own sample keeps while the encoder may still read them
#: Our name of a codec -> FFmpeg's raw demuxer of its bitstream.
RAW_FORMATS = {"h264": "h264", "hevc": "hevc", "av1": "obu"}


def nvenc_format(
    settings: EncoderSettings, info: VideoInfo, *, scale: int, force: bool = False
) -> OutputFormat:
    """Decide the output's format as `output_format` does, with options for PyNvVideoCodec.

    ``crf`` becomes the constant quantiser, unless ``-e rc=...`` or ``-e constqp=...`` chooses otherwise: each
    segment has an encoder of its own, and a constant quantiser has no memory that a cut could disturb. AV1
    counts quantisers to 255, the other two to 51: it gets five times the number.

    Raises
    ------
    ConfigError
        An option or preset that PyNvVideoCodec does not have.
    """
    plain = replace(settings, crf=None, preset=None, options=())
    form = output_format(plain, info, scale=scale, force=force)
    options = {"preset": "P4", "tuning_info": "high_quality", "gop": "250"}
    if settings.preset is not None:
        if settings.preset.lower() not in PRESETS:
            raise ConfigError(
                f"--preset {settings.preset} is not one of NVENC's: {', '.join(PRESETS)} (fast to good)"
            )
        options["preset"] = settings.preset.upper()
    chosen = dict(settings.options)
    unknown = sorted(set(chosen) - OPTIONS)
    if unknown:
        raise ConfigError(
            f"{settings.vcodec} on the device does not know the options {', '.join(unknown)} given with -e; "
            f"it takes {', '.join(sorted(OPTIONS))}"
        )
    if settings.crf is not None and not {"rc", "constqp", "bitrate"} & set(chosen):
        step = 5 if ENCODERS[settings.vcodec] == "av1" else 1
        options |= {"rc": "constqp", "constqp": str(round(settings.crf * step))}
    return replace(form, options=tuple(sorted((options | chosen).items())), nvenc=True)


def tagging(form: OutputFormat) -> Any:
    """Return the bitstream filter that writes the format's tags into a stream's headers."""
    from av.bitstream import BitStreamFilterContext

    codec, tags = ENCODERS[form.vcodec], form.tags
    values: dict[str, Any]
    if codec == "av1":
        values = {
            "color_primaries": tags.primaries,
            "transfer_characteristics": tags.transfer,
            "matrix_coefficients": tags.matrix,
            "color_range": "pc" if tags.color_range == FULL else "tv",
            "td": "insert",  # what FFmpeg splits a bare stream by; its muxers leave it out again
        }
        position = {"left": "vertical", "topleft": "colocated"}.get(form.coding.siting)
        if position is not None:
            values["chroma_sample_position"] = position
    else:
        values = {
            "colour_primaries": tags.primaries,
            "transfer_characteristics": tags.transfer,
            "matrix_coefficients": tags.matrix,
            "video_full_range_flag": int(tags.color_range == FULL),
        }
        if form.coding.siting != "left":
            values["chroma_sample_loc_type"] = {"center": 1, "topleft": 2, "top": 3}[form.coding.siting]
        if form.sample_aspect_ratio:
            ratio = form.sample_aspect_ratio
            values["sample_aspect_ratio"] = f"{ratio.numerator}/{ratio.denominator}"
    described = ":".join(f"{key}={value}" for key, value in values.items())
    with require_av().open(io.BytesIO(), "w", format="matroska") as nowhere:
        stream = nowhere.add_mux_stream(codec, width=form.width_px, height=form.height_px)
        return BitStreamFilterContext(f"{codec}_metadata={described}", stream)


def stream_template(form: OutputFormat, beginning: bytes) -> Any:
    """Return an open input whose only video stream describes itself as ``beginning`` does.

    Parameters
    ----------
    beginning
        Header and first packets of the coded video.
    """
    raw = RAW_FORMATS[ENCODERS[form.vcodec]]
    return require_av().open(io.BytesIO(beginning), "r", format=raw)


class _Plane:
    """One plane of a surface, as PyNvVideoCodec's `Encode` looks at it."""

    def __init__(self, shape: tuple[int, int, int], pitch: int, typestr: str, address: int) -> None:
        item = int(typestr[2])
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": (pitch, item * shape[2], item),
            "typestr": typestr,
            "data": (address, False),
            "version": 3,
        }


@dataclass(frozen=True, slots=True)
class _Input:
    """A surface in device memory: luma, and below it Cb and Cr interleaved."""

    samples: Any
    planes: tuple[_Plane, _Plane]

    def cuda(self) -> list[_Plane]:
        """Return the planes; the name is PyNvVideoCodec's."""
        return list(self.planes)


class NvencEncoder:
    """One encoder from its first frame, which becomes a key frame, to its end.

    Has the methods of `yonos_trt.video.encode.FrameEncoder`.

    Raises
    ------
    ConfigError
        The encoder refuses the format or an option.
    """

    def __init__(self, form: OutputFormat, nvidia: Nvidia) -> None:
        self.form = form
        self._nvidia = nvidia
        self._surface = SURFACES[form.layout.name]
        codec = ENCODERS[form.vcodec]
        own = {"use_ivf_container": "0"} if codec == "av1" else {}
        try:
            self._encoder = nvidia.nvc.CreateEncoder(
                form.width_px,
                form.height_px,
                self._surface.encoder_format,
                False,
                gpu_id=nvidia.device,
                codec=codec,
                fps=max(1, round(form.rate)),
                **own,
                **dict(form.options),
            )
            header = bytes(self._encoder.GetSequenceParams())
        except Exception as error:
            raise ConfigError(
                f"NVENC does not open for {form.height_px} x {form.width_px} {form.pix_fmt} {codec} with "
                f"{dict(form.options)}: {error}; check --preset and -e, or pass --hwaccel none"
            ) from error
        av = require_av()
        self._tag = tagging(form)
        self._extradata = b"".join(bytes(p) for p in tagging(form).filter(av.Packet(header)))
        self._times: dict[int, int] = {}  # frame number -> time of what the encoder still holds
        self._frames = 0
        self._inputs: deque[_Input] = deque(maxlen=INPUTS_KEPT)

    @property
    def extradata(self) -> bytes:
        """The encoder's global header."""
        return self._extradata

    def encode(self, rgb: Any, pts: int) -> Iterator[Packet[Any]]:
        """Encode one picture (H, W, 3) in device memory shown at ``pts``; yield the packets that are ready.

        Raises
        ------
        ConfigError
            The picture does not have the output's size.
        InputError
            The encoder failed.
        """
        form = self.form
        if tuple(rgb.shape) != (form.height_px, form.width_px, 3):
            raise ConfigError(
                f"the upscaler gave a picture of shape {tuple(rgb.shape)}, expected "
                f"({form.height_px}, {form.width_px}, 3)"
            )
        self._inputs.append(self._input(rgb))
        params = self._nvidia.nvc.NV_ENC_PIC_PARAMS()
        params.inputTimeStamp = self._frames
        self._times[self._frames] = pts
        packets = self._asked("Encode", self._inputs[-1], params)
        self._frames += 1
        yield from self._packets(packets)

    def finish(self) -> Iterator[Packet[Any]]:
        """Yield the packets the encoder still holds. No frame may follow.

        Raises
        ------
        InputError
            The encoder failed, or kept frames back.
        """
        yield from self._packets(self._asked("EndEncode"))
        self._encoder = None
        self._inputs.clear()
        if self._times:
            raise InputError(
                f"NVENC gave {self._frames - len(self._times)} packets for {self._frames} frames; the "
                "segment is not kept; run again with --resume if others are finished, or with --hwaccel none"
            )

    def _asked(self, method: str, *arguments: Any) -> list[dict[str, Any]]:
        try:
            packets: list[dict[str, Any]] = getattr(self._encoder, method)(*arguments)
        except Exception as error:
            raise InputError(
                f"NVENC failed after {self._frames} frames of a segment: {error}; run again, with "
                "--resume if segments are finished (they are kept), or start again with --hwaccel none"
            ) from error
        return packets

    def _packets(self, found: list[dict[str, Any]]) -> Iterator[Packet[Any]]:
        av = require_av()
        for entry in found:
            pts = self._times.pop(int(entry["timestamp"]), None)
            if pts is None:
                raise InputError(
                    f"NVENC gave a packet for frame {entry['timestamp']} of {self._frames}, which is not "
                    "waiting for one; pass --hwaccel none"
                )
            packet = av.Packet(bytes(entry["data"]))
            packet.pts, packet.time_base = pts, self.form.time_base
            packet.is_keyframe = int(entry["picture_type"]) == NV_ENC_PIC_TYPE_IDR
            yield from self._tag.filter(packet)

    def _input(self, rgb: Any) -> _Input:
        """Convert RGB to a surface of the encoder's, and wait until it is written."""
        form, kind, xp = self.form, self._surface, self._nvidia.xp
        height, width = form.height_px, form.width_px
        with self._nvidia.active():
            samples = xp.empty((height * 3 // 2, width), form.layout.dtype)
            chroma = samples[height:].reshape(height // 2, width // 2, 2)
            planes = [samples[:height], chroma[..., 0], chroma[..., 1]]
            rgb_to_planes(rgb, planes, form.layout, form.coding, xp=xp, band_rows=height)
            if kind.shift:
                samples <<= kind.shift
        address = int(samples.__cuda_array_interface__["data"][0])
        pitch = width * samples.dtype.itemsize
        luma = _Plane((height, width, 1), pitch, kind.typestr, address)
        both = _Plane((height // 2, width // 2, 2), pitch, kind.typestr, address + height * pitch)
        return _Input(samples, (luma, both))
