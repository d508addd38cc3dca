"""The parity gate: reference = ONNX Runtime, stage by stage and end to end, on fixed pictures.

Each stage of the candidate is fed with the reference's own inputs, so that a stage answers only for itself;
the end-to-end figure lets the candidate's three stages feed each other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yonos_export.samples import Sample
from yonos_export.thresholds import Thresholds
from yonos_trt.backends.telemetry import import_onnxruntime
from yonos_trt.engine.manifest import STAGE_TENSORS, StageParity
from yonos_trt.errors import BuildError

if TYPE_CHECKING:
    from yonos_export.stages import StageSet

log = logging.getLogger(__name__)

Float = NDArray[np.float32]
# name of input -> array  =>  the stage's output
StageFunction = Callable[[Mapping[str, Float]], Float]
# stage -> (its inputs by name, its output)
Chain = dict[str, tuple[dict[str, Float], Float]]


# ---------------------------------------------------------------------------------------------------------
# Figures


@dataclass(frozen=True)
class Figures:
    """Difference between a candidate and the reference, over all samples.

    Attributes
    ----------
    max_error
        Largest absolute difference; infinite when the candidate has NaN or infinity.
    psnr_db
        Peak = range of the reference (2 for finished tiles); infinite when equal.
    cosine
        Smallest cosine similarity of any sample.
    """

    max_error: float
    psnr_db: float
    cosine: float

    def record(self) -> StageParity:
        """Return the figures as the manifest keeps them."""
        return StageParity(
            max_error=self.max_error,
            psnr_db=None if math.isinf(self.psnr_db) else self.psnr_db,
            cosine=self.cosine,
        )


def compare(pairs: Sequence[tuple[Float, Float]], *, peak: float | None = None) -> Figures:
    """Compare ``(reference, candidate)`` arrays; the worst cosine and error, the PSNR of all together."""
    error, squares, count, cosine = 0.0, 0.0, 0, 1.0
    low, high = math.inf, -math.inf
    for reference, candidate in pairs:
        a, b = reference.astype(np.float64), candidate.astype(np.float64)
        if not np.isfinite(b).all():
            return Figures(math.inf, -math.inf, 0.0)
        difference = a - b
        error = max(error, float(np.abs(difference).max()))
        squares, count = squares + float((difference**2).sum()), count + difference.size
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = min(cosine, float((a * b).sum()) / norm if norm else float(np.array_equal(a, b)))
        low, high = min(low, float(a.min())), max(high, float(a.max()))
    span = peak or max(high - low, 1e-12)
    psnr = math.inf if squares == 0 else 10 * math.log10(span**2 / (squares / count))
    return Figures(error, psnr, cosine)


@dataclass(frozen=True)
class ParityReport:
    """Figures per stage, and of the finished tiles (clamped to [-1, 1])."""

    stages: dict[str, Figures]
    end_to_end: Figures

    def failures(self, limits: Thresholds) -> list[str]:
        """List what misses the limits, one sentence each."""
        missed = []
        for stage, figures in self.stages.items():
            if not figures.cosine >= limits.cosine:
                missed.append(f"{stage}: cosine {figures.cosine:.6f}, at least {limits.cosine} asked for")
            if not figures.psnr_db >= limits.stage_psnr_db:
                missed.append(
                    f"{stage}: PSNR {figures.psnr_db:.1f} dB, at least {limits.stage_psnr_db} asked for"
                )
        if not self.end_to_end.psnr_db >= limits.end_to_end_psnr_db:
            missed.append(
                f"end to end: PSNR {self.end_to_end.psnr_db:.1f} dB, at least {limits.end_to_end_psnr_db} "
                "asked for"
            )
        return missed


# ---------------------------------------------------------------------------------------------------------
# Running stages


def run_chains(stages: Mapping[str, StageFunction], samples: Sequence[Sample]) -> list[Chain]:
    """Run the three stages on every sample; return stage -> (its inputs, its output) of each.

    Stage by stage: each is asked for once, and not at all where there are no samples.
    """
    chains: list[Chain] = [{} for _ in samples]
    for stage in STAGE_TENSORS if samples else ():
        feeds = [_feed(stage, chain, sample) for chain, sample in zip(chains, samples, strict=True)]
        for chain, feed, output in zip(chains, feeds, _outputs(stages[stage], feeds), strict=True):
            chain[stage] = (feed, output)
    return chains


def _feed(stage: str, chain: Chain, sample: Sample) -> dict[str, Float]:
    """Return what a stage reads: the sample, or what the stages before it made."""
    if stage == "encoder":
        return {"image": sample.image}
    if stage == "decoder":
        return {"z_0": chain["step"][1]}
    z_l = chain["encoder"][1]
    return {"z_l": z_l} if sample.noise is None else {"noise": sample.noise, "z_l": z_l}


def _outputs(function: StageFunction, feeds: Sequence[Mapping[str, Float]]) -> list[Float]:
    return [function(feed) for feed in feeds]


def measure(
    expected: Sequence[Chain], candidate: Mapping[str, StageFunction], samples: Sequence[Sample]
) -> ParityReport:
    """Measure a candidate against what the reference made of the same samples (`run_chains`)."""
    pairs: dict[str, list[tuple[Float, Float]]] = {}
    chained: list[Chain] = [{} for _ in samples]
    for stage in STAGE_TENSORS:
        alone = [chain[stage][0] for chain in expected]
        fed = [_feed(stage, chain, sample) for chain, sample in zip(chained, samples, strict=True)]
        made = _outputs(candidate[stage], [*alone, *fed])
        pairs[stage] = [(c[stage][1], output) for c, output in zip(expected, made[: len(alone)], strict=True)]
        for chain, feed, output in zip(chained, fed, made[len(alone) :], strict=True):
            chain[stage] = (feed, output)
    whole: list[tuple[Float, Float]] = []
    for chain, own in zip(expected, chained, strict=True):
        got = own["decoder"][1]
        finite = np.where(np.isfinite(got), np.clip(got, -1, 1), got)
        whole.append((np.clip(chain["decoder"][1], -1, 1), finite))
    report = ParityReport({stage: compare(p) for stage, p in pairs.items()}, compare(whole, peak=2.0))
    for stage, figures in (*report.stages.items(), ("end to end", report.end_to_end)):
        log.info(
            "%s: largest error %.3g, PSNR %.1f dB, cosine %.7f",
            stage,
            figures.max_error,
            figures.psnr_db,
            figures.cosine,
        )
    return report


def gate(report: ParityReport, limits: Thresholds, *, what: str) -> None:
    """Fail an export that misses its limits.

    Raises
    ------
    BuildError
        Lists every figure that misses its limit.
    """
    if missed := report.failures(limits):
        raise BuildError(
            f"{what} does not agree with the reference: {'; '.join(missed)}. Nothing was written. Keep "
            "the worst "
            "layers in FP32 with --fp32-islands, use --bf16 or --fp32, or lower the thresholds if that is "
            "meant"
        )


def functions_from_torch(stages: StageSet) -> dict[str, StageFunction]:
    """Wrap the torch stages as functions of arrays."""
    import torch

    def wrap(module: torch.nn.Module, names: tuple[str, ...]) -> StageFunction:
        def run(inputs: Mapping[str, Float]) -> Float:
            with torch.no_grad():
                output: Float = module(*(torch.from_numpy(inputs[n]) for n in names)).numpy()
            return output

        return run

    tensors = stages.info.stage_tensors
    return {stage: wrap(stages.module(stage), names) for stage, (names, _) in tensors.items()}


def functions_from_onnx(files: Mapping[str, Path], *, optimise: bool = True) -> Mapping[str, StageFunction]:
    """Return one ONNX graph per stage as functions of arrays, run by ONNX Runtime on the CPU.

    A graph is opened when its stage is asked for, and closed when another one is and nobody holds its
    function any more; ``dict(...)`` of the result holds all three. ``optimise=False`` runs the graphs node by
    node as they are written, so that a rounding in the graph is a rounding in the result. A graph that ONNX
    Runtime refuses is a `BuildError`.
    """
    return _OnnxStages(files, optimise=optimise)


class _OnnxStages(Mapping[str, StageFunction]):
    def __init__(self, files: Mapping[str, Path], *, optimise: bool) -> None:
        self._files, self._optimise = dict(files), optimise
        self._open: tuple[str, StageFunction] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, stage: str) -> StageFunction:
        path = self._files[stage]
        if self._open is None or self._open[0] != stage:
            self._open = None  # the memory of two networks at once is what a full-size export cannot spare
            self._open = stage, _function(stage, path, optimise=self._optimise)
        return self._open[1]


def _function(stage: str, path: Path, *, optimise: bool) -> StageFunction:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BuildError(f"ONNX Runtime cannot open the {stage} graph {path.name}: {error}") from error
    output = STAGE_TENSORS[stage][1][0]

    def run(inputs: Mapping[str, Float]) -> Float:
        result: Float = session.run([output], dict(inputs))[0]
        return result

    return run
