"""Things several test files build: tiny engine directories, pictures, measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from yonos_trt.engine import manifest as m

Array = NDArray[Any]


def tiny_graphs(
    *,
    scale: int = 4,
    encoder_input: str = "upsampled",
    seed: int = 1,
    nan_stage: str | None = None,
    names: dict[str, str] | None = None,
    start: Literal["noise", "latent"] = "noise",
) -> tuple[dict[str, bytes], int, int]:
    """Make encoder, step and decoder graphs without normalisation: (file -> bytes, latent factor, channels).

    The picture is packed into channels (upsampled input, f = 2, or LR input, f = scale), a 3 x 3 convolution
    adds a little of its neighbourhood and of the noise, and the channels are unpacked; the result is like the
    input, depends on every stage, and a tile is exact 2 latent cells away from its border.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = names or {}
    rng = np.random.default_rng(seed)
    lr = encoder_input == "lr"
    factor = scale if lr else 2
    channels = 4 if lr else 3 * factor**2

    def conv(outputs: int, inputs: int, centre: float, spread: float, groups: Array | None = None) -> Array:
        weight = rng.normal(0.0, spread, (outputs, inputs, 3, 3)).astype(np.float32)
        weight[:, :, 1, 1] += np.float32(centre) * (np.eye(outputs, inputs) if groups is None else groups)
        return weight.astype(np.float32)

    def graph(
        stage: str,
        nodes: list[Any],
        inputs: dict[str, int],
        outputs: dict[str, int],
        weights: dict[str, Array],
    ) -> bytes:
        def info(channels_of: dict[str, int]) -> list[Any]:
            return [
                helper.make_tensor_value_info(
                    names.get(name, name), TensorProto.FLOAT, ["N", count, f"h_{name}", f"w_{name}"]
                )
                for name, count in channels_of.items()
            ]

        for node in nodes:
            for field in (node.input, node.output):
                for i, name in enumerate(field):
                    field[i] = names.get(name, name)
        if nan_stage == stage:
            weights = {k: np.full_like(v, np.nan) if v.ndim == 4 else v for k, v in weights.items()}
        tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
        made = helper.make_graph(nodes, stage, info(inputs), info(outputs), tensors)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, [output], **attributes)

    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    if lr:
        lift = np.zeros((4, 3), np.float32)
        lift[[0, 1, 2, 3], [0, 1, 2, 1]] = 1.0
        encoder = graph(
            "encoder",
            [node("Conv", ["image", "weight"], "z_l", **pads)],
            {"image": 3},
            {"z_l": 4},
            {"weight": conv(4, 3, 1.0, 0.01, lift)},
        )
        spread = np.zeros((3 * factor**2, 4), np.float32)
        for colour in range(3):
            spread[colour * factor**2 : (colour + 1) * factor**2, colour] = 1.0
        unpack = conv(3 * factor**2, 4, 1.0, 0.01, spread)
    else:
        encoder = graph(
            "encoder",
            [
                node("SpaceToDepth", ["image"], "packed", blocksize=2),
                node("Conv", ["packed", "weight"], "z_l", **pads),
            ],
            {"image": 3},
            {"z_l": channels},
            {"weight": conv(channels, channels, 1.0, 0.003)},
        )
        unpack = conv(channels, channels, 1.0, 0.003)
    mixed = np.concatenate(
        [conv(channels, channels, 1.0, 0.01), conv(channels, channels, 1.0, 0.003)], axis=1
    )
    noised = [
        node("Mul", ["noise", "sigma"], "scaled"),
        node("Concat", ["scaled", "z_l"], "both", axis=1),
        node("Conv", ["both", "weight"], "z_0", **pads),
    ]
    latent = start == "latent"
    step = graph(
        "step",
        [node("Conv", ["z_l", "weight"], "z_0", **pads)] if latent else noised,
        {"z_l": channels} if latent else {"noise": channels, "z_l": channels},
        {"z_0": channels},
        {"weight": mixed[:, channels:]}
        if latent
        else {"sigma": np.asarray(0.05, np.float32), "weight": mixed},
    )
    # CRD order keeps one colour's cells together, DCR is what SpaceToDepth does.
    decoder = graph(
        "decoder",
        [
            node("Conv", ["z_0", "weight"], "cells", **pads),
            node("DepthToSpace", ["cells"], "image", blocksize=factor, mode="CRD" if lr else "DCR"),
        ],
        {"z_0": channels},
        {"image": 3},
        {"weight": unpack},
    )
    return {"encoder.onnx": encoder, "step.onnx": step, "decoder.onnx": decoder}, factor, channels


