"""An ONNX graph with its weights, all of it bytes whose hashes the manifest names.

A graph may keep tensors in other files and name them by path; run times then open those paths by themselves.
`read_graph` reads every such file once, checks it, and hands out the bytes that were checked, so that no path
is opened again. It knows of ONNX's protobuf messages only which of them can hold a tensor.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yonos_trt.engine.manifest import MANIFEST_NAME, Artifact, FileRecord, read_file
from yonos_trt.engine.restore import turned
from yonos_trt.engine.schema import REBUILD
from yonos_trt.errors import EngineIntegrityError

LARGEST_MODEL_BYTES = (1 << 31) - 1
"""What protobuf reads as one message."""

# onnx.proto: message -> field number -> message of that field, for all that lead to a tensor.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {},
}
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14  # of a tensor
_OP_TYPE = 4  # of a node
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_DEEPEST = 100  # as protobuf


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was read and checked.

    Attributes
    ----------
    path : Path
        Where it was, for messages.
    model : bytes
        The file.
    external : dict of str to bytes
        Contents of the other files, by the names that the graph uses.
    """

    path: Path
    model: bytes
    external: dict[str, bytes]

    @property
    def nbytes(self) -> int:
        """Size with all external data."""
        return len(self.model) + sum(map(len, self.external.values()))

    def inlined(self) -> bytes:
        """Return the graph as one message that names no other file.

        Raises
        ------
        EngineIntegrityError
            It would be larger than `LARGEST_MODEL_BYTES`, or a tensor lies outside of its file.
        """
        if not self.external:
            return self.model
        if self.nbytes > LARGEST_MODEL_BYTES:
            raise EngineIntegrityError(
                f"{self.path} has {self.nbytes >> 20} MiB with external data, this run time takes at most "
                f"{LARGEST_MODEL_BYTES >> 20} MiB at once; use runtime='onnx', or export in fp16"
            )
        try:
            parts = _inlined(memoryview(self.model), "model", self.external)
        except ValueError as error:
            raise _damaged(self.path, error) from error
        return self.model if parts is None else b"".join(parts)


def read_graph(
    engine_dir: str | os.PathLike[str], artifact: Artifact, *, restore: float | None = None
) -> Graph:
    """Read an ONNX artifact and its external data; every byte that comes back was hashed.

    Parameters
    ----------
    restore
        Where the dial of the artifact stands, 0 to 1; None or no dial: the graph as it is.

    Raises
    ------
    ManifestError
        A path leaves the directory.
    EngineIntegrityError
        A file is missing, truncated, altered or no ONNX graph, or the graph names a file that is not listed
        with it.
    """
    record = FileRecord(file=artifact.file, sha256=artifact.sha256, bytes=artifact.bytes)
    model, path = read_file(engine_dir, record), Path(engine_dir) / artifact.file
    if restore and artifact.dial is not None:
        model = turned(model, read_file(engine_dir, artifact.dial), restore, name=artifact.dial.file)
    try:
        names = sorted(set(_locations(memoryview(model), "model")))
    except ValueError as error:
        raise _damaged(path, error) from error
    listed = {each.file: each for each in artifact.external}
    external = {}
    for name in names:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(artifact.file), name))
        if name.startswith("/") or file not in listed:
            raise EngineIntegrityError(
                f"{path} takes weights from {name!r}, which {MANIFEST_NAME} does not list as external data "
                f"of this artifact, so that nothing vouches for them; {REBUILD}"
            )
        external[name] = read_file(engine_dir, listed[file])
    return Graph(path, model, external)


def _damaged(path: Path, error: ValueError) -> EngineIntegrityError:
    return EngineIntegrityError(f"{path} is not an ONNX graph that can be read: {error}; {REBUILD}")


# ---------------------------------------------------------------------------------------------------------
# Messages


