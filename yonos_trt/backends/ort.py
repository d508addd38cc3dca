"""`OrtBackend`: the three stages as ONNX Runtime sessions, the tile kernels on the host.

The CPU execution provider is the default; any other provider of the installed ONNX Runtime can be named.
There is one session per stage: `InferenceSession.run` may be called from several threads, so all lanes share
the weights and one thread pool.
"""

from __future__ import annotations

import contextvars
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yonos_trt.backends.base import Array, stage
from yonos_trt.backends.host import HostBackend
from yonos_trt.backends.ort_providers import CPU_PROVIDER, Provider, Providers, check
from yonos_trt.backends.telemetry import import_onnxruntime
from yonos_trt.choices import PRECISIONS
from yonos_trt.engine.manifest import Artifact, EngineManifest, Precision, Stage, load_manifest
from yonos_trt.engine.onnx_graph import LARGEST_MODEL_BYTES, Graph, read_graph
from yonos_trt.engine.restore import dial_of
from yonos_trt.errors import (
    EngineDeviceError,
    EngineIntegrityError,
    EngineNotFoundError,
    ManifestError,
    OutOfMemoryError,
)
from yonos_trt.host import usable_cpus

if TYPE_CHECKING:
    import onnxruntime

    from yonos_trt.tiles.plan import TileBatch, TilePlan

__all__ = ["CPU_PROVIDER", "OrtBackend", "pick_onnx"]

_log = logging.getLogger(__name__)

# Hands over external data that is too large for one message; older ONNX Runtimes lack it.
_FILES_IN_MEMORY = "add_external_initializers_from_files_in_memory"
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_GRAPHS = 16
"""Shapes whose places are kept."""
# How ONNX Runtime's providers word a failed allocation.
_MEMORY_WORDS = ("failed to allocate memory", "bad_alloc", "out of memory", "bad allocation")


def pick_onnx(
    manifest: EngineManifest,
    engine_dir: Path,
    precision: Precision | None = None,
    *,
    restore: float | None = None,
    best: Precision = "fp32",
) -> dict[str, Artifact]:
    """Choose an ONNX artifact for every stage: `precision`, or else `best` before fp32, fp16 and bf16.

    Of a model with a dial, the graph must have one or be made where `restore` wants it.

    Raises
    ------
    EngineNotFoundError
        A stage has no such artifact; the message names the command that makes it.
    """
    wanted = (precision,) if precision else (best, *(p for p in PRECISIONS if p != best))
    picked: dict[str, Artifact] = {}
    for name, network in manifest.stages.items():
        for candidate in wanted:
            found = network.find("onnx", candidate)
            if fitting := [a for a in found if a.dial is not None or (a.restore or 0.0) == (restore or 0.0)]:
                picked[name] = fitting[0]
                break
            if found and precision:
                raise EngineNotFoundError(
                    f"the {precision} graph of the stage {name} in {engine_dir} was made with restore = "
                    f"{found[0].restore or 0.0}, wanted is {restore}; make another with: yonos-export "
                    f"{engine_dir} --engine-dir {engine_dir} --{precision} --onnx-only --restore {restore}"
                )
        else:
            have = ", ".join(f"{a.runtime} {a.precision}" for a in network.artifacts) or "nothing"
            flag = f"--{precision or 'fp32'}"
            raise EngineNotFoundError(
                f"{engine_dir} has no ONNX {precision or 'graph'} for the stage {name} (it has: {have}); "
                f"make one with: yonos-export CHECKPOINT --engine-dir {engine_dir} {flag} --onnx-only"
            )
    return picked


