"""The demo: the committed picture, and the script that sets bicubic and ours side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_example_picture_names_its_source_and_licence() -> None:
    text = (EXAMPLES / "SOURCES.md").read_text()
    for path in EXAMPLES.glob("*.png"):
        assert path.name in text
        assert path.stat().st_size < 200_000
    assert "CC0" in text


def test_the_comparison_shows_bicubic_left_and_ours_right(tmp_path: Path) -> None:
    with Image.open(EXAMPLES / "chelsea.png") as small:
        size = (small.width * 2, small.height * 2)
        bicubic = small.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "ours.png")
    arguments = [EXAMPLES / "chelsea.png", tmp_path / "ours.png", tmp_path / "both.png"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "compare.py"), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "bicubic | ours" in done.stdout
    with Image.open(tmp_path / "both.png") as both:
        assert both.width == 2 * size[0] + 8
        assert both.crop((0, 28, size[0], 28 + size[1])).tobytes() == bicubic.tobytes()
        assert both.getpixel((size[0] + 20, 40)) == (255, 0, 0)


def test_examples_and_benchmarks_open_pictures_through_the_one_reader() -> None:
    """Pillow alone takes any format, and pictures of any size."""
    root = EXAMPLES.parent
    own = {"benchmarks/studies/contact_sheet.py"}  # what it has just encoded
    files = [*EXAMPLES.rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    found = {path.relative_to(root).as_posix() for path in files if "Image.open(" in path.read_text()}
    assert found == own
