"""Compare two runs of one training config, stage by stage: logged losses and trained weights.

::

    python -m benchmarks.studies.reproduction runs/lite runs/again

Same steps on the same machine and libraries give the same bytes; elsewhere rounding differs, and the largest
differences say by how much. A run that was cut short is compared as far as it went.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np


@dataclass(frozen=True, slots=True)
class StageComparison:
    """What two runs of one stage have in common.

    Attributes
    ----------
    name : str
        Of the stage.
    steps : tuple of int
        Those whose losses both runs logged.
    equal_losses : int
        How many of these losses are the same number.
    loss_difference : float
        Largest relative difference of the losses.
    weight_difference : float or None
        Largest absolute difference of the trained weights; None where one run has not finished the stage.
    """

    name: str
    steps: tuple[int, ...]
    equal_losses: int
    loss_difference: float
    weight_difference: float | None

    @property
    def same(self) -> bool:
        """Whether nothing differs: losses and, where both have them, weights."""
        return self.equal_losses == len(self.steps) and not self.weight_difference


def compare_runs(one: Path, other: Path) -> list[StageComparison]:
    """Compare the stages that both run folders have begun, in the order of the first one's config.

    Raises
    ------
    ValueError
        A folder is no run folder, or the runs have no logged step in common.
    """
    found = []
    for name in _stages(one):
        ours, theirs = (_losses(run / name / "metrics.jsonl") for run in (one, other))
        steps = tuple(sorted(ours.keys() & theirs.keys()))
        if not steps:
            continue
        pairs = [(ours[step], theirs[step]) for step in steps]
        found.append(
            StageComparison(
                name,
                steps,
                sum(a == b for a, b in pairs),
                max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs),
                _weight_difference(one / name, other / name),
            )
        )
    if not found:
        raise ValueError(
            f"{one} and {other}: no stage with a logged step in both, expected two runs of one config"
        )
    return found


def _stages(run: Path) -> list[str]:
    try:
        return [stage["name"] for stage in json.loads((run / "config.json").read_text("utf-8"))["stages"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run}: not a run folder of yonos-train ({error})") from error


def _losses(log: Path) -> dict[int, float]:
    if not log.is_file():
        return {}
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def _weight_difference(one: Path, other: Path) -> float | None:
    from safetensors.numpy import load_file

    files = [path.name for path in one.glob("*.safetensors") if not path.name.startswith("checkpoint-")]
    if not files or not all((other / name).is_file() for name in files):
        return None
    largest = 0.0
    for name in files:
        ours, theirs = load_file(one / name), load_file(other / name)
        if ours.keys() != theirs.keys() or any(ours[key].shape != theirs[key].shape for key in ours):
            raise ValueError(f"{one / name} and {other / name} hold different networks")
        largest = max(largest, *(float(np.abs(ours[key] - theirs[key]).max()) for key in ours))
    return largest


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("one", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("other", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(one: Path, other: Path) -> None:
    """Compare the run folders ONE and OTHER. The exit code is 1 where anything differs."""
    try:
        found = compare_runs(one, other)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo("| stage | logged to step | equal losses | largest difference | weights, largest difference |")
    click.echo("|---|---|---|---|---|")
    for stage in found:
        weights = "not finished" if stage.weight_difference is None else f"{stage.weight_difference:.2g}"
        click.echo(
            f"| {stage.name} | {stage.steps[-1]} | {stage.equal_losses} of {len(stage.steps)} "
            f"| {100 * stage.loss_difference:.2g} % | {weights} |"
        )
    if not all(stage.same for stage in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
