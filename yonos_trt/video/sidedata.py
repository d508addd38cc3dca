"""Side data of a whole stream: place of the chroma samples, spherical projection, stereo layout, cropping.

PyAV does not show these, and FFmpeg keeps them. Its Matroska writer puts all of them into a track's header,
so they are read from a header that is written to memory, and written by way of one: elements of the source's
header are put into a header of the new stream, and reading that gives a stream that has them, whatever the
output's container is.
"""

from __future__ import annotations

import ctypes
import gc
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, BinaryIO

# Matroska's element numbers, with their length marker (RFC 9559)
SEGMENT, TRACKS, TRACK_ENTRY, VIDEO, COLOUR = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x55B0
SITING_HORIZONTAL, SITING_VERTICAL = 0x55B7, 0x55B8
PROJECTION, PROJECTION_TYPE, STEREO_MODE = 0x7670, 0x7671, 0x53B8
CROPS = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}

#: horizontal and vertical, 1 = on a luma sample, 2 = half-way between two
_SITINGS = {(1, 2): "left", (2, 2): "center", (1, 1): "topleft", (2, 1): "top"}
#: y4m's header, which FFmpeg writes for raw video, says it by name
_Y4M_SITINGS = {b" C420mpeg2 ": "left", b" C420jpeg ": "center", b" C420paldv ": "topleft"}

#: Side data of single frames, which new pictures do not get, by PyAV's names
_FRAME_DATA = {
    "A53_CC": "closed captions (CEA-608/708)",
    "AFD": "active format description",
    "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
    "CONTENT_LIGHT_LEVEL": "HDR content light level",
    "DETECTION_BBOXES": "places of detected objects",
    "DOVI_METADATA": "Dolby Vision metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "FILM_GRAIN_PARAMS": "film grain parameters",
    "GOP_TIMECODE": "time codes in the video stream",
    "ICC_PROFILE": "ICC colour profile",
    "MASTERING_DISPLAY_METADATA": "HDR mastering display metadata",
    "PANSCAN": "pan and scan rectangles",
    "REGIONS_OF_INTEREST": "regions of interest",
    "S12M_TIMECODE": "time codes in the video stream",
    "SPHERICAL": "spherical projection (360 degree video)",
    "STEREO3D": "stereo layout",
    "UNKNOWN_31": "EXIF metadata of frames",
}
#: What decoders add themselves, and what the output has in another way
_SILENT = {"DISPLAYMATRIX", "MOTION_VECTORS", "VIDEO_ENC_PARAMS", "VIDEO_HINT", "SKIP_SAMPLES"}
#: UUIDs of the messages in which x264 and x265 write their settings
_ENCODER_NOTES = {"dc45e9bde6d948b7962cd820d923eeef", "2ca2de09b51747dbbb55a4fe7fc2fc4e"}


@dataclass(frozen=True, slots=True)
class StreamSideData:
    """Side data of one video stream, as FFmpeg knows it."""

    siting: str | None = None  # a key of `yonos_trt.video.color.SITINGS`; None: not said, or not one of them
    projection: bytes = b""  # content of Matroska's Projection element; empty: a flat picture
    stereo_mode: int = 0  # Matroska's StereoMode; 0: one picture
    crop_px: tuple[tuple[str, int], ...] = ()  # rows or columns that the container hides, by side

    def scaled(self, high: Fraction, wide: Fraction) -> StreamSideData:
        """Return the same for a picture ``high`` times as high and ``wide`` times as wide."""
        crop_px = tuple(
            (side, round(count * (high if side in ("top", "bottom") else wide)))
            for side, count in self.crop_px
        )
        return replace(self, crop_px=crop_px)

    def lost(self, other: StreamSideData) -> list[str]:
        """Return what of this ``other`` does not have."""
        found = []
        if self.siting is not None and self.siting != (other.siting or "left"):
            found.append(f"chroma siting {self.siting}")
        if self.projection and self.projection != other.projection:
            found.append("spherical projection (360 degree video)")
        if self.stereo_mode and self.stereo_mode != other.stereo_mode:
            found.append(f"stereo layout (Matroska's StereoMode {self.stereo_mode})")
        if self.crop_px and self.crop_px != other.crop_px:
            hidden = ", ".join(f"{side} {count}" for side, count in self.crop_px)
            found.append(f"cropping of the picture ({hidden} px)")
        return found


