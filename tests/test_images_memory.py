"""Reading takes memory in proportion to the declared pixels, and says so when there is not enough."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yonos_trt.images import from_array, write_image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")

HEIGHT, WIDTH = 1000, 1200
# Bytes a pixel, as docs/images.md states them.
MOST = {"8 bit": 32, "16 bit": 48, "float": 64}
SPARE = 64 << 20  # threads, buffers and libraries, whatever the size

CHILD = """
import json, resource, sys
from yonos_trt.errors import InputError, OutOfMemoryError
from yonos_trt.images import read_image

small, large, *limits = sys.argv[1:]
read_image(small)  # libraries are loaded
status = [line.split() for line in open("/proc/self/status")]
(now,) = (int(words[1]) << 10 for words in status if words[0] == "VmSize:")
_, hard = resource.getrlimit(resource.RLIMIT_AS)
said = []
for limit in limits:
    resource.setrlimit(resource.RLIMIT_AS, (now + int(limit), hard))
    try:
        read_image(large)
        said.append("read")
    except OutOfMemoryError:
        said.append("memory")
    except InputError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def picture(kind: str, height: int, width: int) -> bytes:
    """A smooth picture of the kind; those with alpha hide a fifth of their pixels."""
    y, x = np.mgrid[:height, :width]
    rgb = np.dstack([x + y, x // 2 + y, x + y // 3]).astype(np.uint8)
    alpha = np.where((x + y) % 97 < 20, 0, 255).astype(np.uint8)
    rgba = np.dstack([rgb, alpha])
    format_, _, what = kind.partition(" ")
    pixels = {"alpha": rgba, "grey": rgb[..., 0], "grey alpha": rgba[..., 2:]}.get(what, rgb)
    out = io.BytesIO()
    if "16" in what or "float" in what:
        deep = (rgba if "alpha" in what else rgb).astype(np.uint16) * np.uint16(257)
        if "float" in what:
            deep = deep.astype(np.float32) / 65535
        tifffile = pytest.importorskip("tifffile")
        extra = ["assocalpha" if "premultiplied" in what else "unassalpha"] if "alpha" in what else None
        tifffile.imwrite(out, deep, photometric="rgb", extrasamples=extra, compression="zlib")
        return out.getvalue()
    image = Image.fromarray(pixels)
    if what in ("P", "1", "CMYK"):
        image = image.convert(what)
    image.save(out, format_, **({"progressive": True} if what == "progressive" else {}))
    return out.getvalue()


def run(tmp_path: Path, kind: str, *limits: int) -> list[str]:
    """What reading the picture gives under each limit of further memory, in a process of its own."""
    for name, height, width in (("small", 16, 24), ("large", HEIGHT, WIDTH)):
        path = tmp_path / name
        if kind.startswith("PNG 16"):
            path = path.with_suffix(".png")
            pixels = np.zeros((height, width, 4 if "alpha" in kind else 3), np.uint16)
            pixels[::3] = 40_000
            write_image(from_array(pixels), path)
            path.rename(tmp_path / name)
        else:
            path.write_bytes(picture(kind, height, width))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "small", tmp_path / "large", *map(str, limits)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)  # type: ignore[no-any-return]


EIGHT_BIT = ["PNG", "PNG alpha", "PNG grey", "PNG grey alpha", "PNG P", "PNG 1", "JPEG", "JPEG progressive",
             "JPEG CMYK", "WEBP", "WEBP alpha", "AVIF", "AVIF alpha", "GIF P", "BMP", "TIFF", "TIFF alpha",
             "TIFF CMYK"]  # fmt: skip
SIXTEEN_BIT = ["PNG 16 bit", "PNG 16 bit alpha", "TIFF 16 bit", "TIFF 16 bit alpha",
               "TIFF 16 bit premultiplied alpha"]  # fmt: skip
FLOATS = ["TIFF float", "TIFF float alpha", "TIFF float premultiplied alpha"]


@pytest.mark.parametrize("kind", [*EIGHT_BIT, *SIXTEEN_BIT, *FLOATS])
def test_reading_takes_the_stated_bytes_a_pixel_and_says_when_there_are_less(
    tmp_path: Path, kind: str
) -> None:
    depth = "float" if "float" in kind else "16 bit" if "16" in kind else "8 bit"
    enough = MOST[depth] * HEIGHT * WIDTH + SPARE
    *less, last = run(tmp_path, kind, 1 << 20, 3 << 20, 6 << 20, 10 << 20, enough)
    assert set(less) <= {"read", "memory"}, less
    assert less[0] == "memory"
    assert last == "read"
