"""Metadata of a file and its streams: what travels, and what of it did not arrive."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

#: Written by every muxer for its own file; the source's values would be wrong in ours.
OWN = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}
#: Per-stream statistics some muxers leave as tags; they describe the old video stream.
STATISTICS = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS_")
#: Fillers of muxers, and what is side data (see `yonos_trt.video.sidedata`)
FILLERS = {"vendor_id", "stereo_mode", "alpha_mode"}
HANDLERS = {"VideoHandler", "SoundHandler", "SubtitleHandler", "DataHandler"}
#: MOV has numbers for languages, which FFmpeg finds by these older codes (ISO 639-2/B)
MOV_LANGUAGES = {
    "deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice", "zho": "chi", "sqi": "alb", "mkd": "mac",
    "swe": "sve",
}  # fmt: skip
SHOWN = 60  # characters of a value in a message


def file_tags(metadata: Mapping[str, str], *, cut: bool) -> dict[str, str]:
    """Return the tags of a source file that are true of the new file.

    Parameters
    ----------
    metadata
        The source's.
    cut
        The new file does not begin where the source does, so a time code for the start is left out.
    """
    gone = OWN | ({"timecode"} if cut else set())
    return {key: value for key, value in metadata.items() if key.lower() not in gone}


def stream_tags(metadata: Mapping[str, str], container: str, *, recoded: bool, cut: bool) -> dict[str, str]:
    """Return the tags of a source stream that are true of the new stream.

    Parameters
    ----------
    metadata
        The source stream's.
    container
        FFmpeg's name of the output's format.
    recoded
        The stream is the upscaled one: neither statistics nor the old encoder's name go with it, and it has
        no alpha.
    cut
        As for `file_tags`.
    """
    tags = dict(metadata)
    if recoded:
        gone = {"encoder", "alpha_mode", "stereo_mode"}  # side data says the last, where the container can
        tags = {k: v for k, v in tags.items() if k.lower() not in gone}
        tags = {k: v for k, v in tags.items() if not k.upper().startswith(STATISTICS)}
    if cut:
        tags = {k: v for k, v in tags.items() if k.lower() != "timecode"}
    if container == "mov" and tags.get("language") in MOV_LANGUAGES:
        tags["language"] = MOV_LANGUAGES[tags["language"]]
    return tags


def needs_keys(metadata: Mapping[str, str], container: str) -> bool:
    """Whether MP4 or MOV can hold some of these tags only as named keys (``mdta``), as phones write them.

    Found out by writing a file without pictures: the classic atoms hold a fixed list of tags, and more
    programs read those.
    """
    import av

    if container not in ("mp4", "mov") or not metadata:
        return False
    kept = []
    for flags in ({}, {"movflags": "use_metadata_tags"}):
        file = io.BytesIO()
        with av.open(file, "w", format=container, container_options=flags) as out:
            out.add_mux_stream("h264", width=16, height=16)
            out.metadata.update(metadata)
            out.start_encoding()
        file.seek(0)
        with av.open(file) as written:
            kept.append(len(_missing(metadata, written.metadata)))
    return kept[1] < kept[0]


def fits_timecode(timecode: str, rate: Fraction, container: str) -> bool:
    """Whether a container takes a time code: MP4 and MOV make a track of it, for the rates that have one."""
    import av

    if container not in ("mp4", "mov"):
        return True
    try:
        with av.open(io.BytesIO(), "w", format=container) as out:
            stream = out.add_mux_stream("h264", rate=rate, width=16, height=16)
            stream.metadata["timecode"] = timecode
            out.start_encoding()
    except av.error.FFmpegError:
        return False
    return True


def _plain(value: str) -> str:
    """Bring a value to the form in which muxers agree: no blanks around it, no empty fraction of a second."""
    text = re.sub(r"(T\d\d:\d\d:\d\d)\.0+Z?$", r"\1", value.strip())
    return re.sub(r"(T\d\d:\d\d:\d\d)Z$", r"\1", text)


def _missing(before: Mapping[str, str], *after: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the tags whose value is nowhere; muxers change the names of keys, and their case."""
    there = {_plain(value) for tags in after for value in tags.values()}
    return [(key, value) for key, value in before.items() if _plain(value) and _plain(value) not in there]


def _describe(key: str, value: str) -> str:
    return f"tag {key}={value[:SHOWN]}{'...' if len(value) > SHOWN else ''}"


def lost_tags(before: Any, after: Any, streams: Mapping[int, int], main: int, *, cut: bool) -> list[str]:
    """Compare a source with the file made from it, both open.

    Parameters
    ----------
    before, after
        PyAV's containers.
    streams
        Index in the new file by index in the source, of all streams that went in.
    main
        The upscaled stream's index in the source.
    cut
        Only a part of the source was taken.

    Returns
    -------
    list of str
        Every tag, disposition and chapter that is not in the new file.
    """
    lost = [_describe(*entry) for entry in _missing(file_tags(before.metadata, cut=False), after.metadata)]
    for index, new_index in streams.items():
        old, new = before.streams[index], after.streams[new_index]
        wanted = {k: v for k, v in old.metadata.items() if k.lower() not in FILLERS and v not in HANDLERS}
        wanted = stream_tags(wanted, "", recoded=index == main, cut=False)
        wanted = {k: v for k, v in wanted.items() if not k.upper().startswith(("DURATION", "ENCODER"))}
        language, spoken = wanted.pop("language", "und"), new.metadata.get("language", "und")
        if language != "und" and spoken not in (language, MOV_LANGUAGES.get(language)):
            wanted["language"] = language
        label = f"stream {index} ({old.type})"
        lost += [f"{label}: {_describe(*e)}" for e in _missing(wanted, new.metadata, after.metadata)]
        flags = old.disposition & ~new.disposition
        lost += [f"{label}: disposition {flag.name}" for flag in type(old.disposition) if flag & flags]
    if not cut:
        titles = [(c["metadata"] or {}).get("title", "") for c in before.chapters()]
        there = [(c["metadata"] or {}).get("title", "") for c in after.chapters()]
        if len(there) < len(titles):
            lost.append(f"{len(titles) - len(there)} of {len(titles)} chapters")
        elif there != titles:
            lost.append("titles of chapters")
    return lost
