"""What `yonos_trt.video.upscale_video` is told, and what it tells when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from yonos_trt.choices import HWACCELS
from yonos_trt.errors import ConfigError
from yonos_trt.sizing import Sizing
from yonos_trt.video.format import EncoderSettings
from yonos_trt.video.info import check_interval
from yonos_trt.video.mux import MuxReport


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """What `upscale_video` may be told; the command line has the same names."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    start_s: float | None = None  # take frames from this time on, in seconds since the file's start
    end_s: float | None = None  # and before this time
    copy_audio: bool = True
    copy_subtitles: bool = True
    overwrite: bool = False  # replace an existing output and unfinished work
    resume: bool = False  # go on with unfinished work
    on_error: str = "stop"  # "stop" or "repeat": what a frame that cannot be decoded is
    force: bool = False  # go on where something of the input cannot be kept
    chroma_siting: str = "auto"  # place of the chroma samples, a key of `yonos_trt.video.color.SITINGS`
    segment_frames: int = 48  # key frames are at most this far apart, and this much work is lost by a kill
    stabilize: bool = False  # average added detail over two frames along the motion
    max_in_flight: int = 4  # frames in memory between decoder and encoder
    hwaccel: str = "none"  # "cuda": decode, and encode with *_nvenc, in device memory; "auto": where possible
    hwaccel_device: int = 0  # number of the GPU
    sizing: Sizing | None = None  # size of the output, made even where the pixel format needs it; None: scale

    def __post_init__(self) -> None:
        if self.hwaccel not in HWACCELS:
            raise ConfigError(f"hwaccel is {self.hwaccel!r}, expected one of {', '.join(HWACCELS)}")
        check_interval(self.start_s, self.end_s)
        if self.stabilize and self.sizing is not None:
            raise ConfigError(
                "--stabilize needs the model's own factor; leave --size, --long-edge and other factors out"
            )
        if self.segment_frames < 1:
            raise ConfigError(f"segment_frames must be at least 1, got {self.segment_frames}")


@dataclass(slots=True)
class VideoReport:
    """What was done, for the summary and for programs."""

    frames: int = 0
    frames_resumed: int = 0  # of these, frames that an earlier run had finished
    repeated_s: list[float] = field(default_factory=list)  # times at which a neighbour is shown
    damage: list[str] = field(default_factory=list)  # what of the file is missing, with on_error="repeat"
    left_out: list[str] = field(default_factory=list)  # what of the input the output does not carry
    mux: MuxReport | None = None  # None: written to a pipe
    on_device: list[str] = field(default_factory=list)  # stages that ran in device memory: decode, encode
    seconds: dict[str, float] = field(default_factory=dict)  # busy time of the stages, and "wall"