def _varint(view: memoryview, at: int, longest: int = 10) -> tuple[int, int]:
    value = 0
    for i in range(longest):
        if at + i >= len(view):
            break
        byte = view[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError(f"a number at byte {at} of a message has no end")


def _fields(view: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (field number, wire type, start, start of the value, end) of every field; numbers end with it."""
    at = 0
    while at < len(view):
        tag, value = _varint(view, at, 5)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            end = _varint(view, value)[1]
        elif wire == _BYTES:
            length, value = _varint(view, value)
            end = value + length
        elif wire in (_FIXED_64, _FIXED_32):
            end = value + (8 if wire == _FIXED_64 else 4)
        else:
            raise ValueError(f"wire type {wire} of field {number}")
        if end > len(view):
            raise ValueError(f"field {number} is cut")
        yield number, wire, at, value, end
        at = end


def _children(view: memoryview, kind: str) -> Iterator[tuple[int, str, int, int, int]]:
    """Yield (field number, message, start, start of the value, end) of what may hold a tensor."""
    for number, wire, start, value, end in _fields(view):
        child = _MESSAGES[kind].get(number)
        if child is not None and wire == _BYTES:
            yield number, child, start, value, end
        elif kind == "node" and number == _OP_TYPE and bytes(view[value:end]) == b"EPContext":
            raise ValueError(
                "its EPContext node runs a file of an execution provider that nothing vouches for"
            )


def _locations(view: memoryview, kind: str, depth: int = 0) -> Iterator[str]:
    """Yield the file of every external tensor."""
    if kind == "tensor":
        if (place := _external(view)) is not None:
            yield place[0]
        return
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} messages inside each other")
    for _, child, _, value, end in _children(view, kind):
        yield from _locations(view[value:end], child, depth + 1)


def _external(tensor: memoryview) -> tuple[str, int, int | None] | None:
    """Return file, offset and length of a tensor's data; None where they are inside it."""
    is_external, entries = False, {}
    for number, wire, _, value, end in _fields(tensor):
        if number == _DATA_LOCATION and wire == _VARINT:
            is_external |= _varint(tensor, value)[0] & 0xFFFFFFFF == 1
        elif number == _EXTERNAL_DATA and wire == _BYTES:
            entry = tensor[value:end]
            pair = {n: bytes(entry[v:e]).decode() for n, w, _, v, e in _fields(entry) if w == _BYTES}
            if pair.get(1, "") in entries:
                raise ValueError(f"a tensor with two values for {pair.get(1, '')!r}")
            entries[pair.get(1, "")] = pair.get(2, "")
    if not is_external:
        return None
    if not entries.get("location"):
        raise ValueError("an external tensor without a location")
    length = entries.get("length")
    return entries["location"], int(entries.get("offset", "0")), None if length is None else int(length)


def _inlined(view: memoryview, kind: str, files: dict[str, bytes]) -> list[bytes | memoryview] | None:
    """Return the message, in pieces, with the data of external tensors in it; None where it has none."""
    if kind == "tensor":
        return _with_data(view, files)
    pieces: list[bytes | memoryview] = []
    kept = 0
    for number, child, start, value, end in _children(view, kind):
        inner = _inlined(view[value:end], child, files)
        if inner is not None:
            pieces += [view[kept:start], _header(number, sum(map(len, inner))), *inner]
            kept = end
    return [*pieces, view[kept:]] if kept else None


def _with_data(tensor: memoryview, files: dict[str, bytes]) -> list[bytes | memoryview] | None:
    place = _external(tensor)
    if place is None:
        return None
    name, offset, length = place
    data = memoryview(files[name])
    end = len(data) if length is None else offset + length
    if not 0 <= offset <= end <= len(data):
        raise ValueError(f"a tensor at bytes {offset} to {end} of {name!r}, which has {len(data)}")
    dropped = (_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION)
    own = [tensor[start:stop] for number, _, start, _, stop in _fields(tensor) if number not in dropped]
    return [*own, _header(_RAW_DATA, end - offset), data[offset:end]]


def _header(number: int, length: int) -> bytes:
    """Return the tag and the length of a field of bytes."""
    out = bytearray()
    for value in (number << 3 | _BYTES, length):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)
