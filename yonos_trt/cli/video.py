"""`yonos video`: the command line of `yonos_trt.video`."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from yonos_trt import console
from yonos_trt.choices import HWACCELS, no_path
from yonos_trt.cli import options
from yonos_trt.errors import ConfigError

if TYPE_CHECKING:
    from yonos_trt.video import VideoOptions


class _Time(click.ParamType[float]):
    """Seconds, or [HH:]MM:SS[.fraction]."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            value = str(value)
        from yonos_trt.video.info import LAST_S

        seconds = 0.0
        try:
            for part in str(value).split(":"):
                seconds = seconds * 60 + float(part)
        except ValueError:
            self.fail(
                f"{value!r} is not a time; expected seconds or HH:MM:SS, for example 75.5 or 1:15.5", param
            )
        if not seconds <= 1e9:  # nan too
            self.fail(f"{value!r} is no time within a file", param)
        if seconds < 0:
            self.fail(f"{value!r} is negative; times count from the start of the file", param)
        if not seconds <= LAST_S:
            self.fail(f"{value!r} is no time in a file; expected 0 to {LAST_S} s", param)
        return seconds


def _pairs(values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, for example -e tune=film", param_hint="-e")
        pairs.append((key, text))
    return tuple(pairs)


@click.command(short_help="Upscale a video and keep everything else of it.")
@click.option(
    "-i", "--input", "source", required=True, metavar="IN", help="Video file; - reads y4m from stdin."
)
@click.option(
    "-o",
    "--output",
    "target",
    metavar="OUT",
    help=".mkv, .mp4, .mov or .webm; - writes y4m to stdout.  [default: IN_x{scale}.mkv, or - for a pipe]",
)
@options.named_model
@options.scale
@options.sizing
@click.option("-c", "--vcodec", default="libx264", show_default=True, help="FFmpeg's name of the encoder.")
@click.option(
    "--crf",
    type=options.Finite(-100, 1000),
    default=16,
    show_default=True,
    help="Quality, for encoders that have it.",
)
@click.option("--preset", help="Speed of the encoder, as it names them.")
@click.option("--pix-fmt", help="Pixel format of the output; default: the input's.")
@click.option("-e", "--encoder-option", "pairs", multiple=True, metavar="KEY=VALUE", help="For the encoder.")
@click.option("--start", "start_s", type=_Time(), help="Begin here: seconds or HH:MM:SS.")
@click.option("--end", "end_s", type=_Time(), help="End before this time.")
@click.option("--no-copy-audio", "copy_audio", flag_value=False, default=True, help="Leave audio out.")
@click.option("--no-copy-subtitles", "copy_subtitles", flag_value=False, default=True, help="Leave them out.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, drop unfinished work.")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run finished.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "repeat"]),
    default="stop",
    show_default=True,
    help="A frame that cannot be decoded: stop, or show its neighbour and say so.",
)
@click.option("--force", is_flag=True, help="Go on with interlaced video and where HDR data would be lost.")
@click.option(
    "--chroma-siting",
    type=click.Choice(["auto", "left", "center", "topleft"]),
    default="auto",
    show_default=True,
    help="Where the input's chroma samples sit.",
)
@click.option(
    "--segment-frames",
    type=click.IntRange(1, 1_000_000),
    default=48,
    show_default=True,
    help="Unit of resuming.",
)
@click.option(
    "--max-in-flight", type=click.IntRange(1, 1024), default=4, show_default=True, help="Frames in memory."
)
@click.option(
    "--hwaccel",
    type=click.Choice(HWACCELS),
    default="none",
    show_default=True,
    help="cuda: decode, and with -c *_nvenc encode, in the GPU's memory; auto: where that is possible.",
)
@options.tiling
@options.machine
@options.color_fix()
@options.restore
@click.option("--stabilize", is_flag=True, help="Average added detail over two frames along the motion.")
@options.seed("Names the noise field of all frames.")
@click.option("--ray", is_flag=True,
              help="Let a Ray cluster make the segments (extra ray); files on a shared disk.")  # fmt: skip