def tiny_manifest(
    files: dict[str, bytes],
    factor: int,
    channels: int,
    *,
    scale: int = 4,
    encoder_input: str = "upsampled",
    start: Literal["noise", "latent"] = "noise",
) -> m.EngineManifest:
    """Describe the graphs of `tiny_graphs`."""
    import hashlib

    import msgspec

    multiple = int(np.lcm(scale, factor)) * 2
    plain = m.identity_manifest(
        scale=scale,
        latent_factor=factor,
        latent_channels=channels,
        multiple_px=multiple,
        smallest_px=2 * multiple,
        default_px=8 * multiple,
        largest_px=64 * multiple,
        overlap_px=2 * multiple,
        encoder_input=encoder_input,
    )

    def stage(name: str, found: m.Stage) -> m.Stage:
        raw, file = files[f"{name}.onnx"], f"{name}.onnx"
        artifact = m.Artifact(
            runtime="onnx",
            precision="fp32",
            file=file,
            sha256=hashlib.sha256(raw).hexdigest(),
            bytes=len(raw),
        )
        inputs = tuple(tensor for tensor in found.inputs if (tensor.name, start) != ("noise", "latent"))
        return msgspec.structs.replace(found, inputs=inputs, artifacts=(artifact,))

    model = msgspec.structs.replace(
        plain.model,
        name=f"tiny-x{scale}",
        timestep=999.0,
        alpha_1=0.068,
        sigma_1=0.998,
        weights_sha256="ab" * 32,
        training={"stages": ["none"]},
        licences=(m.Licence(part="code", licence="Apache-2.0"),),
        start=start,
    )
    parity = m.Parity(
        stages={"step": {"fp32": m.StageParity(max_error=1e-6, psnr_db=120.0, cosine=1.0)}},
        end_to_end_psnr_db={"fp32": None},
    )
    stages = m.Stages(**{name: stage(name, found) for name, found in plain.stages.items()})
    return msgspec.structs.replace(plain, model=model, stages=stages, parity=parity)


def make_engine_dir(path: Path, *, seed: int = 1, nan_stage: str | None = None, **options: Any) -> Path:
    """Write an engine directory with the graphs of `tiny_graphs`."""
    names = options.pop("names", None)
    graphs = tiny_graphs(seed=seed, nan_stage=nan_stage, names=names, **options)
    return m.write_engine_dir(path, graphs[0], tiny_manifest(*graphs, **options))


def with_external(raw: bytes, location: str, *, offset: int = 0) -> tuple[bytes, bytes]:
    """Move the weights of a graph into a file; returns (graph, file)."""
    import onnx

    model = onnx.load_from_string(raw)
    data = bytearray(b"\0" * offset)
    for tensor in model.graph.initializer:
        if tensor.dims:
            at, content = len(data), tensor.raw_data
            data += content
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", at), ("length", len(content))):
                tensor.external_data.add(key=key, value=str(value))
    return model.SerializeToString(), bytes(data)


def external_dir(root: Path, location: str = "step.data", *, listed: str = "external", seed: int = 1) -> Path:
    """Write an engine directory whose step has its weights in another file."""
    import hashlib

    import msgspec

    files, factor, channels = tiny_graphs(seed=seed)
    files["step.onnx"], data = with_external(files["step.onnx"], location, offset=64)
    manifest = tiny_manifest(files, factor, channels)
    hidden = location.startswith(".")
    if not hidden:
        files[location] = data
    digest = hashlib.sha256(data).hexdigest()
    record = m.FileRecord(file=location, sha256=digest, bytes=len(data))
    if listed == "external":
        step = manifest.stages.step
        artifact = msgspec.structs.replace(step.artifacts[0], external=(record,))
        stages = msgspec.structs.replace(
            manifest.stages, step=msgspec.structs.replace(step, artifacts=(artifact,))
        )
        manifest = msgspec.structs.replace(manifest, stages=stages)
    elif listed == "files":
        manifest = msgspec.structs.replace(manifest, files=(record,))
    engine = m.write_engine_dir(root, files, manifest)
    if hidden:
        (engine / location).write_bytes(data)
    return engine


