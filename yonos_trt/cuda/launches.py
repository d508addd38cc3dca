"""One dataclass per kernel of csrc/tiles_abi.h: the only list of its arguments on the Python side.

Fields stand in the order of the C function; `Launch.signature` makes the ctypes declaration of them and
`Launch.arguments` the call, so a kernel that is added here can be launched, declared and simulated. All
addresses are on the device. A test compares the declarations with the header.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

Address: TypeAlias = int
Int64: TypeAlias = int
Seed: TypeAlias = int
Dtype: TypeAlias = str

_KINDS = {"uint8": 0, "uint16": 1, "float32": 2}

# Name of a field's type -> its C arguments. Annotations are strings here (PEP 563): aliases keep their names.
_int, _i64, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_CTYPES: dict[str, tuple[Any, ...]] = {
    "Address": (_pointer,),
    "int": (_int,),
    "bool": (_int,),
    "Int64": (_i64,),
    "Seed": (ctypes.c_uint64,),
    "Dtype": (_int,),
    "DevicePicture": (_pointer, _int, _int, _int, _i64),
}


@dataclass(frozen=True, slots=True)
class DevicePicture:
    """An (H, W, 3) picture in device memory that somebody else owns."""

    address: int
    height: int
    width: int
    dtype: str
    """uint8, uint16 or float32."""
    pitch_bytes: int
    """From one row to the next."""


class Launch:
    """One launch of a kernel, without the stream."""

    __slots__ = ()
    name: ClassVar[str]
    """The C function without its prefix."""

    @classmethod
    def signature(cls) -> tuple[Any, ...]:
        """The C function's argument types, the stream included."""
        described: Any = cls
        return (*(c for f in fields(described) for c in _CTYPES[f.type]), _pointer)  # type: ignore[index]

    def arguments(self) -> tuple[int | None, ...]:
        """The C function's arguments, without the stream; the address 0 is a null pointer."""
        values: list[int | None] = []
        described: Any = self
        for field in fields(described):
            value = getattr(self, field.name)
            if field.type == "DevicePicture":
                values += (value.address, _KINDS[value.dtype], value.height, value.width, value.pitch_bytes)
            elif field.type == "Dtype":
                values.append(_KINDS[value])
            else:
                values.append(None if field.type == "Address" and value == 0 else int(value))
        return tuple(values)


@dataclass(frozen=True, slots=True)
class Gather(Launch):
    """Cut `count` tiles out of the bicubic enlargement: (count, 3, tile_h_px, tile_w_px).

    `origins` are int64 ys (count,) followed by xs (count,), in canvas px. With `lr` the tiles come from the
    picture itself, on the LR grid.
    """

    name = "gather"
    picture: DevicePicture
    origins: Address
    out: Address
    count: int
    tile_h_px: int
    tile_w_px: int
    scale: int
    lr: bool
    half: bool


@dataclass(frozen=True, slots=True)
class Noise(Launch):
    """Write the global noise field under the tiles, (count, channels, h_lat, w_lat)."""

    name = "noise"
    seed: Seed
    origins: Address
    out: Address
    count: int
    channels: int
    factor: int
    h_lat: int
    w_lat: int
    half: bool


@dataclass(frozen=True, slots=True)
class Check(Launch):
    """Set flags (count,) int32 to 1 where a tile of `items` numbers has NaN or infinity, else to 0."""

    name = "check"
    tiles: Address
    flags: Address
    count: int
    items: Int64
    half: bool


@dataclass(frozen=True, slots=True)
class Blend(Launch):
    """Add `count` tiles to the float32 canvas (canvas_h_px, canvas_w_px, 3) in index order.

    rows, columns (count,) int64 are the tiles' places on the canvas, weights (count, tile_h_px) and (count,
    tile_w_px) float32. A tile whose int32 flag in `skip` is not 0 is left out. Only the canvas columns
    [first_px, first_px + span_px) are worked on: those that the tiles cover.
    """

    name = "blend"
    canvas: Address
    tiles: Address
    rows: Address
    columns: Address
    weights_y: Address
    weights_x: Address
    skip: Address
    count: int
    tile_h_px: int
    tile_w_px: int
    canvas_h_px: int
    canvas_w_px: int
    first_px: int
    span_px: int
    half: bool


@dataclass(frozen=True, slots=True)
class ColorCells(Launch):
    """Write grid rows [first, last): each cell's mean of the bicubic picture minus its mean of the canvas.

    `canvas` is canvas row 8 * first, rows are canvas_w_px wide; taps as in
    `yonos_trt.tiles.color_cells.CellTaps`. Grid row g of `out` (ring, columns, 3) lies at g % ring.
    """

    name = "color_cells"
    canvas: Address
    canvas_w_px: int
    picture: DevicePicture
    base_y: Address
    weight_y: Address
    taps_y: int
    base_x: Address
    weight_x: Address
    taps_x: int
    out: Address
    ring: int
    first: int
    last: int
    height_px: int
    width_px: int


@dataclass(frozen=True, slots=True)
class ColorBlur(Launch):
    """Blur grid rows [first, last) of `rows` along one axis; both buffers are rings as in `ColorCells`."""

    name = "color_blur"
    source: Address
    out: Address
    along_y: bool
    ring: int
    rows: int
    columns: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Moments(Launch):
    """Write float64 (cells, 6): each cell's sums and sums of squares of rows (height_px, width_px, 3)."""

    name = "moments"
    rows: Address
    out: Address
    height_px: int
    width_px: int


@dataclass(frozen=True, slots=True)
class BicubicMoments(Launch):
    """The same of the picture's bicubic enlargement, in [-1, 1]."""

    name = "bicubic_moments"
    picture: DevicePicture
    out: Address
    scale: int


@dataclass(frozen=True, slots=True)
class Fold(Launch):
    """Add up neighbours among `count` partial sums, 64 at a time: (count, 6) -> (ceil(count / 64), 6)."""

    name = "fold"
    parts: Address
    out: Address
    count: Int64


@dataclass(frozen=True, slots=True)
class Affine(Launch):
    """Write three gains and three offsets, float32, as `yonos_trt.tiles.color_cells.affine` does."""

    name = "affine"
    wanted: Address
    ours: Address
    count: Int64
    out: Address


@dataclass(frozen=True, slots=True)
class Finish(Launch):
    """Fix the colours of canvas rows, clamp, round and pack them: (rows, width_px, 3) of `dtype`.

    The first row is canvas row `y0_px`; rows of `acc` are acc_w_px wide. With a `grid` the lines between its
    cells are added, with an `affine` its gains and offsets are applied; one of them at most is not 0.
    """

    name = "finish"
    acc: Address
    acc_w_px: int
    out: Address
    dtype: Dtype
    rows: int
    width_px: int
    y0_px: int = 0
    grid: Address = 0
    grid_rows: int = 0
    ring: int = 0
    affine: Address = 0


LAUNCHES: tuple[type[Launch], ...] = (
    Gather,
    Noise,
    Check,
    Blend,
    ColorCells,
    ColorBlur,
    Moments,
    BicubicMoments,
    Fold,
    Affine,
    Finish,
)

SIGNATURES: dict[str, tuple[Any, ...]] = {f"yonos_{kind.name}": kind.signature() for kind in LAUNCHES}
"""C function -> argument types."""


def declare(library: Any) -> Any:
    """Tell ctypes the argument types of a library with the C interface; returns it.

    Raises
    ------
    AttributeError
        A function is missing.
    """
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _int
    library.yonos_open.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, _int)
    library.yonos_open.restype = _int
    return library
