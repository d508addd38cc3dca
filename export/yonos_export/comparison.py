"""What NVIDIA's Polygraphy needs to repeat the gate's comparison on another machine's GPU.

Beside each stage's FP16 or BF16 graph lie ``STAGE.inputs.json``, one verification tile, and
``STAGE.outputs.json``, what the FP32 reference makes of it; `command` is what a user runs there. Polygraphy
lets engines run code on the host: it is for comparing what one has built oneself, never for loading engines.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from yonos_export.verify import Chain
from yonos_trt.engine.manifest import STAGE_TENSORS
from yonos_trt.engine.schema import EngineManifest

log = logging.getLogger(__name__)


def comparison_files(chain: Chain) -> dict[str, bytes]:
    """Return file name -> Polygraphy JSON of each stage's inputs and FP32 outputs, of one tile.

    Without the package polygraphy there are none, and the log says so.
    """
    try:
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
    except ImportError as error:
        log.warning("no files for Polygraphy to compare with: %s; pip install polygraphy", error)
        return {}
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="yonos-") as folder:
        path = Path(folder) / "part.json"
        for stage, (inputs, output) in chain.items():
            save_json([inputs], str(path))
            files[f"{stage}.inputs.json"] = path.read_bytes()
            results, name = RunResults(), STAGE_TENSORS[stage][1][0]
            results.add([{name: output}], runner_name="fp32")
            results.save(str(path))
            files[f"{stage}.outputs.json"] = path.read_bytes()
    return files


def command(manifest: EngineManifest, folder: Path, precision: str, psnr_db: float) -> str | None:
    """Return the command that repeats the comparison with TensorRT on a GPU; None where files are missing."""
    names = {record.file for record in manifest.files}
    graphs = {name: stage.find("onnx", precision) for name, stage in manifest.stages.items()}  # type: ignore[arg-type]
    if not all(f"{name}.{kind}.json" in names for name in graphs for kind in ("inputs", "outputs")):
        return None
    if not all(found and found[0].file == f"{name}.{precision}.onnx" for name, found in graphs.items()):
        return None
    return (
        f"(cd {folder} && for stage in {' '.join(graphs)}; do polygraphy run $stage.{precision}.onnx --trt "
        "--strongly-typed --load-inputs $stage.inputs.json --load-outputs $stage.outputs.json "
        f"--compare psnr --psnr-threshold {psnr_db:g} || exit 1; done)"
    )
