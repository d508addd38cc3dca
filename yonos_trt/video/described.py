"""What a file says of its pictures and FFmpeg does not: XMP, EXIF, IPTC, text, how often an animation plays.

Videos have no place for these, so they are named as left out. How each format writes them stands in
`yonos_trt.images`; here are only the containers: boxes, RIFF chunks, packets of Motion JPEG.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yonos_trt.images.avif_boxes import avif_left_out
from yonos_trt.images.header import MalformedError
from yonos_trt.images.heif_header import boxes
from yonos_trt.images.jpeg_segments import jpeg_metadata
from yonos_trt.images.metadata import Metadata
from yonos_trt.images.png_chunks import png_metadata
from yonos_trt.images.small_formats import add_gif_extensions
from yonos_trt.video.info import open_input
from yonos_trt.video.read import main_video_stream
from yonos_trt.video.webp import animated_webp

EXIF_OF_FRAMES = "EXIF metadata of frames"  # as of frames whose side data it is
_UUIDS = {
    bytes.fromhex("be7acfcb97a942e89c71999491e3afac"): "XMP metadata",
    bytes.fromhex("d8fec3d61b0e483c92975828877ec481"): "content credentials (C2PA), signed for the old file",
}
# what encoders of Motion JPEG write about themselves
_NOTES = ("Lavc", "CS=ITU601", "Intel(R) JPEG")
_CONTAINERS = (b"moov", b"trak", b"udta", b"edts", b"meta", b"iinf")
_DEEPEST = 6
_FOR_EVER = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def left_out_descriptions(path: Path) -> list[str]:
    """Return what a file says of its pictures that no video can keep; damaged parts say nothing.

    Raises
    ------
    InputError
        The file is no video.
    """
    if animated_webp(path) is not None:
        return _of_webp(path)
    with open_input(str(path), name=str(path)) as clip:
        container, codec = clip.format.name.partition(",")[0], ""
        if clip.streams.video:
            stream = main_video_stream(clip, str(path))
            codec = stream.codec_context.name
        found = _of_frames(clip.demux(stream)) if codec == "mjpeg" else []
    look = {"mov": _of_boxes, "apng": _of_png, "gif": _of_gif, "avi": _of_avi}.get(container)
    if look is not None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            try:
                found += look(mapped)
            except (MalformedError, ValueError, IndexError, struct.error):
                found.append("metadata, which cannot be read")
    return list(dict.fromkeys(found))


def _loops(times: int, more: int = 0) -> list[str]:
    """Name a loop count of 0 (for ever) or of plays; ``more`` plays than it says."""
    if times + more == 1 and times:
        return []
    return [f"loop count (plays {f'{times + more} times' if times else 'for ever'})"]


def _named(found: Metadata, *, of: str = "") -> list[str]:
    named = [f"XMP metadata{of}"] if found.xmp else []
    numbers = {number for number, _, _ in found.resources}
    named += [f"IPTC metadata{of}"] if 0x0404 in numbers else []
    named += [f"Photoshop resources{of}"] if numbers - {0x0404} else []
    return named


def _of_webp(path: Path) -> list[str]:
    from PIL import Image

    names = {"icc_profile": "ICC colour profile", "exif": "EXIF metadata", "xmp": "XMP metadata"}
    with Image.open(path, formats=["WEBP"]) as image:
        found = [name for key, name in names.items() if image.info.get(key)]
        return found + _loops(int(image.info.get("loop", 1)))


def _of_png(data: Any) -> list[str]:
    found = png_metadata(data)
    named = [EXIF_OF_FRAMES] if found.exif else []
    named += _named(found) + [f"text {key!r}" for key in found.text]
    named += ["resolution (pHYs)"] if found.dpi else []
    named += [f"PNG chunk {kind.decode('latin-1')}" for kind, _ in found.chunks if kind != b"pHYs"]
    at = data.find(b"acTL", 8)
    return named + found.left_out + _loops(int.from_bytes(data[at + 8 : at + 12], "big"))


def _of_gif(data: Any) -> list[str]:
    found = Metadata()
    add_gif_extensions(data, found)
    named = (["ICC colour profile"] if found.icc else []) + _named(found) + found.left_out
    for name in (b"NETSCAPE2.0", b"ANIMEXTS1.0"):
        if (at := data.find(b"\x21\xff\x0b" + name + b"\x03\x01")) >= 0:
            return named + _loops(int.from_bytes(data[at + 16 : at + 18], "little"), more=1)
    return named


def _of_frames(packets: Iterator[Any]) -> list[str]:
    """Look into every frame of Motion JPEG: each is a file of its own."""
    named: dict[str, None] = {}
    for packet in packets:
        data = bytes(packet)
        if not data.startswith(b"\xff\xd8"):
            continue
        try:
            found = jpeg_metadata(data)
        except (MalformedError, ValueError, IndexError, struct.error):
            continue
        comment = found.text.get("comment", "")
        some = ([EXIF_OF_FRAMES] if found.exif else []) + _named(found, of=" of frames")
        if comment and not comment.startswith(_NOTES):
            some.append("comments of frames")
        named |= dict.fromkeys(some)
    return list(named)


def _of_avi(data: Any) -> list[str]:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"_PMX":
            return ["XMP metadata"]
        at += 8 + length + length % 2
    return []


def _of_boxes(data: Any) -> list[str]:
    named = []
    still = data[8:12] in (b"avif", b"avis", b"heic", b"hevc", b"mif1", b"msf1")
    for kind, begin, end in _below(data, 0, len(data)):
        if kind == b"uuid" and data[begin : begin + 16] in _UUIDS:
            named.append(_UUIDS[data[begin : begin + 16]])
        elif kind == b"XMP_":
            named.append("XMP metadata")
        elif kind == b"infe" and b"Exif" in data[begin:end]:
            named.append("EXIF metadata")
        elif kind == b"infe" and b"rdf+xml" in data[begin:end]:
            named.append("XMP metadata")
        elif kind == b"trak" and still:
            named += _repeated(data, begin, end)
    return named + (avif_left_out(data) if still else [])


def _below(data: Any, begin: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, begin, end) of the bodies of boxes, of files, tracks and their metadata."""
    with contextlib.suppress(MalformedError, struct.error, IndexError):
        for kind, body, last in boxes(data, begin, end):
            yield kind, body, last
            if kind not in _CONTAINERS or depth > _DEEPEST:
                continue
            skip = 0
            if kind == b"meta":  # in MOV without version and flags
                skip = 0 if data[body + 4 : body + 8] == b"hdlr" else 4
            elif kind == b"iinf":
                skip = 6 if data[body] == 0 else 8
            yield from _below(data, body + skip, last, depth + 1)


def _repeated(data: Any, begin: int, end: int) -> list[str]:
    """Say how often a sequence of pictures plays: its edit list is repeated as long as the track is."""
    length = edit = 0
    for kind, body, _ in _below(data, begin, end):
        wide = data[body] == 1
        if kind == b"tkhd":
            length = struct.unpack_from(">Q" if wide else ">I", data, body + (28 if wide else 20))[0]
        elif kind == b"elst" and data[body + 3] & 1:
            edit = struct.unpack_from(">Q" if wide else ">I", data, body + 8)[0]
    if not edit:
        return []
    return _loops(0 if length in _FOR_EVER else max(1, round(length / edit)))
