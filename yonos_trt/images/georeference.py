"""GeoTIFF: where on the earth the pixels lie, made true for smaller pixels.

OGC 19-008r4, annex B: a raster point (i, j) is at (x + (i - i0) sx, y - (j - j0) sy), from tie points and a
scale, or at its place through a matrix. Raster points are corners of pixels ("area") or their centres
("point"). Standard library only.
"""

from __future__ import annotations

import struct

from yonos_trt.images.exif import Directory, Entry

_SCALE, _TIE_POINTS, _MATRIX, _KEYS, _DOUBLES, _ASCII = 33550, 33922, 34264, 34735, 34736, 34737
GEO_TAGS = frozenset((_SCALE, _TIE_POINTS, _MATRIX, _KEYS, _DOUBLES, _ASCII))
"""Tags of a first directory that belong to a georeference."""

_DOUBLE, _SHORT = 12, 3
_RASTER_TYPE, _POINT = 1025, 2


def _doubles(entry: Entry, order: str) -> list[float]:
    return list(struct.unpack(f"{order}{len(entry.raw) // 8}d", entry.raw))


def is_georeference(directory: Directory, order: str) -> bool:
    """True if the tags are all of the types and counts that ``grown_georeference`` understands."""
    counts = {_SCALE: lambda n: n == 3, _TIE_POINTS: lambda n: n % 6 == 0, _MATRIX: lambda n: n == 16}
    given = {tag: directory[tag] for tag in counts if tag in directory}
    well = all(entry.kind == _DOUBLE and counts[tag](entry.count) for tag, entry in given.items())
    keys = directory.get(_KEYS)
    return bool(given) and well and keys is not None and keys.kind == _SHORT and len(keys.raw) % 8 == 0


def grown_georeference(directory: Directory, order: str, scale_x: float, scale_y: float) -> Directory:
    """Return the directory with a georeference for pixels that are smaller by the two factors."""
    if not GEO_TAGS & directory.keys():
        return directory
    keys = directory[_KEYS].numbers(order)
    are_points = any(keys[at] == _RASTER_TYPE and keys[at + 3] == _POINT for at in range(4, len(keys), 4))
    shift = 0.5 if are_points else 0.0
    new = dict(directory)

    def put(tag: int, values: list[float]) -> None:
        new[tag] = Entry(_DOUBLE, struct.pack(f"{order}{len(values)}d", *values))

    if _SCALE in directory:
        x, y, z = _doubles(directory[_SCALE], order)
        put(_SCALE, [x / scale_x, y / scale_y, z])
    if _TIE_POINTS in directory:
        values = _doubles(directory[_TIE_POINTS], order)
        for at in range(0, len(values), 6):
            values[at] = (values[at] + shift) * scale_x - shift
            values[at + 1] = (values[at + 1] + shift) * scale_y - shift
        put(_TIE_POINTS, values)
    if _MATRIX in directory:
        m = _doubles(directory[_MATRIX], order)
        for row in range(0, 12, 4):
            a, b = m[row], m[row + 1]
            m[row + 3] += shift * (a * (1 / scale_x - 1) + b * (1 / scale_y - 1))
            m[row], m[row + 1] = a / scale_x, b / scale_y
        put(_MATRIX, m)
    return new
