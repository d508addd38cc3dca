"""What harm does to a run: torn and foreign files, a full disk, traps among the pictures, Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from helpers import write_training_pictures  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from yonos_train.loop import TrainingError  # noqa: E402
from yonos_train.presets import PRESETS  # noqa: E402
from yonos_train.records import MetricsLog, write_curves  # noqa: E402
from yonos_train.run import Run  # noqa: E402

FULL = PRESETS["smoke"]
SMOKE = dataclasses.replace(
    FULL,
    loop=dataclasses.replace(FULL.loop, precision="fp32", sample_steps=0, checkpoint_steps=1),
    stages=tuple(stage for stage in FULL.stages if stage.name in ("autoencoder", "x2", "decoder-x2")),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_pictures(tmp_path_factory.mktemp("pictures"), 2)


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    Run(SMOKE, folder, data=str(pictures), weights={}).run()
    return results(folder)


def results(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
        if not path.name.startswith("checkpoint-")
    }


@pytest.fixture(scope="module")
def half(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose x2 stage has lost its result and has checkpoints of steps 1 and 2."""
    run = Run(SMOKE, tmp_path_factory.mktemp("half") / "run", data=str(pictures), weights={})
    run.run(("autoencoder", "x2"))
    (run.folder / "x2" / "unet.safetensors").unlink()
    return run.folder


def begun(half: Path, folder: Path, pictures: Path) -> Run:
    """A copy of it, and its x2 stage to be run."""
    shutil.copytree(half, folder)
    return Run(SMOKE, folder, data=str(pictures), weights={})


def unet(run: Run) -> bytes:
    """Train the x2 stage and return its result."""
    run.run(("x2",))
    return (run.folder / "x2" / "unet.safetensors").read_bytes()


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".part" in path.name or path.name.startswith(".")]


# ----------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(
    "tail", [b'{"step": 3, "lo', b"{", b"\x00" * 40, b'{"step": 3, "loss": 1.0}', b"\xff"]
)
def test_a_torn_row_of_metrics_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + tail)
    metrics = MetricsLog(path)
    metrics.add({"loss": 3.0})
    metrics.row({"step": 2})
    metrics.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 3.0}]


