"""The base path needs nothing that only Linux has: it is taken away (`bare_os`) and the core run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import picture
from PIL import Image

TESTS = Path(__file__).resolve().parent
CORE = """
    import bare_os
    import json, sys
    from pathlib import Path
    import numpy as np

    folder = Path(sys.argv[1])
    for module in bare_os.MODULES:
        try:
            __import__(module)
        except ImportError:
            continue
        sys.exit(f"{module} is still there")

    import yonos_trt
    from yonos_trt import host
    from yonos_trt.cli import doctor
    from yonos_trt.bench.machine import PeakMemory, describe_machine
    from yonos_trt.cli.main import cli
    from yonos_trt.host import usable_cpus

    def yonos(*words, code=0):
        sys.argv[1:] = map(str, words)
        try:
            cli()
        except SystemExit as end:
            assert (end.code or 0) == code, (words, end.code)

    with yonos_trt.SR(tile_px=128) as sr:
        big = sr.upscale(np.zeros((20, 30, 3), np.uint8))
        assert big.shape == (80, 120, 3)
        sr.upscale_file(folder / "in" / "a.png", folder / "file.png")
    yonos("upscale", "-i", folder / "in", "-o", folder / "out", "--progress", "json")
    yonos("upscale", "-i", folder / "in", "-o", folder / "out", "--skip-existing", "-q")
    one, tiff = folder / "in" / "a.png", folder / "out" / "a.tif"
    yonos("upscale", "-i", one, "-o", tiff, "--stream", "always", "-q")
    yonos("upscale", "-i", folder / "nothing.png", "-o", folder / "x.png", "-q", code=1)
    yonos("info", "lite-x4", "--json")
    facts = doctor.examine()
    assert facts["cpus"]["usable"] == usable_cpus() >= 1
    assert list(doctor.lines(facts))
    assert host.available_bytes() > 0
    describe_machine()
    with PeakMemory():
        pass
    print("done", sorted(p.name for p in (folder / "out").iterdir()))
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=500,
    )


def test_pictures_commands_and_doctor(tmp_path: Path) -> None:
    pytest.importorskip("pyvips", reason="streamed TIFF needs pip install '.[images]'")
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(picture(20, 30)).save(tmp_path / "in" / name)
    done = run(CORE, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done ['a.tif', 'a_x4.png', 'b_x4.jpg']"


def test_video(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="video needs pip install '.[video]'")
    from helpers import make_engine_dir
    from video_clips import write_clip

    engine, clip = make_engine_dir(tmp_path / "engine"), write_clip(tmp_path / "clip.mkv")
    code = """
        import bare_os, sys
        from yonos_trt.cli.main import cli
        sys.argv[1:] = ["video", "-m", sys.argv[1], "-i", sys.argv[2], "-o", sys.argv[3], "--resume", "-q"]
        cli()
    """
    done = run(code, str(engine), str(clip), str(tmp_path / "out.mkv"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mkv").stat().st_size > 0


def test_engine_directories_are_written_and_read(tmp_path: Path) -> None:
    code = """
        import bare_os, sys
        from pathlib import Path
        from helpers import make_engine_dir
        from yonos_trt.atomic import write_file
        from yonos_trt.engine.manifest import load_manifest
        folder = make_engine_dir(Path(sys.argv[1]) / "engine")
        folder = make_engine_dir(Path(sys.argv[1]) / "engine2")
        assert load_manifest(folder).model.scale == 4
        for text in (b"one", b"two"):
            write_file(Path(sys.argv[1]) / "file", text)
        print(sorted(p.name for p in Path(sys.argv[1]).iterdir()))
    """
    done = run(code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['engine', 'engine2', 'file']\n"


def test_one_exporter_at_a_time_without_file_locks(tmp_path: Path) -> None:
    """The lock's file is then the lock: it is there while it is held, and whoever holds it takes it away."""
    pytest.importorskip("filelock")
    code = """
        import warnings
        warnings.filterwarnings("ignore", "only soft file lock")
        import bare_os, sys
        from pathlib import Path
        from yonos_export.lock import only_builder
        from yonos_trt.errors import BuildError
        folder = Path(sys.argv[1])
        for _ in range(2):
            with only_builder(folder / "engine"):
                assert [p.name for p in folder.iterdir()] == [".engine.lock"]
                try:
                    with only_builder(folder / "engine"):
                        sys.exit("two at a time")
                except BuildError as error:
                    assert "another export is writing" in str(error)
            assert not list(folder.iterdir())
    """
    done = run(code, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_training_run_begins_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="training needs pip install '.[train]'")
    from helpers import write_training_pictures

    (tmp_path / "pictures").mkdir()
    write_training_pictures(tmp_path / "pictures", 2)
    code = """
        import bare_os, sys
        from yonos_train.cli import main
        for _ in range(2):
            main(
                ["--preset", "smoke", "--stage", "autoencoder", "--data", sys.argv[1], "--run", sys.argv[2],
                 "--set", "loop.precision=fp32"], standalone_mode=False,
            )
    """
    done = run(code, str(tmp_path / "pictures"), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "autoencoder: done already" in done.stderr
    assert (tmp_path / "run" / "autoencoder" / "encoder.safetensors").is_file()
