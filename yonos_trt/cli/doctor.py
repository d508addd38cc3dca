"""What this machine can run: versions, CPUs, native kernels, ONNX Runtime, driver, GPUs, TensorRT, models."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import yonos_trt
from yonos_trt.backends.choose import RTX, cpu_runtime, shipped_models
from yonos_trt.backends.ort_providers import CPU_PROVIDER
from yonos_trt.backends.telemetry import import_onnxruntime
from yonos_trt.choices import TENSORRT_MODULES
from yonos_trt.cuda.probe import probe_driver
from yonos_trt.errors import install_command
from yonos_trt.host import has_bf16, python_command, usable_cpus
from yonos_trt.tiles.kernels import HOW_TO_COMPILE, host_kernels

_IMPORT_TIMEOUT_S = 60.0
# An ONNX graph of one node, Identity: what a provider has to open to count as usable.
_IDENTITY = (
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001011"
)
_BOTH_WHEELS = (
    "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; keep one, for a "
    "GPU: pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
_FASTER = 1.15  # times as fast, and more, is worth a line
_TIMED_PX = 128  # side of the result that is timed: one small tile
_OPTIONAL = (("av", "video"), ("pyvips", "images"), ("tifffile", "images"), ("openvino", "openvino"))


def examine() -> dict[str, Any]:
    """Collect the facts as plain data; never raises, never hangs (a child process asks the driver)."""
    driver = probe_driver()
    return {
        "yonos_trt": yonos_trt.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": {"present": os.cpu_count(), "usable": usable_cpus()},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "kernels": host_kernels().name,
        "onnxruntime": _onnxruntime(),
        "driver": {
            "cuda": driver.version,
            "problem": driver.problem,
            "gpus": [
                {"index": d.index, "name": d.name, "compute_capability": d.compute_capability,
                 "memory_bytes": d.memory_bytes}
                for d in driver.devices
            ],
        },
        "tensorrt": {name: _imports(name) for name, _ in TENSORRT_MODULES.values()},
        "training": _training(),
        "speed": _speed(),
        "optional": {name: _is_there(name) for name, _ in _OPTIONAL},
        "models": {name: str(path) for name, path in shipped_models().items()},
    }  # fmt: skip


def _onnxruntime() -> dict[str, Any]:
    try:
        onnxruntime = import_onnxruntime()
        known = onnxruntime.get_available_providers()
    except (ImportError, AttributeError) as error:
        return {"version": None, "providers": [], "not_loading": {}, "problem": str(error)}
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    answers = {name: "" if name == CPU_PROVIDER else _provider(name) for name in known}
    return {
        "version": onnxruntime.__version__,
        "providers": [name for name, problem in answers.items() if not problem],
        "not_loading": {name: problem for name, problem in answers.items() if problem},
        "problem": _BOTH_WHEELS if len(both) == 2 else "",
    }


def _installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def _training() -> dict[str, Any]:
    """Measure training in a child process, as long as torch takes to come up and a second."""
    if not (_is_there("torch") and _is_there("yonos_train")):
        return {"problem": "not installed"}
    code = (
        "import json; from yonos_train.preflight import training_speed; print(json.dumps(training_speed()))"
    )
    facts, problem = _said(python_command(code, package=True))
    return {**json.loads(facts), "problem": ""} if facts else {"problem": problem}


def _speed() -> dict[str, Any]:
    """Time what runs the networks on this CPU, in a child process, for about a second."""
    code = "import json; from yonos_trt.cli.doctor import runtime_speeds; print(json.dumps(runtime_speeds()))"
    said, problem = _said(python_command(code, package=True))
    measured = json.loads(said) if said else {}
    return {"bf16": has_bf16(), "auto": cpu_runtime(), "s_per_mpx": measured, "problem": problem}


def runtime_speeds() -> dict[str, dict[str, Any]]:
    """Return runtime -> its precision, and seconds per megapixel of the result with a shipped model.

    Those that are installed take turns, so that what else the machine does meets all of them; the best of
    their turns counts.
    """
    import time

    import numpy as np

    from yonos_trt.sr import SR

    names = ["onnx", *(["openvino"] if _is_there("openvino") else [])]
    opened = {name: SR(runtime=name).open() for name in names}
    side = max(1, _TIMED_PX // opened["onnx"].scale)
    mpx = (side * opened["onnx"].scale) ** 2 / 1e6
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    best = dict.fromkeys(names, float("inf"))
    for sr in opened.values():
        sr.upscale(image)
    end_s = time.perf_counter() + 0.7
    turns = 0
    while turns < 2 or time.perf_counter() < end_s:
        for name, sr in opened.items():
            began = time.perf_counter()
            sr.upscale(image)
            best[name] = min(best[name], time.perf_counter() - began)
        turns += 1
    return {
        name: {"precision": sr.info()["computes_in"], "s_per_mpx": round(best[name] / mpx, 2)}
        for name, sr in opened.items()
    }


def _provider(name: str) -> str:
    """Open a small graph with a provider in a child process; return why it does not load, or nothing."""
    code = (
        f"from yonos_trt.backends.telemetry import import_onnxruntime; o = import_onnxruntime()\n"
        f"s = o.InferenceSession(bytes.fromhex({_IDENTITY!r}), providers=[{name!r}])\n"
        f"print(s.get_providers()[0])"
    )
    got, problem = _said(python_command(code, package=True))
    return "" if got == name else problem or f"the session comes up on {got} instead"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _imports(module: str) -> dict[str, Any]:
    """Import a TensorRT module in a child process, so that whatever goes wrong stays there."""
    if not _is_there(module):
        return {"version": None, "problem": "not installed"}
    version, problem = _said(python_command(f"import {module}; print({module}.__version__)"))
    return {"version": version or None, "problem": problem}


def _said(command: list[str]) -> tuple[str, str]:
    """Return what a child process printed last, and why not."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        if isinstance(error, subprocess.TimeoutExpired):
            return "", f"not known: it took more than {_IMPORT_TIMEOUT_S:.0f} s; try again on an idle machine"
        return "", f"cannot start Python: {error}"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["failed"])[-1]
    return (done.stdout.strip().splitlines() or [""])[-1], ""


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """Turn the facts into lines for a person, with what to do about each gap."""
    yield f"yonos-trt      {facts['yonos_trt']}, Python {facts['python']}, {facts['system']}"
    try:
        yield f"packages       numpy {metadata.version('numpy')}, pillow {metadata.version('pillow')}"
    except metadata.PackageNotFoundError as error:
        yield f"packages       {error.name} is missing: {install_command()}"
    cpus, omp = facts["cpus"], facts["omp_num_threads"]
    limited = f", OMP_NUM_THREADS={omp}" if omp else ""
    yield f"CPUs           {cpus['usable']} usable of {cpus['present']}{limited}"
    slow = "" if facts["kernels"] == "native" else f" (slow); the compiled ones {HOW_TO_COMPILE}"
    yield f"tile kernels   {facts['kernels']}{slow}"
    ort = facts["onnxruntime"]
    if ort["version"]:
        yield f"ONNX Runtime   {ort['version']}: {', '.join(ort['providers'])}"
        if ort["problem"]:
            yield f"               {ort['problem']}"
        for name, problem in ort["not_loading"].items():
            yield f"               {name} does not load: {problem}"
    else:
        yield f"ONNX Runtime   cannot be imported ({ort['problem']}): pip install onnxruntime"
    driver = facts["driver"]
    yield f"NVIDIA driver  {'CUDA ' + driver['cuda'] if driver['cuda'] else driver['problem']}"
    for gpu in driver["gpus"]:
        memory = gpu["memory_bytes"] / 2**30
        yield f"GPU {gpu['index']}          {gpu['name']}, {gpu['compute_capability']}, {memory:.1f} GiB"
    for module, extra in TENSORRT_MODULES.values():
        found = facts["tensorrt"][module]
        state = found["version"] or f"{found['problem']}: {install_command(extra)}"
        yield f"{module:<14} {state}"
    training = facts["training"]
    if training["problem"]:
        remedy = "" if "idle machine" in training["problem"] else f": {install_command('train')}"
        yield f"training       {training['problem']}{remedy}"
    else:
        yield (
            f"training       {training['precision']}, {training['images_per_s']} images/s a U-Net step of "
            f"the lite preset ({training['threads']} threads)"
        )
    yield from _speed_lines(facts)
    missing = [f"{name} (extra {extra!r})" for name, extra in _OPTIONAL if not facts["optional"][name]]
    yield f"not installed  {', '.join(missing) or 'nothing optional'}"
    yield f"models         {', '.join(facts['models']) or 'none in this installation'}"


