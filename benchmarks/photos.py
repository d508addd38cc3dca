"""Photographs for the report's sliders: they come with the package scikit-image, nothing of it is committed.

None of them is among the pictures the shipped models were trained on.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = "skimage"


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph and what has to be said beside it.

    Attributes
    ----------
    path : Path
        File; of a sample: its name in the package.
    title, credit : str
        Heading, and author, source and licence.
    """

    path: Path
    title: str
    credit: str = ""


# Authors and terms as the docstrings of skimage.data state them (scikit-image 0.26).
SAMPLES = (
    Photo(Path("chelsea.png"), "Cat", "Photograph by Stefan van der Walt, CC0; skimage.data.chelsea"),
    Photo(
        Path("astronaut.png"),
        "Portrait",
        "Eileen Collins, photograph by NASA, public domain; skimage.data.astronaut",
    ),
    Photo(Path("coffee.png"), "Cup and spoon", "Photograph by Rachel Michetti, CC0; skimage.data.coffee"),
    Photo(Path("rocket.jpg"), "Launch", "Photograph by SpaceX, public domain; skimage.data.rocket"),
)


def sample_photos() -> list[Photo]:
    """Return the samples that the installed scikit-image has; none where it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    found = [Photo(folder / photo.path, photo.title, photo.credit) for photo in SAMPLES]
    return [photo for photo in found if photo.path.is_file()]