def picture(height: int, width: int, *, dtype: Any = np.uint8, seed: int = 0, channels: int = 3) -> Array:
    """Draw smooth gradients, edges and a little noise: (height, width, channels)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for c in range(channels):
        wave = np.sin(x / (5.0 + c) + c) * np.cos(y / (7.0 - c))
        edge = ((x // 9 + y // 11 + c) % 2) * 0.5
        planes.append(0.5 + 0.25 * wave + 0.2 * (edge - 0.25) + rng.normal(0, 0.02, y.shape))
    values = np.clip(np.stack(planes, axis=-1), 0.0, 1.0)
    if np.dtype(dtype) == np.float32:
        return np.asarray(values.astype(np.float32))
    return np.asarray(np.rint(values * np.iinfo(dtype).max).astype(dtype))


def strokes(angle_deg: float, period_px: float, side: int = 256) -> Array:
    """Return (side, side, 3) uint8 waves; brightness changes along ``angle_deg`` (0: from left to right)."""
    y, x = np.mgrid[:side, :side]
    along = x * np.cos(np.deg2rad(angle_deg)) + y * np.sin(np.deg2rad(angle_deg))
    luma = 128 + 60 * np.cos(2 * np.pi * along / period_px)
    return np.repeat(luma.round().astype(np.uint8)[..., None], 3, axis=2)


def psnr_db(a: Array, b: Array) -> float:
    """Return the PSNR of two pictures of one dtype; infinite where they are equal."""
    peak = 1.0 if a.dtype == np.float32 else float(np.iinfo(a.dtype).max)
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10.0 * float(np.log10(peak**2 / error))


def shipped_model(name: str) -> Path:
    """Return the engine directory of a shipped model; a package with models must have it."""
    import pytest

    from yonos_trt.backends.choose import models_dir, shipped_models

    if not models_dir().is_dir():
        pytest.skip("this checkout has no yonos_trt/models yet")
    found = shipped_models()
    assert name in found, f"{name} is not among the shipped models {sorted(found)}"
    return found[name]


def skip_or_fail(switch: str, reason: str) -> NoReturn:
    """Skip what cannot run here; where the environment's `switch` is 1, fail."""
    import os

    import pytest

    if os.environ.get(switch) == "1":
        pytest.fail(f"{switch}=1, but {reason}", pytrace=False)
    pytest.skip(f"{reason}; set {switch}=1 to make this a failure")


@contextmanager
def chromium() -> Iterator[Any]:
    """Open a headless browser, driven by Selenium, whose log tells of errors and requests."""
    import importlib.util
    import shutil

    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        reason = "chromium or chromedriver is not installed (Debian: chromium, chromium-driver)"
        skip_or_fail("YONOS_REQUIRE_CHROMIUM", reason)
    if importlib.util.find_spec("selenium") is None:
        skip_or_fail("YONOS_REQUIRE_CHROMIUM", "selenium is not installed: pip install '.[bench]'")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def pixels_of(element: Any) -> Array:
    """Return what the browser shows of an element, (H, W, 3) int."""
    import io

    with Image.open(io.BytesIO(element.screenshot_as_png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def load_script(path: Path) -> Any:
    """Load a file that belongs to no package as a module, under its own name."""
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def traced_peak(work: Callable[[], object]) -> int:
    """Return the most bytes that Python's allocators held at once for `work`."""
    import tracemalloc

    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Load manifest.json as plain JSON, let `change` alter it, and write it back."""
    import json

    path = directory / m.MANIFEST_NAME
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def in_own_process(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test that sends itself SIGINT in a pytest of its own.

    Python takes SIGINT on the thread's alternate stack where there is one. After hundreds of other tests some
    library has left one in the process, and now and then the whole run ended with a segmentation fault there.
    """
    import functools
    import os
    import subprocess
    import sys

    @functools.wraps(test)
    def outer(*args: Any, **kwargs: Any) -> None:
        if os.environ.get("YONOS_OWN_PROCESS"):
            return test(*args, **kwargs)
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        root = Path(__file__).resolve().parents[1]
        environment = os.environ | {"YONOS_OWN_PROCESS": "1"}
        limit_s = 120 + 60 * float(os.environ.get("FUZZ_MINUTES", 0))
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=limit_s
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout, done.stdout

    return outer


def write_training_pictures(folder: Path, count: int) -> Path:
    """Write `count` smooth random pictures of 120 x 100 px, large enough for crops of 64 px."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
        coarse.resize((100, 120), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@cache
def commands() -> dict[str, click.Command]:
    """Name as it is typed -> command, of all three programs."""
    from yonos_export.cli import main as export
    from yonos_train.cli import main as train

    from yonos_trt.cli.main import cli

    found: dict[str, click.Command] = {}
    stack: list[tuple[str, click.Command]] = [
        ("yonos", cli),
        ("yonos-export", export),
        ("yonos-train", train),
    ]
    while stack:
        name, command = stack.pop()
        found[name] = command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for sub in command.list_commands(context):
                got = command.get_command(context, sub)
                assert got is not None
                stack.append((f"{name} {sub}", got))
    return found
