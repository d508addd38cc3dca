"""Crops of many kinds at 100 %, ours beside bicubic and Real-ESRGAN x4plus, to be looked at.

::

    python -m benchmarks.studies.contact_sheet DATA OUT --engine DIR [--restore 0,1] [--kind faces]

DATA is a folder of sets (``<set>/HR``, ``<set>/LR`` or ``<set>/LQ``). Crops named below of pictures that are
not there are left out, with a line each. One PNG for every five crops; a column each for bicubic, every place
of the dial, the peers, and the HR picture where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from yonos_train.degrade import degrade
from yonos_train.metrics import as_tensor

from benchmarks.peer_types import Picture, Setting, Upscaler
from benchmarks.peers import open_peers
from yonos_trt import SR
from yonos_trt.backends.choose import find_model
from yonos_trt.images import read_rgb8

SCALE = 4
SIDE_PX = 96  # of a crop in the LR picture
_MARGIN_PX = 16  # read around a crop, so that its border is not the picture's
_ROWS = 5
_GAP_PX = 6
_TEXT_PX = 18

# kind: set/picture, top and left of the crop in LR px. What stands behind @ reduces an HR picture.
CROPS = {
    "faces": (
        "kodak/15@bicubic 20 60", "kodak/15@camera 20 60", "cid22val/5055743@bicubic 8 24",
        "set5_x4/img_001@lens 16 16", "set14_x4/img_006@camera 0 0", "set5_x4/img_005@bicubic 0 0",
        "realset80/29 20 110", "bsd100_x4/img_055@realesrgan 0 0",
    ),
    "text": (
        "realsr/Canon_003_LR4 16 16", "realset80/dped_crop00061 60 60", "realset80/chip 8 8",
        "cid22val/1044329@bicubic 10 10", "realsr/Nikon_001_LR4 0 0", "kodak/8@bicubic 20 80",
        "realset80/0003 60 20", "realset80/dog 190 190",
    ),
    "foliage": (
        "realsr/Nikon_014_LR4 16 16", "drealsr/DSC_1137_x1 16 16", "drealsr/IMG_143_x1 16 16",
        "realsr/Canon_014_LR4 0 16", "realset80/OST_120 560 560", "bsd100_x4/img_001@lens 0 0",
    ),
    "sky": (
        "realsr/Canon_012_LR4 0 0", "kodak/20@realesrgan 0 0", "realsr/Canon_006_LR4 0 16",
        "bsd100_x4/img_091@camera 0 0",
    ),
    "buildings": (
        "drealsr/IMG_118_x1 16 16", "urban100_x4/img_072@bicubic 60 40", "realset80/2684549-PH 200 380",
        "drealsr/P1140417_x1 16 16", "realsr/Canon_017_LR4 16 16",
    ),
    "fur": (
        "cid22val/1420710@bicubic 16 16", "set14_x4/img_001@bicubic 0 12", "realset80/OST_120 300 250",
        "imagenet_valsr_x4/@first 0 0",
    ),
    "night noise": (
        "realset80/0003 380 180", "cid22val/2670327@night 16 16", "urban100_x4/img_004@night 40 100",
    ),
    "old scans": (
        "kodak/11@scan 20 50", "bsd100_x4/img_019@scan 0 20", "set14_x4/img_006@scan 0 0",
    ),
    "screenshots": ("drawn/screen@bicubic 0 0", "drawn/screen@jpeg 0 0"),
    "line art": ("drawn/lines@bicubic 0 0", "drawn/lines@realesrgan 0 0", "realsr/Nikon_004_LR4 0 0"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Crop:
    """An LR crop with its margin, and the same place of the HR picture, both uint8 RGB."""

    title: str
    lr: Picture
    inner: tuple[int, int]  # top and left of the crop inside `lr`
    hr: Picture | None

    def cut(self, sr: Picture) -> Picture:
        """Return the crop of a picture enlarged from `lr`, (4 x 96, 4 x 96, 3)."""
        top, left = (SCALE * at for at in self.inner)
        return sr[top : top + SCALE * SIDE_PX, left : left + SCALE * SIDE_PX]


def crops(data: Path, kinds: Sequence[str] = ()) -> Iterator[Crop]:
    """Yield the crops of the table whose pictures are there; name the others."""
    for kind, rows in CROPS.items():
        if kinds and kind not in kinds:
            continue
        for row in rows:
            name, top, left = row.rsplit(" ", 2)
            try:
                yield _crop(data, kind, name, int(top), int(left))
            except FileNotFoundError as error:
                click.echo(f"left out: {error}", err=True)


def _crop(data: Path, kind: str, name: str, top: int, left: int) -> Crop:
    place, _, how = name.partition("@")
    lr, hr = _pictures(data, place, how)
    height, width = lr.shape[:2]
    top, left = max(0, min(top, height - SIDE_PX)), max(0, min(left, width - SIDE_PX))
    t, le = max(0, top - _MARGIN_PX), max(0, left - _MARGIN_PX)
    part = lr[t : top + SIDE_PX + _MARGIN_PX, le : left + SIDE_PX + _MARGIN_PX]
    there = None
    if hr is not None:
        there = hr[SCALE * top : SCALE * (top + SIDE_PX), SCALE * left : SCALE * (left + SIDE_PX)]
    return Crop(f"{kind}: {name}", np.ascontiguousarray(part), (top - t, left - le), there)


def _pictures(data: Path, place: str, how: str) -> tuple[Picture, Picture | None]:
    set_name, _, stem = place.partition("/")
    if set_name == "drawn":
        return _reduced(_drawn(stem), how)
    for folder in ("LQ", "LR"):
        if not how and (found := _find(data / set_name / folder, stem)):
            truth = _find(data / set_name / "HR", stem)
            return read_rgb8(found), read_rgb8(truth) if truth else None
    found = _find(data / set_name / "HR", stem)
    if found is None:
        raise FileNotFoundError(f"{data / set_name}: no picture {stem or 'at all'}")
    return _reduced(read_rgb8(found), "bicubic" if how == "first" else how)


def _find(folder: Path, stem: str) -> Path | None:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((file for file in files if not stem or file.stem == stem), None)


def _reduced(hr: Picture, how: str) -> tuple[Picture, Picture]:
    """Reduce by `how`: a degradation of the training, or one of three more that are made of it."""
    hr = hr[: hr.shape[0] // SCALE * SCALE, : hr.shape[1] // SCALE * SCALE]
    kind = {"night": "bicubic", "scan": "lens", "jpeg": "bicubic"}.get(how, how)
    x = degrade(as_tensor(hr), SCALE, kind, [(0, 7)])[0].permute(1, 2, 0).numpy()
    lr = (x.clip(-1, 1) + 1) / 2
    rng = np.random.default_rng(7)
    if how == "night":  # a third of the light, shot noise, brightened again
        photons = 60.0
        lr = rng.poisson(lr / 3 * photons) / photons * 3
    elif how == "scan":  # sepia print: grain, dust, faded black
        grey = lr @ [0.3, 0.59, 0.11] + rng.normal(0, 0.04, lr.shape[:2])
        grey[rng.random(grey.shape) > 0.999] = 1
        lr = (0.15 + 0.75 * grey)[..., None] * [1.0, 0.93, 0.78]
    out = Image.fromarray((lr.clip(0, 1) * 255).round().astype(np.uint8))
    if how == "jpeg":
        import io

        packed = io.BytesIO()
        out.save(packed, "JPEG", quality=60)
        out = Image.open(packed).convert("RGB")
    return np.asarray(out), hr


def _drawn(what: str) -> Picture:
    """Return a 400 x 400 picture: a window with text, or curves in ink."""
    side = SCALE * (SIDE_PX + 4)
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    if what == "screen":
        draw.rectangle((0, 0, side, 48), fill=(52, 73, 110))
        draw.text((16, 10), "File  Edit  View", fill="white", font=ImageFont.load_default(26))
        for row in range(7):
            font = ImageFont.load_default(20 + 4 * (row % 3))
            draw.text(
                (16, 64 + 46 * row), f"{row + 1}. Results 2026: {row * 137 + 41} km", fill="black", font=font
            )
    else:
        for k in range(9):
            box = (20 + 14 * k, 20 + 18 * k, side - 20 - 20 * k, side - 20 - 10 * k)
            draw.arc(box, 15 * k, 250 + 12 * k, fill="black", width=2 + k % 4)
        for k in range(12):
            draw.line((10, 30 * k, side - 10, 390 - 24 * k), fill=(40, 40, 60), width=1 + k % 3)
    return np.asarray(image)


def _bicubic(lr: Picture) -> Picture:
    image = Image.fromarray(lr)
    return np.asarray(image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC))


def sheet(rows: Sequence[Crop], upscalers: dict[str, Upscaler]) -> Image.Image:
    """Return crops below each other, a column for each upscaler and one for the HR picture."""
    side = SCALE * SIDE_PX
    names = [*upscalers, "HR"]
    page = Image.new("RGB", (len(names) * (side + _GAP_PX), len(rows) * (side + _TEXT_PX + _GAP_PX)), "white")
    draw = ImageDraw.Draw(page)
    for y, crop in enumerate(rows):
        top = y * (side + _TEXT_PX + _GAP_PX)
        for x, name in enumerate(names):
            picture = crop.hr if name == "HR" else crop.cut(upscalers[name](crop.lr))
            draw.text((x * (side + _GAP_PX), top), f"{crop.title}  {name}", fill="black")
            if picture is not None:
                shown = ImageOps.pad(Image.fromarray(picture), (side, side), color="white", centering=(0, 0))
                page.paste(shown, (x * (side + _GAP_PX), top + _TEXT_PX))
    return page


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--engine", "engine_dir", required=True, help="Engine directory or shipped model, x4.")
@click.option("--restore", "places", default="", help="Comma-separated places of the dial.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(CROPS)), help="May be repeated.")
@click.option("--peers", default="realesrgan-x4plus", show_default=True, help="Comma-separated; '' for none.")
def main(data: Path, out: Path, engine_dir: str, places: str, kinds: Sequence[str], peers: str) -> None:
    """Write pages of crops of DATA to the folder OUT."""
    upscalers: dict[str, Upscaler] = {"bicubic": _bicubic}
    dial: list[float | None] = [float(p) for p in places.split(",") if p]
    for place in dial or [None]:
        sr = SR(engine_dir, restore=place)
        name = sr.manifest.model.name + ("" if place is None else f" restore {place:g}")
        upscalers[name] = lambda lr, sr=sr: sr.upscale(lr)  # type: ignore[misc]
    found, missing = open_peers([p for p in peers.split(",") if p], Setting(find_model(Path(engine_dir))))
    upscalers |= found
    for name, reason in missing.items():
        click.echo(f"{name}: not run, {reason}", err=True)
    out.mkdir(parents=True, exist_ok=True)
    every = list(crops(data, kinds))
    for page, first in enumerate(range(0, len(every), _ROWS), start=1):
        path = out / f"sheet-{page:02d}.png"
        sheet(every[first : first + _ROWS], upscalers).save(path)
        click.echo(f"{path}: {', '.join(c.title for c in every[first : first + _ROWS])}")


if __name__ == "__main__":
    main()
