"""Everything in a file that is not the video being upscaled: which streams are copied, and how.

Audio, subtitles, further video streams, attachments, chapters and metadata. Streams are copied packet by
packet and never decoded; the one exception is MP4's timed text, whose packets Matroska has no name for: their
text becomes SubRip's.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from yonos_trt.errors import ConfigError, InputError
from yonos_trt.video.info import require_av
from yonos_trt.video.source import is_cover
from yonos_trt.video.survey import Survey, continuous

Window = tuple[Fraction | None, Fraction | None]  # first and last time taken, in seconds of the file's clock


@dataclass(slots=True)
class CopyPlan:
    """What happens to each stream of the source that is not the one being upscaled."""

    packets: list[int] = field(default_factory=list)  # copied as they are
    to_subrip: list[int] = field(default_factory=list)  # MP4 timed text, whose packets become SubRip's
    attachments: list[int] = field(default_factory=list)
    covers: list[int] = field(default_factory=list)  # cover pictures, which Matroska keeps as attachments
    left_out: list[str] = field(default_factory=list)  # with the reason


def fits(stream: Any, container: str) -> bool:
    """Whether a container takes a stream as it is, by itself."""
    av = require_av()
    if container == "mov" and is_cover(stream):
        return False  # FFmpeg's writer takes it and writes none
    with contextlib.suppress(Exception), av.open(io.BytesIO(), "w", format=container) as probe:
        probe.add_stream_from_template(stream, opaque=True)
        probe.start_encoding()
        return True
    return False


def _made_again(stream: Any, source: Any, main_index: int) -> bool:
    """Whether muxers make this data track themselves: MP4's and MOV's for the time code and for chapters."""
    if stream.type != "data":
        return False
    code = stream.metadata.get("timecode")
    if code is not None and code == source.streams[main_index].metadata.get("timecode"):
        return True
    return bool(source.chapters()) and stream.discard == require_av().stream.Discard.all


def is_still(stream: Any) -> bool:
    """Whether a video stream is one picture without a duration, as AVIF has it beside its sequence."""
    return bool(stream.frames == 1 and stream.duration is None)


def plan_copies(
    source: Any,
    main_index: int,
    container: str,
    alpha: Container[int] = (),
    *,
    audio: bool,
    subtitles: bool,
    force: bool,
) -> CopyPlan:
    """Decide for every stream of an open source whether and how it is copied.

    Those at the indices ``alpha`` are opaque alpha of the main stream, dropped and named elsewhere.

    Raises
    ------
    ConfigError
        The container cannot hold a stream that the user did not leave out.
    """
    plan = CopyPlan()
    for stream in source.streams:
        name = stream.codec_context.name if stream.codec_context is not None else "no codec"
        label = f"stream {stream.index} ({stream.type}, {name})"
        if stream.index == main_index or stream.index in alpha or _made_again(stream, source, main_index):
            continue
        if (stream.type == "audio" and not audio) or (stream.type == "subtitle" and not subtitles):
            plan.left_out.append(f"{label}: as asked")
        elif stream.type == "attachment":
            if container == "matroska":
                plan.attachments.append(stream.index)
            elif force:
                plan.left_out.append(f"{label}: {container} holds no attachments")
            else:
                raise ConfigError(
                    f"{label} is an attachment, which {container} cannot hold; choose an .mkv output or "
                    f"--force"
                )
        elif stream.type == "video" and is_still(stream) and source.streams[main_index].frames > 1:
            plan.left_out.append(f"{label}: the still picture beside the animation")
        elif is_cover(stream) and container == "matroska":
            plan.covers.append(stream.index)
        elif stream.type in ("audio", "subtitle", "video") and fits(stream, container):
            plan.packets.append(stream.index)
        elif stream.type == "subtitle" and name == "mov_text" and container == "matroska":
            plan.to_subrip.append(stream.index)
        elif stream.type in ("audio", "subtitle"):
            remedy = "choose an .mkv output or "
            if not fits(stream, "matroska"):  # WMA, for one: PyAV's list is shorter than FFmpeg's
                converted = "ffmpeg -i IN -map 0 -c copy -c:a flac OUT.mkv"
                remedy = f"convert it first ({converted}) or " if stream.type == "audio" else ""
            raise ConfigError(
                f"{label} cannot be stored in {container}; {remedy}leave it out with "
                f"--no-copy-{'audio' if stream.type == 'audio' else 'subtitles'}"
            )
        else:
            plan.left_out.append(f"{label}: {container} cannot hold it")
    return plan


def _subrip_text(payload: bytes) -> bytes:
    """Return the text of an MP4 timed-text sample: a 16-bit length, UTF-8 text, then style boxes."""
    return payload[2 : 2 + int.from_bytes(payload[:2], "big")].replace(b"\r", b"\n")


def copied_packets(
    source: Any, plan: CopyPlan, window: Window, found: Survey
) -> Iterator[tuple[Fraction, int, Any]]:
    """Yield (time in seconds, source stream index, packet) of all streams to copy, in file order.

    Times run on through joins. What an edit list hides is left out with all that begins before the file's
    start; of a stream that only begins with its decoder's priming, nothing is.
    """
    av = require_av()
    wanted = [source.streams[i] for i in sorted(plan.packets + plan.to_subrip)]
    if not wanted:
        return
    start = Fraction(source.start_time or 0, av.time_base)
    for packet in continuous(source.demux(*wanted), found.joins):
        if not packet.size:
            continue
        if is_cover(packet.stream):  # shown for the whole file, and has no time of its own
            packet.pts = packet.dts = round((window[0] or 0) / packet.time_base)
        if packet.pts is None and packet.dts is None:
            raise InputError(
                f"a packet of stream {packet.stream.index} ({packet.stream.type}) has no time and cannot be "
                f"copied; "
                f"repair the file first (ffmpeg -fflags +genpts -i IN -c copy OUT), or leave that stream out"
            )
        begin = (packet.pts if packet.pts is not None else packet.dts) * packet.time_base
        if (window[0] is not None and begin < window[0]) or (window[1] is not None and begin >= window[1]):
            continue
        index = packet.stream.index
        if index in found.trimmed and (packet.is_discard or begin < start):
            continue
        if index in plan.to_subrip:
            text = _subrip_text(bytes(packet))
            if not text:
                continue  # an empty sample only ends the one before, whose duration says so
            fresh = av.Packet(text)
            fresh.pts, fresh.dts, fresh.duration = packet.pts, packet.pts, packet.duration
            fresh.time_base, fresh.is_keyframe = packet.time_base, True
            packet = fresh
        yield begin, index, packet


def lowest_time(source: Any, plan: CopyPlan, window: Window, found: Survey) -> Fraction | None:
    """Return the lowest time in the first second of the copied streams, in seconds; None: no packets."""
    lowest: Fraction | None = None
    for begin, _, _ in copied_packets(source, plan, window, found):
        lowest = begin if lowest is None else min(lowest, begin)
        if begin > lowest + 1:
            break
    return lowest


def read_covers(source: Any, plan: CopyPlan) -> dict[int, bytes]:
    """Return the pictures of the plan's cover streams; the source has to be opened again after this."""
    wanted = [source.streams[i] for i in plan.covers]
    found: dict[int, bytes] = {}
    for packet in source.demux(*wanted) if wanted else ():
        if packet.size:
            found.setdefault(packet.stream.index, bytes(packet))
        if len(found) == len(wanted):
            break
    return found