def _number(data: bytes, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """Read one of EBML's self-delimiting numbers; return it and where it ends."""
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), at + length


def _children(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, where it begins, where its content begins, where that ends) of each element."""
    at = begin
    while at < end and data[at]:
        number, sized = _number(data, at, keep_marker=True)
        size, content = _number(data, sized, keep_marker=False)
        unknown = size == (1 << 7 * (content - sized)) - 1
        stop = end if unknown else min(end, content + size)
        yield number, at, content, stop
        at = stop


def _element(number: int, content: bytes) -> bytes:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return raw + (len(content) | 1 << 56).to_bytes(8, "big") + content


def _path(data: bytes, *numbers: int) -> list[tuple[int, int, int]]:
    """Return the places of the first element at each level of a path; shorter where it ends."""
    places: list[tuple[int, int, int]] = []
    begin, end = 0, len(data)
    for wanted in numbers:
        for number, at, content, stop in _children(data, begin, end):
            if number == wanted:
                places.append((at, content, stop))
                begin, end = content, stop
                break
        else:
            break
    return places


def _header(stream: Any, container: str) -> bytes:
    """Return the header that FFmpeg writes for a copy of ``stream``; empty where it does not."""
    import av

    sink = io.BytesIO()
    try:
        with av.open(sink, "w", format=container) as out:
            copy = out.add_stream_from_template(stream, opaque=True)
            if "stereo_mode" in stream.metadata:
                copy.metadata["stereo_mode"] = stream.metadata["stereo_mode"]
            out.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return b""
    return sink.getvalue()


def read_side_data(stream: Any) -> StreamSideData:
    """Return the side data of an input's video stream."""
    if stream.codec_context.name == "rawvideo":
        header = _header(stream, "yuv4mpegpipe").partition(b"\n")[0] + b" "
        found = [siting for mark, siting in _Y4M_SITINGS.items() if mark in header]
        return StreamSideData(siting=found[0] if found else None)
    data = _header(stream, "matroska")
    places = _path(data, SEGMENT, TRACKS, TRACK_ENTRY, VIDEO)
    if len(places) < 4:
        return StreamSideData()
    fields: dict[int, bytes] = {}
    for number, _, content, stop in _children(data, *places[3][1:]):
        fields[number] = data[content:stop]
        if number == COLOUR:
            fields |= {n: data[begin:end] for n, _, begin, end in _children(data, content, stop)}
    numbers = {number: int.from_bytes(content, "big") for number, content in fields.items()}
    projection = fields.get(PROJECTION, b"")
    kinds = {n: projection[begin:end] for n, _, begin, end in _children(projection, 0, len(projection))}
    if not int.from_bytes(kinds.get(PROJECTION_TYPE, b""), "big"):
        projection = b""  # a flat picture, turned: the display matrix has that
    return StreamSideData(
        siting=_SITINGS.get((numbers.get(SITING_HORIZONTAL, 0), numbers.get(SITING_VERTICAL, 0))),
        projection=projection,
        stereo_mode=numbers.get(STEREO_MODE, 0),
        crop_px=tuple((side, numbers[n]) for n, side in CROPS.items() if numbers.get(n)),
    )


