"""The tables that say when and where the samples of an MP4 or MOV track are, against each other.

Each of them counts the samples in its own way, and three headers state how long they take together: a number
that changed in one no longer fits the others. ISO/IEC 14496-12, 8.2 to 8.7.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from yonos_trt.video.ebml_structure import Broken

#: the boxes of a track that are compared
TABLES = {
    b"tkhd",
    b"elst",
    b"mdhd",
    b"hdlr",
    b"stsd",
    b"stts",
    b"ctts",
    b"stsc",
    b"stsz",
    b"stco",
    b"co64",
    b"stss",
}

Table = NDArray[np.int64]

_UNKNOWN = (0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # durations

_FEW, _MOVED = 8, 3  # frames; distances that one moved frame changes
_REORDERED = 17  # frames between decoding and showing at most


def movie_scale(mvhd: bytes) -> int:
    """Return the units a second of the movie's header, in which edits and track headers count."""
    return int.from_bytes(mvhd[20:24] if mvhd[0] else mvhd[12:16], "big")


def check_track(boxes: dict[bytes, bytes], movie: int) -> list[tuple[int, int]]:
    """Compare the tables of a track with each other; those of a fragmented file are empty.

    Parameters
    ----------
    boxes
        The contents of the ``TABLES`` that are there.
    movie
        Units a second of the movie.

    Returns
    -------
    list of tuple
        Where every chunk begins and ends in the file; empty where all samples have one size.

    Raises
    ------
    Broken
        Names the first two that contradict each other.
    """
    if not {b"stts", b"stsz", b"stsc", b"mdhd"} <= boxes.keys():
        return []
    uniform, count = (int.from_bytes(boxes[b"stsz"][k : k + 4], "big") for k in (4, 8))
    sizes = None if uniform else _table(boxes, b"stsz", 1, at=8)[:, 0]
    if uniform and len(boxes[b"stsz"]) != 12:
        raise Broken("its table of sizes (stsz) has one size for all samples, and a list")
    if not count:
        return []
    times = _table(boxes, b"stts", 2)
    _same(count, int(times[:, 0].sum()), "stts")
    shifts = np.zeros((0, 2), np.int64)
    if b"ctts" in boxes:
        shifts = _table(boxes, b"ctts", 2)
        _same(count, int(shifts[:, 0].sum()), "ctts")
    offsets, chunks = _chunks(boxes)
    _same(count, int(chunks.sum()), "stsc")
    places = []
    if sizes is not None and chunks.all():
        ends = offsets + np.add.reduceat(sizes, np.cumsum(chunks) - chunks)
        places = list(zip(offsets.tolist(), ends.tolist(), strict=True))
    if b"stss" in boxes:
        keys = _table(boxes, b"stss", 1)[:, 0]
        if len(keys) and (keys[0] < 1 or keys[-1] > count or (np.diff(keys) < 1).any()):
            raise Broken("its table of key frames (stss) is damaged")
    if boxes.get(b"hdlr", b"")[8:12] == b"vide":
        _check_durations(boxes, times, shifts, _check_order(times, shifts), movie)
    return places


def check_places(chunks: list[tuple[int, int]], media: list[tuple[int, int]]) -> None:
    """Check that chunks lie within the media data and do not overlap; the same chunk may be used twice.

    Parameters
    ----------
    chunks, media
        (begin, end) of all tracks' chunks, and of the contents of ``mdat`` boxes.
    """
    bounds = sorted(media)
    places = sorted({(begin, end) for begin, end in chunks if begin < end})
    for (begin, end), after in itertools.zip_longest(places, places[1:]):
        if not any(first <= begin and end <= last for first, last in bounds):
            raise Broken(f"its tables name samples from byte {begin} to {end}, outside of its media data")
        if after is not None and end > after[0]:
            raise Broken(f"its tables contradict each other: the chunks at {begin} and {after[0]} overlap")


def _check_order(times: Table, shifts: Table) -> int:
    """Check that no two frames are shown at once and, if they come at one distance, are shown at it.

    One frame whose time changed is at another distance from those before and behind itself, or shown at
    another's time. Many other distances are a clip of that kind; frames that are missing are none, as where a
    clip was cut in the order of decoding. Returns how long it takes from the first sample on: leading
    pictures of an open GOP are shown before that.
    """
    lengths = np.repeat(times[:, 1], times[:, 0])
    starts = lengths.cumsum() - lengths
    late = np.zeros(len(starts), np.int64)
    if len(shifts):
        late += np.repeat(shifts[:, 1].astype(np.int32), shifts[:, 0])
    starts += late
    shown, beat = np.sort(starts), max(1, int(times[:, 1].max()))
    distances = np.diff(shown)
    odd = np.full(len(distances), np.ptp(late) > _REORDERED * beat)
    if len(shown) > _FEW and times[0, 0] >= len(shown) - 1:  # a regular clip
        beat = max(1, int(times[0, 1]))
        odd |= distances % beat != 0
        latest, next_to_it = np.sort(late)[:-3:-1]
        odd |= (distances > beat).any() and latest - next_to_it > 4 * beat  # it has left a hole
    odd |= (distances == 0) & ((distances == 0).sum() == 1)
    if odd.sum() > 0 and (odd.sum() <= _MOVED or odd.all()):
        raise Broken(f"its times contradict each other at its frame {int(np.argmax(odd)) + 1} (stts, ctts)")
    return int(shown[-1] - starts[0] + lengths[-1])