def test_curves_leave_out_lines_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2}\n{"step": 2, "lo{"step": 3}\n[]\n{"loss": 1}\n\x00\xff\n3\n')
    write_curves(path, tmp_path / "curves.png", title="torn")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_with_a_torn_row_ends(
    half: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    run = begun(half, tmp_path / "run", pictures)
    with open(run.folder / "x2" / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 2, "elaps')
    assert unet(run) == whole["x2/unet.safetensors"]


def rewrite(path: Path, change: Any) -> None:
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def drop(name: str) -> Any:
    return lambda tensors, metadata: tensors.pop(next(key for key in tensors if name in key))


def reshape(name: str) -> Any:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        key = next(key for key in tensors if name in key and tensors[key].ndim > 1)
        tensors[key] = tensors[key][:1].clone()

    return change


HARM: dict[str, Any] = {
    "no weight": drop("/weight/"),
    "no average": drop("/ema/"),
    "no moment": drop("/exp_avg"),
    "weight of another shape": reshape("/weight/"),
    "average of another shape": reshape("/ema/"),
    "moment of another shape": reshape("/exp_avg"),
    "foreign tensor": lambda tensors, metadata: tensors.update({"unet/other/weight/x": torch.zeros(1)}),
    "no step": lambda tensors, metadata: metadata.pop("step"),
    "step is no number": lambda tensors, metadata: metadata.update(step="many"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_checkpoint_that_does_not_fit_gives_way_to_the_one_before(
    half: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes], harm: str
) -> None:
    run = begun(half, tmp_path / "run", pictures)
    rewrite(max((run.folder / "x2").glob("checkpoint-*")), HARM[harm])
    assert unet(run) == whole["x2/unet.safetensors"]
    assert run.training_facts(2)["stages"]["x2"]["steps"] == 2


def test_without_any_usable_checkpoint_the_run_says_so(half: Path, pictures: Path, tmp_path: Path) -> None:
    run = begun(half, tmp_path / "run", pictures)
    for path in (run.folder / "x2").glob("checkpoint-*"):
        path.write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"none of the checkpoints in .*x2 can be used; .*Remove them"):
        run.run()
    for path in (run.folder / "x2").glob("checkpoint-*"):
        path.unlink()
    assert unet(run)


@pytest.mark.parametrize("harm", ["cut", "other shape"])
def test_a_damaged_result_is_named_and_made_again(
    half: Path, pictures: Path, tmp_path: Path, whole: dict[str, bytes], harm: str
) -> None:
    run = begun(half, tmp_path / "run", pictures)
    path = run.folder / "autoencoder" / "encoder.safetensors"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        rewrite(
            path, lambda tensors, metadata: tensors.update({k: v[:1].clone() for k, v in tensors.items()})
        )
    with pytest.raises(TrainingError, match=r"encoder\.safetensors cannot be used: .*Remove it"):
        run.run()
    path.unlink()
    run.run(("autoencoder",))
    assert path.read_bytes() == whole["autoencoder/encoder.safetensors"]


@pytest.mark.parametrize("harm", ["gone", "cut", "empty"])
def test_a_bundle_whose_weights_are_gone_or_cut_is_written_again(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes], harm: str
) -> None:
    folder = tmp_path / "run"
    Run(SMOKE, folder, data=str(pictures), weights={}).run()
    path = folder / "bundles" / "smoke-x2" / "unet.safetensors"
    raw = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(raw[: len(raw) // 2] if harm == "cut" else b"")
    Run(SMOKE, folder, data=str(pictures), weights={}).run()
    assert results(folder) == whole


# ----------------------------------------------------------------------------------------------------------
# The disk


@pytest.mark.parametrize("kibibytes", [8, 100])
def test_a_full_disk_is_said_in_a_line_and_the_run_goes_on_later(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes], kibibytes: int
) -> None:
    """The limit on file sizes stands for the disk: writes fail in the middle of a file."""
    resource = pytest.importorskip("resource")
    (tmp_path / "given.json").write_text(SMOKE.to_json())
    limit = kibibytes * 1024
    done = subprocess.run(
        [sys.executable, "-m", "yonos_train.cli", "--config", str(tmp_path / "given.json"),
         "--data", str(pictures), "--run", str(tmp_path / "run")],
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        ),
        capture_output=True, text=True, timeout=240, env=environment(tmp_path), check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"yonos-train: {tmp_path / 'run'}")
    assert last.endswith("goes on from the last checkpoint")
    assert not leftovers(tmp_path / "run")
    run = Run(SMOKE, tmp_path / "run", data=str(pictures), weights={})
    run.run()
    assert results(run.folder) == whole


def environment(home: Path) -> dict[str, str]:
    root = Path(__file__).parent.parent
    paths = os.pathsep.join(str(root / part) for part in (".", "export", "train"))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(home / "mpl")}


# ----------------------------------------------------------------------------------------------------------
# Pictures


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n0 0 moveto stroke\n%%EOF\n"


def test_no_picture_starts_another_program(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow alone hands what calls itself .png and is PostScript to Ghostscript."""
    from PIL import EpsImagePlugin
    from yonos_export.samples import read_pictures
    from yonos_train.data import ImageFolder
    from yonos_train.pairs import read_picture, whole_pairs

    from yonos_trt.errors import InputError

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", started)
    folder = tmp_path / "set" / "HR"
    shutil.copytree(pictures, folder)
    (folder / "trap.png").write_bytes(EPS)
    found = ImageFolder(folder, smallest_px=64)
    assert [Path(skipped.path).name for skipped in found.skipped] == ["trap.png"]
    for read in (lambda: read_picture(folder / "trap.png"), lambda: read_pictures([folder / "trap.png"])):
        with pytest.raises(InputError, match=r"trap\.png"):
            read()
    trap = next(pair for pair in whole_pairs(tmp_path, 2) if pair.name == "trap")
    with pytest.raises(InputError, match=r"trap\.png"):
        trap.load()


def test_a_text_encoder_is_loaded_from_safetensors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for transformers, an extra: what it is asked for, and what it answers."""
    from yonos_train.sd import SdFolderError
    from yonos_train.sd_folder import _empty_prompt

    asked: list[dict[str, Any]] = []

    class Loads:
        @staticmethod
        def from_pretrained(folder: Path, **options: Any) -> Any:
            if folder.name == "text_encoder":
                asked.append(options)
                raise OSError("no file named model.safetensors")

    stand_in = SimpleNamespace(CLIPTextModel=Loads, CLIPTokenizer=Loads)
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    with pytest.raises(SdFolderError, match=r"text_encoder cannot be loaded from safetensors: no file named"):
        _empty_prompt(tmp_path)
    assert asked == [{"local_files_only": True, "use_safetensors": True, "output_loading_info": True}]
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SdFolderError, match=r"pip install -c constraints\.txt '\.\[prompt\]'"):
        _empty_prompt(tmp_path)


# ----------------------------------------------------------------------------------------------------------
# Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.5, 2.0, None])
def test_ctrl_c_ends_with_130_and_no_traceback(pictures: Path, tmp_path: Path, seconds: float | None) -> None:
    """During the imports, and (None) once steps are made; a second one ends it too."""
    long = [dataclasses.replace(stage, steps=10**6) for stage in SMOKE.stages[:1]]
    (tmp_path / "given.json").write_text(dataclasses.replace(SMOKE, stages=tuple(long)).to_json())
    process = subprocess.Popen(
        [sys.executable, "-c", "from yonos_trt.console import yonos_train; yonos_train()",
         "--config", str(tmp_path / "given.json"), "--data", str(pictures), "--run", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path),
    )  # fmt: skip
    if seconds is None:
        while process.poll() is None and not list(tmp_path.glob("run/*/checkpoint-*")):
            time.sleep(0.01)
    else:
        time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    if seconds is None:
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    if seconds != 0.1 or process.returncode != -signal.SIGINT:  # before Python itself is there
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert "Aborted" not in said
