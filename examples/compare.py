"""Put the bicubic enlargement and ours side by side: ``compare.py INPUT OURS OUTPUT``.

The right half is the file as it is; the left half is Pillow's BICUBIC at the same size.
Below both stands a detail from the middle, enlarged three times without smoothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from yonos_trt.images import read_rgb8

CAPTION_PX = 28
DETAIL_ZOOM = 3


def panel(image: Image.Image, caption: str) -> Image.Image:
    """Return the picture above its detail, under a caption."""
    width, height = image.size
    w, h = width // DETAIL_ZOOM, height // DETAIL_ZOOM
    left, top = (width - w) // 2, (height - h) // 2
    detail = image.crop((left, top, left + w, top + h))
    detail = detail.resize((w * DETAIL_ZOOM, h * DETAIL_ZOOM), Image.Resampling.NEAREST)
    out = Image.new("RGB", (width, CAPTION_PX + height + detail.height), "white")
    font = ImageFont.load_default(size=18)
    ImageDraw.Draw(out).text((8, 3), caption, fill="black", font=font)
    out.paste(image, (0, CAPTION_PX))
    out.paste(detail, (0, CAPTION_PX + height))
    return out


def compare(source: Path, ours: Path, target: Path) -> None:
    """Write the comparison picture."""
    small, large = (Image.fromarray(read_rgb8(path)) for path in (source, ours))
    scale = large.width / small.width
    bicubic = small.resize(large.size, Image.Resampling.BICUBIC)
    panels = [panel(bicubic, f"bicubic x{scale:g}"), panel(large, f"yonos-trt x{scale:g}")]
    out = Image.new("RGB", (sum(p.width for p in panels) + 8, panels[0].height), "white")
    out.paste(panels[0], (0, 0))
    out.paste(panels[1], (panels[0].width + 8, 0))
    out.save(target)
    print(f"{target}: {out.width} x {out.height} px, bicubic | ours")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("source", "ours", "target"):
        parser.add_argument(name, type=Path)
    compare(**vars(parser.parse_args()))
