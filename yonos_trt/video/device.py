"""Choose where the codecs run: in host memory by FFmpeg, or in device memory by NVDEC and NVENC."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from yonos_trt.errors import ConfigError, EngineDeviceError, MissingExtraError
from yonos_trt.sizing import Sizing
from yonos_trt.video.encode import FrameEncoder
from yonos_trt.video.format import EncoderSettings, OutputFormat, output_format
from yonos_trt.video.nvidia.nvcodec import ENCODERS, Nvidia, input_obstacle, open_nvidia, output_obstacle
from yonos_trt.video.read import VideoReader
from yonos_trt.video.segment_encode import VideoEncoder

log = logging.getLogger(__name__)


class HardwareOptions(Protocol):
    """The options that matter here; `yonos_trt.video.VideoOptions` has them."""

    @property
    def encoder(self) -> EncoderSettings: ...
    @property
    def force(self) -> bool: ...
    @property
    def stabilize(self) -> bool: ...
    @property
    def hwaccel(self) -> str: ...
    @property
    def hwaccel_device(self) -> int: ...
    @property
    def sizing(self) -> Sizing | None: ...


@dataclass(frozen=True, slots=True)
class DevicePath:
    """Which stages work in device memory, and the output's format that goes with it."""

    form: OutputFormat
    nvidia: Nvidia | None = None  # None: everything in host memory

    @property
    def stages(self) -> list[str]:
        """The stages in device memory."""
        return (["decode"] if self.nvidia else []) + (["encode"] if self.form.nvenc else [])

    @property
    def open_encoder(self) -> Callable[[OutputFormat], VideoEncoder]:
        """What makes the encoder of a segment."""
        if self.nvidia is None or not self.form.nvenc:
            return FrameEncoder
        from yonos_trt.video.nvidia.nvenc import NvencEncoder

        return partial(NvencEncoder, nvidia=self.nvidia)

    def for_encoder(self, picture: Any) -> Any:
        """Bring an upscaled picture to where the encoder reads it."""
        if self.nvidia is None:
            return picture
        if not self.form.nvenc:
            return self.nvidia.to_host(picture)
        with self.nvidia.active():
            return self.nvidia.xp.asarray(picture)  # no copy of what lies on the device


def device_path(options: HardwareOptions, reader: VideoReader, scale: int) -> DevicePath:
    """Decide where the codecs run, and make the reader decode there.

    Raises
    ------
    ConfigError
        ``hwaccel="cuda"``, and something of the video or of the options cannot be done in device memory; the
        message names it.
    MissingExtraError, EngineDeviceError
        ``hwaccel="cuda"`` without its packages or without a GPU.
    """
    info = reader.info

    def on_host() -> DevicePath:
        return DevicePath(
            output_format(options.encoder, info, scale=scale, force=options.force, sizing=options.sizing)
        )

    if options.hwaccel == "none":
        return on_host()
    obstacle = "the input is a pipe" if reader.piped else input_obstacle(info)
    if obstacle is None and options.stabilize:
        obstacle = "--stabilize looks at pictures in host memory"
    if obstacle is None and options.sizing is not None:
        obstacle = "a size other than the model's own is made in host memory"
    try:
        nvidia = None if obstacle else open_nvidia(options.hwaccel_device)
    except (MissingExtraError, EngineDeviceError) as error:
        if options.hwaccel == "cuda":
            raise
        obstacle, nvidia = str(error), None
    form = None
    if nvidia is not None:
        obstacle = input_obstacle(info, nvidia)
        if options.encoder.vcodec in ENCODERS:
            from yonos_trt.video.nvidia.nvenc import nvenc_format

            form = nvenc_format(options.encoder, info, scale=scale, force=options.force)
            obstacle = obstacle or output_obstacle(form, nvidia)
    if obstacle is not None or nvidia is None:
        if options.hwaccel == "cuda":
            raise ConfigError(
                f"{info.name} cannot go through --hwaccel cuda: {obstacle}; pass --hwaccel none, or auto to "
                "use the device only where it can be used"
            )
        log.warning("%s goes through host memory: %s", info.name, obstacle)
        return on_host()
    from yonos_trt.video.nvidia.nvdec import NvdecDecoder

    reader.decode_with(partial(NvdecDecoder, nvidia, info))
    return DevicePath(form or on_host().form, nvidia)