def chapters(source: Any, shift: Fraction, window: Window) -> list[Any]:
    """Return the source's chapters, moved by ``shift`` seconds and cut to ``window``."""
    kept = []
    for chapter in source.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        begin, end = chapter["start"] * base, chapter["end"] * base
        if window[0] is not None:
            begin = max(begin, window[0])
        if window[1] is not None:
            end = min(end, window[1])
        if begin < end or window == (None, None):
            ticks = {"start": round((begin + shift) / base), "end": round((end + shift) / base)}
            kept.append({**chapter, **ticks, "time_base": base})
    return kept


def add_copied_streams(
    out: Any,
    source: Any,
    plan: CopyPlan,
    main_index: int,
    add_main: Callable[[], Any],
    covers: dict[int, bytes],
) -> dict[int, Any]:
    """Add the streams and attachments of a plan to an output, in the source's order; streams without tags.

    Returns
    -------
    dict
        Output streams by source index; the one at ``main_index`` is made by ``add_main``.
    """
    streams: dict[int, Any] = {}
    for index in sorted([*plan.packets, *plan.to_subrip, main_index]):
        old = source.streams[index]
        if index == main_index:
            streams[index] = add_main()
            continue
        if index in plan.to_subrip:
            new = out.add_mux_stream("subrip")
            new.time_base = Fraction(1, 1000)
        else:
            new = out.add_stream_from_template(old, opaque=True)
        streams[index] = new
    for index in plan.attachments:
        old = source.streams[index]
        name = old.metadata.get("filename", f"attachment-{index}")
        new = out.add_attachment(name, old.mimetype or "application/octet-stream", old.data)
        new.metadata.update(old.metadata)
    for index in plan.covers:
        old = source.streams[index]
        suffix, mime = {"png": (".png", "image/png")}.get(old.codec_context.name, (".jpg", "image/jpeg"))
        out.add_attachment(old.metadata.get("filename", f"cover{suffix}"), mime, covers[index])
    return streams
