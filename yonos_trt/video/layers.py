"""Further pictures coded with each picture, which FFmpeg does not decode: alpha in WebM and HEVC, views.

Decoders give the base picture and say nothing of the rest. Alpha changes what is seen, so it is refused as
where a decoder does give it; of two views one is upscaled, and the other is left out by name.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from yonos_trt.errors import InputError
from yonos_trt.images.header import MalformedError
from yonos_trt.images.heif_header import boxes
from yonos_trt.video.copies import is_still
from yonos_trt.video.info import frame_planes, open_input
from yonos_trt.video.layouts import layout_of
from yonos_trt.video.read import main_video_stream

ALPHA_SEI = 165  # H.265's and H.264's alpha_channel_info
H264_VIEW, H264_SEI = 20, 6  # NAL units: slice of another view, messages
HEVC_SEI = (39, 40)
# HEIF's names (ISO/IEC 23008-12, 23000-22) of tracks that are another's alpha
ALPHA_URNS = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0", b"urn:mpeg:hevc:2015:auxid:1\0")
LOOKED_AT = 8  # packets; layers are in every one


def _units(data: bytes, length_size: int) -> Iterator[bytes]:
    """Yield the NAL units of a packet: each behind its length, or (0) behind a start code."""
    if not length_size:
        for part in data.split(b"\0\0\1")[1:]:
            yield part.rstrip(b"\0")
        return
    at = 0
    while at + length_size < len(data):
        size = int.from_bytes(data[at : at + length_size], "big")
        at += length_size
        yield data[at : at + size]
        at += size


def _header_units(codec: str, header: bytes) -> tuple[int, list[bytes]]:
    """Return how many bytes a unit's length has (0: start codes), and HEVC's units in the header."""
    if header[:1] != b"\1" or len(header) < 7:
        return 0, list(_units(header, 0))
    if codec == "h264":
        return (header[4] & 3) + 1, []
    if len(header) < 23:
        return 0, []
    units, at = [], 23
    for _ in range(header[22]):
        count = int.from_bytes(header[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            size = int.from_bytes(header[at : at + 2], "big")
            units.append(header[at + 2 : at + 2 + size])
            at += 2 + size
    return (header[21] & 3) + 1, units


def _messages(payload: bytes) -> Iterator[int]:
    """Yield the types of the messages in an SEI unit."""
    at = 0
    while at + 1 < len(payload) and payload[at:] != b"\x80":
        values = []
        for _ in range(2):
            value = 0
            while at < len(payload) and payload[at] == 255:
                value, at = value + 255, at + 1
            if at >= len(payload):
                return
            values.append(value + payload[at])
            at += 1
        yield values[0]
        at += values[1]


def _coded_layers(codec: str, header: bytes, packets: list[bytes]) -> tuple[bool, bool]:
    """Return whether there is alpha, and whether there are further layers or views."""
    length_size, units = _header_units(codec, header)
    for packet in packets:
        units += _units(packet, length_size)
    alpha = further = False
    for unit in filter(None, units):
        if codec == "h264":
            kind = unit[0] & 31
            further |= kind == H264_VIEW
            alpha |= kind == H264_SEI and ALPHA_SEI in _messages(unit[1:])
        elif len(unit) > 2:
            kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
            further |= layer > 0
            alpha |= kind in HEVC_SEI and ALPHA_SEI in _messages(unit[2:])
    return alpha, further


def _has_block_alpha(packets: Iterator[Any]) -> bool:
    """Whether a packet has Matroska's block addition 1, which is alpha where the track says so."""
    for packet in packets:
        for data in packet.iter_sidedata():
            if data.data_type == "matroska_block_additional" and bytes(data)[:8] == bytes(7) + b"\1":
                return True
    return False


def _alpha_tracks(path: Path) -> set[int]:
    """Return the numbers of an MP4's, AVIF's or HEIF's tracks that are another's alpha; damaged: none."""
    found = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        try:
            for name, start, stop in boxes(mapped, 0, len(mapped)):
                for kind, begin, end in boxes(mapped, start, stop) if name == b"moov" else ():
                    track = mapped[begin:end]
                    if kind == b"trak" and any(urn in track for urn in ALPHA_URNS):
                        header = track.index(b"tkhd") + 4
                        at = header + (20 if track[header] else 12)  # version 1 has dates of 64 bits
                        found.add(int.from_bytes(track[at : at + 4], "big"))
        except (MalformedError, ValueError, IndexError, struct.error):
            return set()
    return found


def alpha_streams(container: Any, path: Path) -> list[Any]:
    """Return the video streams of an open file that are another's alpha, not those of its stills."""
    if not container.format.name.startswith("mov"):
        return []
    tracks = _alpha_tracks(path)
    return [s for s in container.streams.video if s.id in tracks and not is_still(s)]


def _is_opaque(path: Path, index: int) -> bool:
    with open_input(str(path), name=str(path)) as clip:
        frame: Any
        for frame in clip.decode(clip.streams[index]):
            layout = layout_of(frame.format.name)
            if frame_planes(frame, layout)[0].min() < (1 << layout.bits) - 1:
                return False
    return True


def left_out_layers(path: Path) -> list[str]:
    """Return what beside the decoded pictures of a file's main video stream is not upscaled.

    Raises
    ------
    InputError
        There is an alpha channel, or the file is no video.
    """
    with open_input(str(path), name=str(path)) as clip:
        stream = main_video_stream(clip, str(path))
        codec = stream.codec_context.name
        tags = {key.lower(): value for key, value in stream.metadata.items()}
        found: list[str] = []
        alpha = False
        for track in alpha_streams(clip, path):
            alpha |= not _is_opaque(path, track.index)
            if not alpha:
                found.append("alpha channel, which is opaque in every pixel")
        if tags.get("alpha_mode", "0") != "0":
            alpha = _has_block_alpha(clip.demux(stream))
            if not alpha:
                found.append("tag alpha_mode, as no frame has an alpha channel")
        elif codec in ("h264", "hevc"):
            packets = [bytes(packet) for packet in islice(clip.demux(stream), LOOKED_AT) if packet.size]
            alpha, further = _coded_layers(codec, bytes(stream.codec_context.extradata or b""), packets)
            if further and not alpha:
                found.append("further views or layers of the video (one view is upscaled)")
    if alpha:
        raise InputError(
            f"{path} has an alpha channel beside its {codec} pictures, which no output here could keep; put "
            f"it on a background first, or drop the alpha channel: ffmpeg -i IN -c:v ffv1 -c:a copy OUT.mkv"
        )
    return found
