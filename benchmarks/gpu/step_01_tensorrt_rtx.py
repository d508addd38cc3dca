"""Step 1: does TensorRT-RTX load on this GPU, and does a small engine compute the right numbers?

The wheels may come in parts (``name.whl.part-aa``, ``name.whl.part-ab``; see README.md): they are joined and
installed into a temporary folder, without any index.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import steps


def join_parts(folder: Path, target: Path) -> list[Path]:
    """Put wheels together from ``*.whl.part-*`` (sorted by name), take whole ones as they are."""
    parts: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.whl.part-*")):
        parts.setdefault(path.name.split(".part-")[0], []).append(path)
    wheels = sorted(folder.glob("*.whl"))
    for name, pieces in parts.items():
        whole = target / name
        with whole.open("wb") as stream:
            for piece in pieces:
                stream.write(piece.read_bytes())
        wheels.append(whole)
    return wheels


def install(folder: Path) -> list[str]:
    """Install wheels without an index and make them importable here."""
    work = Path(tempfile.mkdtemp(prefix="yonos-wheels-"))
    wheels = join_parts(folder, work)
    if not wheels:
        raise FileNotFoundError(f"{folder} holds no wheels and no parts of wheels")
    site = work / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(site), *map(str, wheels)], check=True)
    sys.path.insert(0, str(site))
    return [wheel.name for wheel in wheels]


def small_plan(module: Any, capability: str) -> bytes:
    """Build the plan of a 1x1 convolution, for one compute capability or for the one of this GPU."""

    class Logger(module.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            pass

    builder = module.Builder(Logger())
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    tensor = network.add_input("z_0", module.float32, (-1, 4, -1, -1))
    layer = network.add_convolution_nd(tensor, 3, (1, 1), module.Weights(weights()), module.Weights())
    layer.get_output(0).name = "image"
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("z_0", (1, 4, 8, 8), (1, 4, 16, 16), (2, 4, 32, 32))
    config.add_optimization_profile(profile)
    if capability != "default":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(module.ComputeCapability, capability), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"no plan for {capability}")
    return bytes(plan)


def weights() -> np.ndarray:
    return np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4, 1, 1)


def run_plan(raw: bytes) -> dict[str, Any]:
    """Deserialise and run a plan through the adapter of the back end; compare with NumPy."""
    from yonos_trt.cuda.device import Memory
    from yonos_trt.cuda.driver import CudaDriver
    from yonos_trt.engine.manifest import Artifact, identity_manifest
    from yonos_trt.trt.engines import Engine
    from yonos_trt.trt.module import TensorRT

    artifact = Artifact(
        runtime="tensorrt-rtx",
        precision="fp32",
        file="small.engine",
        sha256=hashlib.sha256(raw).hexdigest(),
        bytes=len(raw),
    )
    driver = CudaDriver()
    driver.activate()
    engine = Engine(
        TensorRT("tensorrt-rtx"), "decoder", identity_manifest().stages.decoder, artifact, raw, cache=None
    )
    context, memory, stream = engine.context(), Memory(driver), driver.stream_create()
    given = np.random.default_rng(0).standard_normal((2, 4, 16, 24)).astype(np.float32)
    out_bytes = 2 * 3 * 16 * 24 * 4
    scratch = context.set_shapes({"z_0": given.shape}, stream)
    context.set_memory(memory.device("scratch", max(scratch, 256)), max(scratch, 256))
    context.bind("z_0", memory.device("z_0", given.nbytes))
    context.bind("image", memory.device("image", out_bytes))
    pinned = memory.pinned("host", given.nbytes)
    driver.host_view(pinned, given.nbytes)[:] = given.reshape(-1).view(np.uint8)
    driver.copy_in(memory.device("z_0", 1), pinned, given.nbytes, stream)
    context.enqueue(stream)
    capturable = context.capturable(stream)
    driver.copy_out(pinned, memory.device("image", 1), out_bytes, stream)
    event = driver.event_create()
    driver.event_record(event, stream)
    driver.event_synchronize(event)
    got = driver.host_view(pinned, out_bytes).view(np.float32).reshape(2, 3, 16, 24)
    expected = np.einsum("oc,nchw->nohw", weights()[:, :, 0, 0], given)
    error = float(np.abs(got - expected).max())
    memory.free_all()
    if error > 1e-2:  # TF32 may be used in a convolution
        raise AssertionError(f"largest error {error}, expected below 1e-2")
    return {
        "plan_bytes": len(raw),
        "scratch_bytes": scratch,
        "largest_error": error,
        "capturable": capturable,
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wheels", type=Path, help="folder of wheels, whole or in parts")


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Load TensorRT-RTX and run small engines built for several compute capabilities."""
    result: dict[str, Any] = {"wheels": install(chosen.wheels) if chosen.wheels else []}
    import tensorrt_rtx

    result["version"] = str(tensorrt_rtx.__version__)
    result["engines"] = {}
    for capability in ("default", "CURRENT", "SM80", "SM86", "SM89", "SM120"):
        try:
            outcome: dict[str, Any] = {"runs": True, **run_plan(small_plan(tensorrt_rtx, capability))}
        except Exception as error:
            outcome = {"runs": False, "why": f"{type(error).__name__}: {error}"}
        result["engines"][capability] = outcome
    if not any(outcome["runs"] for outcome in result["engines"].values()):
        raise RuntimeError(f"no engine runs on this GPU: {result['engines']}")
    return result


if __name__ == "__main__":
    sys.exit(steps.main("01_tensorrt_rtx", run, options))
