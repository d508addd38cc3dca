"""How pixel formats store their samples, by FFmpeg's names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yonos_trt.errors import InputError


@dataclass(frozen=True, slots=True)
class Layout:
    """How a pixel format stores its samples."""

    name: str  # FFmpeg's name of a planar format
    kind: str  # "yuv", "gray" or "rgb" (planes in the order G, B, R)
    bits: int  # significant bits a sample, in the low bits of a byte or little-endian word
    sub_h: int = 1  # luma rows a chroma row
    sub_w: int = 1  # luma columns a chroma column

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Type of a stored sample."""
        return np.uint8 if self.bits == 8 else np.uint16


def _layouts() -> dict[str, Layout]:
    found = {"gray": Layout("gray", "gray", 8), "gbrp": Layout("gbrp", "rgb", 8)}
    subsampling = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}
    for name, (sub_h, sub_w) in subsampling.items():
        found[f"yuv{name}p"] = Layout(f"yuv{name}p", "yuv", 8, sub_h, sub_w)
        for bits in (9, 10, 12, 14, 16):
            full = f"yuv{name}p{bits}le"
            found[full] = Layout(full, "yuv", bits, sub_h, sub_w)
    for bits in (9, 10, 12, 14, 16):
        found[f"gray{bits}le"] = Layout(f"gray{bits}le", "gray", bits)
        found[f"gbrp{bits}le"] = Layout(f"gbrp{bits}le", "rgb", bits)
    return found


LAYOUTS = _layouts()

#: Formats that hold the same samples in another arrangement: FFmpeg repacks them without arithmetic.
REPACKED = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "nv24": "yuv444p",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "p010le": "yuv420p10le",
    "p210le": "yuv422p10le",
    "p410le": "yuv444p10le",
    "y210le": "yuv422p10le",
    "rgb24": "gbrp",
    "bgr24": "gbrp",
    "rgb0": "gbrp",
    "bgr0": "gbrp",
    "rgb48le": "gbrp16le",
    "rgb48be": "gbrp16le",
    "gray16be": "gray16le",
}

#: Other names of the same planes; the j says "full range".
ALIASES = {"yuvj420p": "yuv420p", "yuvj422p": "yuv422p", "yuvj444p": "yuv444p"}


def _with_alpha() -> dict[str, str]:
    found = dict.fromkeys(("rgba", "bgra", "argb", "abgr", "gbrap"), "gbrp")
    found |= dict.fromkeys(("rgba64le", "rgba64be", "gbrap16le"), "gbrp16le")
    found |= {"gbrap10le": "gbrp10le", "gbrap12le": "gbrp12le", "ya8": "gray", "ya16le": "gray16le"}
    found["ya16be"] = "gray16le"
    for chroma in ("420", "422", "444"):
        for depth in ("", "9le", "10le", "12le", "16le"):
            if f"yuv{chroma}p{depth}" in LAYOUTS:
                found[f"yuva{chroma}p{depth}"] = f"yuv{chroma}p{depth}"
    return found


#: Formats with an alpha channel, by the layout of their colours: read where every pixel is opaque.
WITH_ALPHA = _with_alpha()


def layout_of(pix_fmt: str) -> Layout:
    """Return the planar layout whose samples are those of ``pix_fmt``.

    Raises
    ------
    InputError
        The format is not one of the 8- to 16-bit grey, 4:2:0, 4:2:2, 4:4:4 or RGB formats handled here.
    """
    layout = LAYOUTS.get(REPACKED.get(pix_fmt, ALIASES.get(pix_fmt, pix_fmt)))
    if layout is None:
        alpha = " (it has an alpha channel, which no output here could keep)" if "a" in pix_fmt[3:5] else ""
        raise InputError(
            f"pixel format {pix_fmt} is not supported{alpha}: expected 8- to 16-bit 4:2:0, 4:2:2, 4:4:4, "
            f"grey or RGB; convert it first, for example: ffmpeg -i IN -pix_fmt yuv444p10le -c:v ffv1 OUT.mkv"
        )
    return layout