class OrtBackend(HostBackend):
    """Run an engine directory's ONNX graphs.

    Parameters
    ----------
    engine_dir
        The engine directory.
    manifest
        Its manifest, if it was loaded already.
    precision
        Which artifacts to take; None takes fp32 where there is one.
    providers
        ONNX Runtime execution providers, names or ``(name, options)``, best first.
    threads
        Threads of the networks, over all lanes, and of the tile kernels; None takes all usable CPUs.
    lanes
        How many tile batches may be inside the sessions at once; each has ``threads / lanes`` threads. Tiles
        side by side cost fewer CPU seconds than one tile split over the threads (docs/benchmarks.md), but
        a picture of one tile then has one lane's threads.
    kernels
        "native" (falls back to NumPy where not built) or "numpy".
    restore
        Where the dial of the graphs stands, 0 to 1; None: the model's default.
    device
        CUDA device number, for the providers of NVIDIA GPUs.

    Raises
    ------
    ConfigError
        A provider is not part of the installed ONNX Runtime, or none is named.
    EngineDeviceError
        ONNX Runtime does without a provider that was named. With the CPU's named as well this is a warning.
    EngineNotFoundError, EngineIntegrityError, ManifestError
        An artifact is not there, was altered, cannot be opened, or has other tensors than the manifest says.
    """

    def __init__(
        self,
        engine_dir: str | os.PathLike[str],
        manifest: EngineManifest | None = None,
        *,
        precision: Precision | None = None,
        providers: Sequence[Provider] = (CPU_PROVIDER,),
        threads: int | None = None,
        lanes: int = 1,
        kernels: str = "native",
        restore: float | None = None,
        device: int = 0,
    ) -> None:
        root = Path(engine_dir)
        threads = threads or usable_cpus()
        super().__init__(
            manifest or load_manifest(root, verify=False), lanes=lanes, kernels=kernels, threads=threads
        )
        ort = import_onnxruntime()
        self._providers = Providers(ort, providers, device=device)
        self.any_tile = self._providers.memory is None  # kernels are chosen for one shape
        self.restore = dial_of(self.manifest, restore)
        best: Precision = "fp32" if self._providers.memory is None else "fp16"
        picked = pick_onnx(self.manifest, root, precision, restore=self.restore, best=best)
        self.precision: Precision = picked["step"].precision
        sessions: dict[str, _Session] = {}
        for name, artifact in picked.items():
            graph = read_graph(root, artifact, restore=self.restore)
            network = getattr(self.manifest.stages, name)
            sessions[name] = _Session(
                name, graph, network, self.manifest, self._providers, max(1, threads // lanes)
            )
        self.networks = {**sessions}
        # Sessions with CUDA graphs take calls of one thread only, always the same.
        self._on_device = self._providers.memory is not None and all(
            self._providers.names[0] in session.providers for session in sessions.values()
        )
        captures = any(session.captures for session in sessions.values())
        self._worker = ThreadPoolExecutor(1, "yonos-ort") if captures else None
        found = [session.providers for session in sessions.values()]
        self.providers = tuple(name for name in found[0] if all(name in names for names in found))
        """The execution providers that the sessions have, which may be fewer than were named."""
        _log.info(
            "opened %s with ONNX Runtime %s: %s, %d threads, %d lanes, %s kernels",
            self.manifest.model.name, ort.__version__, ", ".join(self.providers), threads, lanes,
            self.kernels.name,
        )  # fmt: skip

    def run(self, source: Any, plan: TilePlan, batch: TileBatch, seed: int, lane: int) -> Any:
        """See `HostBackend.run`; on a GPU latents stay there between the networks, and only tiles come back.

        There the time of all three counts as "decode". Tiles that are not finite run again, one network after
        the other on the host, which tells the one that spoilt them.
        """
        on_host = partial(super().run, source, plan, batch, seed, lane)
        if not self._on_device:
            return self._on_worker(on_host)
        encoder, step, decoder = (self._session(name) for name in ("encoder", "step", "decoder"))
        if encoder.gives != step.takes["z_l"] or step.gives != decoder.takes["z_0"]:
            return self._on_worker(on_host)
        with stage("gather"):
            image = self.gather(source, plan, batch, lane=lane)
        with stage("noise"):
            noise = self.noise(plan, batch, seed=seed, lane=lane)

        def networks() -> Array:
            if not (encoder.replays and step.replays and decoder.replays):
                for session in (encoder, step, decoder):  # addresses change with every batch then
                    session.without_graphs()
            z_l = encoder.bound(image, keep=True)
            z_0 = step.bound(*((z_l,) if len(step.takes) == 1 else (noise, z_l)), keep=True)
            found: Array = decoder.bound(z_0, keep=False)
            return found.astype(np.float32, copy=False)

        with stage("decode"):
            tiles = self._on_worker(networks)
        if not np.isfinite(tiles[: batch.live]).all():
            return self._on_worker(on_host)
        return tiles

    def _on_worker(self, work: Callable[[], Any]) -> Any:
        if self._worker is None:
            return work()
        return self._worker.submit(contextvars.copy_context().run, work).result()  # with the stages' clock

    def close(self) -> None:
        """See `HostBackend.close`."""
        super().close()
        if self._worker is not None:
            self._worker.shutdown()

    def _session(self, name: str) -> _Session:
        session = self._network(name)
        assert isinstance(session, _Session)
        return session


@dataclass(frozen=True, slots=True)
class _Places:
    """Inputs and output of one shape at fixed addresses on the device, as a CUDA graph needs them."""

    binding: Any
    inputs: dict[str, Any]
    output: Any
    number: int


class _Session:
    """One opened graph, checked against the manifest."""

    def __init__(
        self,
        name: str,
        graph: Graph,
        stage: Stage,
        manifest: EngineManifest,
        providers: Providers,
        threads: int,
    ) -> None:
        ort = self._ort = import_onnxruntime()
        path, model, in_memory = graph.path, graph.model, False
        if graph.external:
            in_memory = graph.nbytes > LARGEST_MODEL_BYTES and hasattr(ort.SessionOptions, _FILES_IN_MEMORY)
            model = model if in_memory else graph.inlined()

        def options() -> Any:
            made = ort.SessionOptions()
            made.intra_op_num_threads = threads
            made.inter_op_num_threads = 1
            made.log_severity_level = 3
            # Threads that wait for work would spin: through the time of the tile kernels, and against other
            # processes (on two cores with other work it doubled wall and CPU time, measured 2026-11-21).
            made.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
            made.add_session_config_entry("session.load_model_format", "ONNX")
            if in_memory:
                names, files = list(graph.external), list(graph.external.values())
                getattr(made, _FILES_IN_MEMORY)(names, files, list(map(len, files)))
            return made

        try:
            self._session: onnxruntime.InferenceSession = providers.open(
                model, options, compiled=not in_memory
            )
        except EngineDeviceError:
            raise
        except Exception as error:
            if any(words in str(error).lower() for words in _MEMORY_WORDS):
                raise OutOfMemoryError(
                    f"ONNX Runtime ran out of memory when it opened {path}", asked_bytes=graph.nbytes
                ) from error
            raise EngineIntegrityError(
                f"ONNX Runtime {ort.__version__} cannot open {path}: {_first_line(error)}; "
                "export the model again with this yonos-export, or update onnxruntime"
            ) from error
        self._name = name
        self.providers: list[str] = self._session.get_providers()
        check(path, providers.names, self.providers)
        self._device = (providers.memory or "cpu", providers.device)
        self.captures = self.replays = providers.graphs and providers.names[0] in self.providers
        self._places: dict[Any, _Places] = {}
        self._made = 0
        inputs = [(i.name, i.shape, i.type) for i in self._session.get_inputs()]
        outputs = [(o.name, o.shape, o.type) for o in self._session.get_outputs()]
        for kind, found, wanted in (("inputs", inputs, stage.inputs), ("outputs", outputs, stage.outputs)):
            if sorted(n for n, _, _ in found) != sorted(t.name for t in wanted):
                raise ManifestError(
                    f"{path} has the {kind} {[n for n, _, _ in found]}, the manifest says "
                    f"{[t.name for t in wanted]}; export the model again"
                )
            for tensor in wanted:
                shape, dtype = next((s, t) for n, s, t in found if n == tensor.name)
                channels = manifest.model.channels(tensor.name)
                if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != channels):
                    raise ManifestError(
                        f"{path}: {tensor.name} has the shape {shape}, expected (N, {channels}, h, w); "
                        "export the model again"
                    )
                if dtype not in _DTYPES:
                    raise ManifestError(
                        f"{path}: {tensor.name} is {dtype}, expected one of {', '.join(_DTYPES)}; "
                        "export the model again"
                    )
        types = {n: _DTYPES[t] for n, _, t in inputs}
        self._inputs = [(t.name, types[t.name]) for t in stage.inputs]
        self._outputs = [stage.outputs[0].name]
        self.takes = dict(self._inputs)
        self.gives = _DTYPES[outputs[0][2]]

    def __call__(self, lane: int, *arrays: Array) -> Array:
        feed = {
            name: np.ascontiguousarray(array, dtype)
            for (name, dtype), array in zip(self._inputs, arrays, strict=True)
        }
        with self._errors(feed):
            result: Array = self._session.run(self._outputs, feed, self._graph(-1))[0]
            return result.astype(np.float32, copy=False) if self._name == "decoder" else result

    def bound(self, *values: Any, keep: bool) -> Any:
        """Run on arrays of the host or values that `keep` left on the device; return the same."""
        feed = {
            name: np.ascontiguousarray(value, dtype) if isinstance(value, np.ndarray) else value
            for (name, dtype), value in zip(self._inputs, values, strict=True)
        }
        with self._errors({n: v for n, v in feed.items() if isinstance(v, np.ndarray)}):
            if self.replays:
                try:
                    output = self._replayed(feed)
                    if keep:
                        return output
                    found = output.numpy()  # of the host's own memory a view, where the next run writes
                    return found.copy() if output.device_name() == "cpu" else found
                except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
                    if any(words in str(error).lower() for words in _MEMORY_WORDS):
                        self._places.clear()
                        raise
                    _log.warning("the %s runs without CUDA graphs: %s", self._name, _first_line(error))
                    self.without_graphs()
            binding = self._session.io_binding()
            for name, value in feed.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, value)
                else:
                    binding.bind_ortvalue_input(name, value)
            if keep:
                binding.bind_output(self._outputs[0], *self._device)
            else:
                binding.bind_output(self._outputs[0])
            self._session.run_with_iobinding(binding, self._graph(-1))
            return binding.get_outputs()[0] if keep else binding.copy_outputs_to_cpu()[0]

    def without_graphs(self) -> None:
        """Run every batch as it comes, and hold nothing on the device between them."""
        self.replays = False
        self._places.clear()

    def _replayed(self, feed: dict[str, Any]) -> Any:
        """Run by a CUDA graph of this shape, whose inputs and output keep their addresses; return the output.

        The first run of a shape is not captured: it allocates the output and lets libraries do their set-up.
        """
        key = tuple(v.shape if isinstance(v, np.ndarray) else v.data_ptr() for v in feed.values())
        places = self._places.get(key)
        if places is None:
            if len(self._places) == _GRAPHS:  # graphs cannot be given back one by one
                self._places.pop(next(iter(self._places)))
            self._made += 1
            binding, name = self._session.io_binding(), self._outputs[0]
            inputs = {
                n: self._ort.OrtValue.ortvalue_from_numpy(v, *self._device)
                if isinstance(v, np.ndarray)
                else v
                for n, v in feed.items()
            }
            for n, value in inputs.items():
                binding.bind_ortvalue_input(n, value)
            binding.bind_output(name, *self._device)
            self._session.run_with_iobinding(binding, self._graph(-1))
            output = binding.get_outputs()[0]
            binding.clear_binding_outputs()
            binding.bind_ortvalue_output(name, output)
            self._places[key] = _Places(binding, inputs, output, self._made)
            return output
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                places.inputs[name].update_inplace(value)
        self._session.run_with_iobinding(places.binding, self._graph(places.number))
        return places.output

    def _graph(self, number: int) -> Any:
        """Return the options of a run by the CUDA graph of this number; -1: by none."""
        if not self.captures:
            return None
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        return options

    @contextmanager
    def _errors(self, feed: dict[str, Array]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            text = str(error).lower()
            if any(words in text for words in _MEMORY_WORDS):
                asked = sum(a.nbytes for a in feed.values())
                shapes = [a.shape for a in feed.values()]
                raise OutOfMemoryError(
                    f"the {self._name} ran out of memory on tiles of {shapes[0] if shapes else 'latents'} "
                    f"({asked} bytes in)"
                ) from error
            raise EngineIntegrityError(
                f"ONNX Runtime failed in the {self._name} on {[a.shape for a in feed.values()]}: "
                f"{_first_line(error)}; choose a tile size between the manifest's smallest and largest, "
                "or export the model again"
            ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