@options.cluster
@options.reporting
def video(
    source: str,
    target: str | None,
    vcodec: str,
    crf: float,
    preset: str | None,
    pix_fmt: str | None,
    pairs: tuple[str, ...],
    ray: bool,
    workers: int | None,
    gpus_per_worker: float | None,
    address: str | None,
    progress: str,
    dry_run: bool,
    verbose: int,
    quiet: bool,
    **rest: Any,
) -> None:
    """Upscale a video; audio, subtitles, chapters, timestamps and colour tags are kept.

    \b
    yonos video -i clip.mp4                              writes clip_x4.mkv
    yonos video -i clip.mp4 -o big.mp4 -c libx265 --crf 18 --resume
    yonos video -i clip.mp4 -o big.mkv --ray --workers 2
    ffmpeg -i clip.mp4 -f yuv4mpegpipe -strict -1 - | yonos video -i - -o - | ffmpeg -i - big.mkv
    """
    from yonos_trt.cli.progress import make_progress
    from yonos_trt.sizing import Sizing
    from yonos_trt.sr import SR
    from yonos_trt.video import VideoOptions, upscale_video
    from yonos_trt.video.format import EncoderSettings
    from yonos_trt.video.stages import upscaler_id

    options.begin(progress, verbose, quiet=quiet)
    names = {f.name for f in dataclasses.fields(VideoOptions)}
    encoder = EncoderSettings(vcodec, crf, preset, pix_fmt, _pairs(pairs))
    of_ray = {"workers": workers, "gpus_per_worker": gpus_per_worker, "address": address}
    if not ray and any(value is not None for value in of_ray.values()):
        raise ConfigError(
            "--workers, --gpus-per-worker and --address are those of --ray; add it, or leave them out"
        )
    job = VideoOptions(encoder=encoder, **{k: v for k, v in rest.items() if k in names})
    engine_dir, model, sizing = options.model_options({k: v for k, v in rest.items() if k not in names})
    sr = SR(engine_dir, **model)
    if sizing is None and sr.factor != sr.scale:
        sizing = Sizing(factor=sr.factor)
    job = dataclasses.replace(job, hwaccel_device=model["device"], sizing=sizing)
    if target is None:
        name = f"{Path(source).stem}_{sizing or f'x{sr.scale}'}.mkv"
        target = "-" if source == "-" else str(Path(source).with_name(name))
    if target != "-" and (problem := no_path(target)):
        raise ConfigError(f"the output {problem}")
    if ray and "-" in (source, target):
        raise ConfigError("--ray takes files, which all nodes can read; name them with -i and -o")
    if dry_run:
        document = {"engine_dir": str(sr.engine_dir), "scale": sr.factor, "source": source, "target": target}
        parts = {"options": dataclasses.asdict(job), "model": model} | ({"ray": of_ray} if ray else {})
        click.echo(json.dumps(document | parts, indent=2))
        return
    if target == "-" and console.stdout_closed:
        raise ConfigError("-o - writes raw video, and stdout is closed; open it, or name a file with -o")
    if target == "-" and sys.stdout.isatty():
        raise ConfigError("-o - writes raw video, and stdout is a terminal; pipe it, or name a file with -o")
    reporter = make_progress(progress, unit="frame", quiet=quiet)
    reporter.start(source, 0, 1)

    def told(done: int, total: int | None) -> None:
        reporter.step(done, total or 0)

    with _kept(target, reporter), console.quiet_libraries():
        if ray:
            from yonos_trt import ray_data

            report = ray_data.upscale_video(
                source,
                target,
                options=job,
                workers=workers,
                gpus_per_worker=gpus_per_worker,
                address=address,
                progress=told,
                engine_dir=engine_dir,
                **model,
            )
        else:
            with sr:
                report = upscale_video(
                    sys.stdin.buffer if source == "-" else source,
                    sys.stdout.buffer if target == "-" else target,
                    sr.upscale,
                    scale=sr.scale,
                    upscaler_id=upscaler_id(sr, model),
                    options=_with_device_arrays(sr, job),
                    progress=told,
                )
        reporter.finish(source, output=target, **dataclasses.asdict(report))
    if report.repeated_s:
        times = ", ".join(f"{t:.3f}" for t in report.repeated_s[:20])
        more = f" and {len(report.repeated_s) - 20} more" if len(report.repeated_s) > 20 else ""
        if progress != "json":
            click.echo(f"{len(report.repeated_s)} frames repeat a neighbour, at (s): {times}{more}", err=True)
    if target != "-" and not (quiet or console.stdout_closed):
        click.echo(os.fsencode(target))  # a name is bytes, whatever the terminal's encoding


def _with_device_arrays(sr: Any, job: VideoOptions) -> VideoOptions:
    """Refuse ``--hwaccel cuda``, or leave ``auto`` out, where the networks read host memory."""
    from yonos_trt.trt.backend import TrtBackend

    if job.hwaccel == "none" or isinstance(sr.backend, TrtBackend):
        return job
    reason = (
        f"{type(sr.backend).__name__} runs the networks and reads host memory; frames stay on the device "
        "with --runtime tensorrt or tensorrt-rtx"
    )
    if job.hwaccel == "cuda":
        raise ConfigError(f"--hwaccel cuda: {reason}")
    logging.getLogger(__name__).warning("video goes through host memory: %s", reason)
    return dataclasses.replace(job, hwaccel="none")


class _kept:
    """Close the bar, and tell an interrupted user how to go on."""

    def __init__(self, target: str, reporter: Any) -> None:
        self._target, self._reporter = target, reporter

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from yonos_trt.cli.progress import META_KEY, last_line

        self._reporter.end()
        if kind is KeyboardInterrupt:
            context = click.get_current_context()
            message = "the stream on stdout is cut off"
            if self._target != "-":
                from yonos_trt.video.segments import going_on, work_folder

                message = going_on(work_folder(Path(self._target)))
            last_line(context.meta.get(META_KEY), "interrupted", message)
            context.exit(130)