def with_side_data(matroska: bytes, side: StreamSideData) -> bytes:
    """Put side data into the video track of a Matroska file with one track.

    Parameters
    ----------
    matroska
        The file; places that it names by their distance (cues) are wrong afterwards.
    side
        What to put in.
    """
    places = _path(matroska, SEGMENT, TRACKS, TRACK_ENTRY, VIDEO)
    content = matroska[places[3][1] : places[3][2]]
    if side.projection:
        content += _element(PROJECTION, side.projection)
    if side.stereo_mode:
        content += _element(STEREO_MODE, bytes([side.stereo_mode]))
    for number, name in CROPS.items():
        if count := dict(side.crop_px).get(name):
            content += _element(number, count.to_bytes(4, "big"))
    inner = _element(VIDEO, content)
    for level, number in ((2, TRACK_ENTRY), (1, TRACKS)):
        _, begin, end = places[level]
        inner_at, _, inner_end = places[level + 1]
        inner = _element(number, matroska[begin:inner_at] + inner + matroska[inner_end:end])
    _, begin, _ = places[0]
    tracks_at, _, tracks_end = places[1]
    segment_at = places[0][0]
    unknown = b"\x01" + b"\xff" * 7  # the segment's size, which readers do without
    start = matroska[:segment_at] + SEGMENT.to_bytes(4, "big") + unknown
    return start + matroska[begin:tracks_at] + inner + matroska[tracks_end:]


def correct_boxes(file: BinaryIO, container: str) -> None:
    """Turn boxes of Apple's stereo video that FFmpeg writes beside the ones meant here into free space.

    Readers prefer ``vexu`` to MP4's own boxes (``sv3d``, ``st3d``), and it lacks a panorama's direction and
    how two views lie in one picture. MOV has only ``vexu``: there its ``eyes`` go, which would say that two
    views are coded one after the other.
    """
    file.seek(0)
    size = 1
    while size:
        at = file.tell()
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if head[4:8] == b"moov":
            file.seek(at)
            moov = file.read(size)
            box = moov.find(b"vexu")
            end = box - 4 + int.from_bytes(moov[box - 4 : box], "big")
            gone = box if container == "mp4" else moov.find(b"eyes", box, end)
            if min(box, gone) > 0:
                file.seek(at + gone)
                file.write(b"free")
        file.seek(at + size)
    file.seek(0, io.SEEK_END)


def frame_side_data(frame: Any) -> list[Any]:
    """Return the side data of a PyAV frame, made safe to be forgotten.

    PyAV 18.1 frees an entry's dictionary (an ICC profile's name) which FFmpeg frees with the frame. Each
    of these objects keeps one reference for good, so that only FFmpeg does. PyAV does not show it.
    """
    entries = list(getattr(frame, "side_data", ()))
    for entry in entries:
        for held in gc.get_referents(entry):
            if type(held).__name__ == "Dictionary" and len(held):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    return entries


def frame_data_names(frame: Any) -> Iterator[str]:
    """Yield PyAV's names of a frame's side data, those of user data with their UUID."""
    for entry in frame_side_data(frame):
        name = entry.type.name
        if name == "SEI_UNREGISTERED":
            name = bytes(entry)[:16].hex()
            if name in _ENCODER_NOTES:
                continue
        yield name


def lost_frame_data(names: Collection[str], side: StreamSideData, *, hdr_kept: bool) -> list[str]:
    """Say in words what side data of frames is not in the output.

    Parameters
    ----------
    names
        From `frame_data_names`, of all frames.
    side
        The stream's, which is carried or named by itself.
    hdr_kept
        Whether the encoder is told the static HDR metadata.
    """
    known = set(_SILENT)
    if side.projection:
        known.add("SPHERICAL")
    if side.stereo_mode:
        known.add("STEREO3D")
    if hdr_kept:
        known |= {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"}
    lost = []
    for name in sorted(set(names) - known):
        words = f"user data in the video stream (UUID {name})" if len(name) == 32 and name.islower() else name
        lost.append(_FRAME_DATA.get(name, words))
    return list(dict.fromkeys(lost))
