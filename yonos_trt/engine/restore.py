"""The dial between a model that keeps every grain (0) and one that cleans and sharpens (1).

Both were trained from the same weights, so that what lies between them works as well (network interpolation,
Wang et al. 2018, "ESRGAN", section 3.4). An engine directory has the graph of 0 and, beside it, a *dial file*
with the differences of 1 to it: a NumPy archive (``.npz``) of

    places  (K, 2) int64     first byte, and number of float32 values, of each run of weights in the graph
    change  (sum,) float16   their differences, one run after the other

`turned` adds ``restore`` times the differences to the bytes of the graph. Nothing is parsed, so it serves
every runtime that reads the graph, and 0 is the graph itself, bit for bit.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from yonos_trt.choices import is_number
from yonos_trt.engine.schema import EngineManifest
from yonos_trt.errors import ConfigError, EngineIntegrityError


def check_restore(restore: float) -> float:
    """Return ``restore`` as a float.

    Raises
    ------
    ConfigError
        It is not a number from 0 to 1.
    """
    if not is_number(restore) or not 0.0 <= restore <= 1.0:
        raise ConfigError(
            f"restore is {restore!r}, expected a number from 0 (keep every grain) to 1 (clean and sharpen)"
        )
    return float(restore)


def dial_of(manifest: EngineManifest, restore: float | None) -> float | None:
    """Return where the model's dial stands: ``restore``, its default, or None where it has no dial.

    Raises
    ------
    ConfigError
        ``restore`` is given and the model has no dial, or it is out of range.
    """
    default = manifest.model.restore
    if restore is None:
        return default
    if default is None:
        raise ConfigError(
            f"restore is {restore}, but {manifest.model.name} has no dial; leave restore out, or take a "
            "model that was exported with one (yonos-export --restored)"
        )
    return check_restore(restore)


def turned(graph: bytes, dial: bytes, restore: float, *, name: str) -> bytes:
    """Return the graph's bytes with its weights moved by ``restore`` towards those of the dial file.

    Parameters
    ----------
    graph, dial
        Contents of the two files; their hashes are the caller's to check.
    restore
        0 to 1; 0 returns ``graph``.
    name
        Of the dial file, for errors.

    Raises
    ------
    ConfigError
        ``restore`` is out of range.
    EngineIntegrityError
        The dial file does not belong to this graph.
    """
    restore = check_restore(restore)
    if restore == 0.0:
        return graph
    places, change = _read(dial, name)
    out = bytearray(graph)
    position = 0
    for first, count in places.tolist():
        if first < 0 or count < 1 or first + 4 * count > len(out) or position + count > len(change):
            raise EngineIntegrityError(f"{name} names weights outside its graph; export the model again")
        weights = np.frombuffer(out, "<f4", count, first)
        with np.errstate(all="ignore"):  # what is not finite is found in the tiles, with the network's name
            weights += np.float32(restore) * change[position : position + count]
        position += count
    if position != len(change):
        raise EngineIntegrityError(f"{name} holds more weights than it names; export the model again")
    return bytes(out)


def dial_file(places: NDArray[np.int64], change: NDArray[np.float16]) -> bytes:
    """Return the contents of a dial file, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, places=places, change=change)
    return buffer.getvalue()


def _read(dial: bytes, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    try:
        with np.load(io.BytesIO(dial), allow_pickle=False) as archive:
            places, change = archive["places"], archive["change"]
    except Exception as error:  # zipfile, zlib and NumPy's readers have a dozen kinds for what is damaged
        raise EngineIntegrityError(f"{name} is not a dial file ({error}); export the model again") from error
    fits = places.dtype == np.int64 and places.shape[1:] == (2,) and places.ndim == 2
    if not fits or change.dtype != np.float16 or change.ndim != 1:
        raise EngineIntegrityError(f"{name} is not a dial file; export the model again")
    return places, change.astype(np.float32)
