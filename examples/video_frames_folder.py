"""Upscale a folder of numbered frames, as renderers and editors write them.

    python examples/video_frames_folder.py frames/ big/ [ENGINE_DIR]

Every frame sees the same noise field, so still parts of the picture stay still.
"""

from __future__ import annotations

import sys
from pathlib import Path

from yonos_trt import SR


def main(source: str, target: str, engine_dir: str | None = None) -> None:
    paths = sorted(p for p in Path(source).iterdir() if p.suffix.lower() in (".png", ".jpg", ".tif", ".tiff"))
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [p for p in paths if not (folder / p.name).exists()]  # run it again to go on
    with SR(engine_dir) as sr, sr.stream(missing) as results:
        for path, big in zip(missing, results, strict=True):
            big.save(folder / path.name)
    print(f"{len(missing)} frames written, {len(paths) - len(missing)} were there")


if __name__ == "__main__":
    main(*sys.argv[1:])
