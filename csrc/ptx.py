"""Write yonos_trt/cuda/tiles.ptx, the tile kernels for every GPU from compute capability 7.5 up.

    python csrc/ptx.py            # needs nvcc and ptxas of the CUDA toolkit 13.0
    python csrc/ptx.py --check    # exit code 1 if the file in the checkout comes from other sources

The file is kept in the repository, so that building needs no nvcc: a wheel of NVRTC would be 100 MB for
everybody who installs from source. Its first line is the SHA-256 of the sources it was made from. nvcc 13.0
writes PTX version 9.0, which only drivers of CUDA 13 read; nothing in it is newer than version 8.0 (CUDA
12.0, driver 525), so it says 8.0 here, and ptxas, which knows what each version lacks, is asked.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "yonos_trt" / "cuda" / "tiles.ptx"
SOURCES = ("tiles.cu", "tiles_kernels.h", "tiles_grid.h", "tiles_color.h", "tile_math.h")
FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-arch=compute_75", "-ptx")
VERSION = "8.0"


def digest() -> str:
    """Return the SHA-256 over the sources, in order, and how they are compiled."""
    total = hashlib.sha256(" ".join((*FLAGS, VERSION)).encode())
    for name in SOURCES:
        total.update((HERE / name).read_bytes())
    return total.hexdigest()


def compiled() -> str:
    """Return the PTX of the sources, without the compiler's comments.

    Raises
    ------
    subprocess.CalledProcessError
        The sources do not compile, or ptxas says that they need a newer PTX version.
    """
    command = ["nvcc", *FLAGS, str(HERE / "tiles.cu"), "-o", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = re.sub(r"^\.version .*$", f".version {VERSION}", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"\s*//.*$", "", text, flags=re.MULTILINE).lstrip()
    text = f"// sources {digest()}\n{text}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiles.ptx"
        path.write_text(text)
        subprocess.run(["ptxas", "-arch=sm_75", str(path), "-o", str(path.with_suffix(".cubin"))], check=True)
    return text


def main() -> int:
    """Write the file, or say whether it is up to date."""
    if "--check" in sys.argv[1:]:
        return int(TARGET.read_text().split("\n", 1)[0] != f"// sources {digest()}")
    TARGET.write_text(compiled())
    return 0


if __name__ == "__main__":
    sys.exit(main())