def _speed_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Say what this CPU does, and which extra would make the machine faster."""
    speed = facts["speed"]
    measured = speed["s_per_mpx"]
    if not measured:
        yield f"speed          not measured: {speed['problem']}"
    else:
        each = [f"{name} ({x['precision']}) {x['s_per_mpx']:.1f}" for name, x in measured.items()]
        yield f"speed          {', '.join(each)} s per megapixel, just measured; auto: {speed['auto']}"
    advice = []
    if "openvino" in measured:
        gain = measured["onnx"]["s_per_mpx"] / max(measured["openvino"]["s_per_mpx"], 1e-9)
        if gain >= _FASTER and speed["auto"] == "onnx":
            advice.append(f"--runtime openvino is {gain:.1f} times as fast as auto here")
        elif gain >= _FASTER:
            advice.append(f"openvino, {gain:.1f} times as fast as onnx, is in use")
    elif speed["bf16"]:
        advice.append(
            f"this CPU computes in bfloat16, which openvino uses: {install_command('openvino')}; then this "
            "command measures by how much"
        )
    if facts["driver"]["gpus"] and not any(x["version"] for x in facts["tensorrt"].values()):
        rtx = facts["driver"]["gpus"][0]["compute_capability"] in RTX
        extra = "rtx" if rtx else "tensorrt"
        advice.append(f"the GPU is idle: {install_command(extra)}; what it gains `yonos bench` measures then")
    yield f"faster         {'; '.join(advice) or 'no extra would make this machine faster'}"