def _table(boxes: dict[bytes, bytes], name: bytes, columns: int, *, at: int = 4, width: int = 4) -> Table:
    """Return the rows of a table, behind its count at `at`."""
    data = boxes[name]
    rows = int.from_bytes(data[at : at + 4], "big")
    if at + 4 + rows * columns * width != len(data):
        raise Broken(f"its table {name.decode()!r} declares {rows} entries, and has not the size of those")
    return np.frombuffer(data, f">u{width}", rows * columns, at + 4).astype(np.int64).reshape(-1, columns)


def _same(count: int, found: int, name: str) -> None:
    if count != found:
        raise Broken(f"its tables contradict each other: 'stsz' has {count} samples, {name!r} has {found}")


def _chunks(boxes: dict[bytes, bytes]) -> tuple[Table, Table]:
    """Return where each chunk is, and how many samples it has."""
    wide = b"co64" in boxes
    offsets = _table(boxes, b"co64" if wide else b"stco", 1, width=8 if wide else 4)
    runs = _table(boxes, b"stsc", 3)
    first = runs[:, 0]
    kinds = int.from_bytes(boxes.get(b"stsd", b"\xff" * 8)[4:8], "big")
    if runs[:, 2].min(initial=1) < 1 or runs[:, 2].max(initial=1) > kinds:
        raise Broken("its table of chunks (stsc) names a coding that is not there")
    if not len(runs) or first[0] != 1 or (np.diff(first) < 1).any() or first[-1] > len(offsets):
        raise Broken("its table of chunks (stsc) is damaged")
    return offsets[:, 0], np.repeat(runs[:, 1], np.diff(np.append(first, len(offsets) + 1)))


def _check_durations(
    boxes: dict[bytes, bytes], times: Table, shifts: Table, from_first: int, movie: int
) -> None:
    """Compare the sum of all samples' durations with the headers; trimmed tracks show less, none shows more.

    Writers round differently, and some leave the last sample out: a sample's duration is the tolerance.
    """
    mdhd = boxes[b"mdhd"]
    scale, declared = _numbers(mdhd, 20, 12)
    usual = int(times[np.argmax(times[:, 0]), 1])
    total = int((times[:, 0] * times[:, 1]).sum())
    tolerance = usual
    if declared not in _UNKNOWN and min(abs(declared - took) for took in (total, from_first)) > tolerance:
        raise Broken(
            f"its times contradict each other: the samples take {total} units, its header says {declared}"
        )
    if not movie or not scale or b"tkhd" not in boxes:
        return
    _, shown = _numbers(boxes[b"tkhd"], 24, 16)
    edits = _edits(boxes)
    unit = Fraction(scale, movie)
    latest = total + (int(shifts[:, 1].astype(np.int32).max()) if len(shifts) else 0)
    planned = Fraction(sum(length for length, _ in edits))
    slack = tolerance / unit + len(edits)
    if not planned:
        planned = Fraction(min(total, from_first)) / unit
        slack += Fraction(abs(total - from_first)) / unit
    if shown not in _UNKNOWN and planned and abs(shown - planned) > slack:
        raise Broken(f"its times contradict each other: its track header says {shown}, its edits {planned}")
    for length, start in edits:
        if start >= 0 and start + length * unit > latest + tolerance:
            raise Broken(
                f"its edit list shows what is not there: units {start} to {float(start + length * unit):.0f} "
                f"of {latest}"
            )


def _numbers(box: bytes, wide_at: int, at: int) -> tuple[int, int]:
    """Return the 32-bit number there and the duration behind it; a track header has a gap for the first."""
    if box[0]:
        return int.from_bytes(box[wide_at : wide_at + 4], "big"), int.from_bytes(
            box[wide_at + 4 : wide_at + 12], "big"
        )
    return int.from_bytes(box[at : at + 4], "big"), int.from_bytes(box[at + 4 : at + 8], "big")


def _edits(boxes: dict[bytes, bytes]) -> list[tuple[int, int]]:
    """Return (duration in units of the movie, first time in units of the track or -1) of every edit."""
    data = boxes.get(b"elst", bytes(8))
    rows = int.from_bytes(data[4:8], "big")
    width = 20 if data[0] else 12
    if 8 + rows * width != len(data):
        raise Broken(f"its table 'elst' declares {rows} entries, and has not the size of those")
    half = (width - 4) // 2
    found = []
    for at in range(8, len(data), width):
        start = int(np.frombuffer(data, f">i{half}", 1, at + half)[0])
        found.append((int.from_bytes(data[at : at + half], "big"), start))
    return found
