"""The contact sheet: every column shows the same place, missing pictures are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.studies.contact_sheet import CROPS, SCALE, SIDE_PX, crops, sheet


def test_at_least_forty_crops_of_every_kind() -> None:
    assert sum(map(len, CROPS.values())) >= 40
    assert {"faces", "text", "foliage", "sky", "night noise", "old scans", "screenshots", "line art"} <= set(
        CROPS
    )


def test_every_column_shows_the_same_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "kodak" / "HR"
    folder.mkdir(parents=True)
    y, x = np.mgrid[:512, :768]
    smooth = np.stack([y // 3, x // 4, (x + y) // 8], axis=2).astype(np.uint8)
    Image.fromarray(smooth).save(folder / "8.png")
    found = list(crops(tmp_path, ["text"]))
    assert [crop.title for crop in found] == ["text: kodak/8@bicubic"]
    assert "left out" in capsys.readouterr().err
    (crop,) = found
    enlarged = np.repeat(np.repeat(crop.lr, SCALE, axis=0), SCALE, axis=1)
    cut = crop.cut(enlarged)
    assert crop.hr is not None
    assert cut.shape == crop.hr.shape == (SCALE * SIDE_PX, SCALE * SIDE_PX, 3)
    assert np.abs(cut.astype(int) - crop.hr).max() <= 6  # a slope of at most 1.4 a pixel, and rounding

    page = np.asarray(sheet([crop], {"mine": lambda lr: enlarged}))
    side = SCALE * SIDE_PX
    assert np.array_equal(page[18 : 18 + side, :side], cut)
    assert np.array_equal(page[18 : 18 + side, side + 6 : 2 * side + 6], crop.hr)


@pytest.mark.parametrize("kind", ["screenshots", "line art"])
def test_drawn_pictures_need_no_files(tmp_path: Path, kind: str) -> None:
    assert [crop.title for crop in crops(tmp_path, [kind])][:2] == [
        f"{kind}: {name.rsplit(' ', 2)[0]}" for name in CROPS[kind][:2]
    ]
