"""``yonos-train``: run a preset over an image folder; every option is a field of the run's config."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from yonos_trt.cli.options import LocalPath

from .evaluate_command import INTERRUPTED, evaluate_command, named_paths
from .weights_command import weights_command


class TextFile(click.Path):
    """A file that has an end: devices and pipes are refused."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check it."""
        path = super().convert(value, param, ctx)
        if not os.path.isfile(path):
            self.fail(f"{value!r} is a device or a pipe, expected a file", param, ctx)
        return path


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Parse ``stage.field=value`` pairs (value in JSON, or a bare word) into ``{stage: {field: value}}``."""
    out: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        stage, dot, field = key.rpartition(".")
        if not separator or not dot:
            raise click.BadParameter(
                f"got {pair!r}, expected STAGE.FIELD=VALUE, e.g. x4.minutes=30", param_hint="--set"
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        out.setdefault(stage, {})[field] = value
    return out


def apply_overrides(config: Any, overrides: dict[str, dict[str, Any]]) -> Any:
    """Return the run config with the stages' fields replaced; ``*`` names every stage, ``loop`` and
    ``crops`` those. What is said of one stage goes before what is said of all."""
    stages = {stage.name: stage for stage in config.stages}
    for where in sorted(overrides, key=lambda where: where != "*"):
        fields = overrides[where]
        targets = list(stages) if where == "*" else [where]
        try:
            if where in ("loop", "crops"):
                config = dataclasses.replace(
                    config, **{where: dataclasses.replace(getattr(config, where), **fields)}
                )
                continue
            for name in targets:
                if name not in stages:
                    raise click.BadParameter(
                        f"no stage {name!r}; the preset has {', '.join(stages)}", param_hint="--set"
                    )
                own = {k: {**stages[name].loss, **v} if k == "loss" else v for k, v in fields.items()}
                stages[name] = dataclasses.replace(stages[name], **own)
        except TypeError as error:
            raise click.BadParameter(f"{where}: {error}", param_hint="--set") from error
    return dataclasses.replace(config, stages=tuple(stages.values()))


def with_budget(
    overrides: dict[str, dict[str, Any]], *, minutes: float | None, steps: int | None
) -> dict[str, dict[str, Any]]:
    """Return the overrides with every stage's budget in them; ``--steps`` alone takes the minutes away."""
    budget: dict[str, Any] = {k: v for k, v in (("minutes", minutes), ("steps", steps)) if v is not None}
    every = overrides.get("*", {})
    for name, value in budget.items():
        if name in every and every[name] != value:
            raise click.BadParameter(
                f"got *.{name}={every[name]} and --{name} {value}; give one of them", param_hint="--set"
            )
    if steps is not None and minutes is None:
        budget = {"minutes": None, **budget}
    return {**overrides, "*": {**budget, **every}} if budget else overrides


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("--preset", default=None, help="Table of stages to run: lite, sd, smoke.")
@click.option(
    "--config",
    "config_file",
    type=TextFile(),
    help="A run's config.json instead of a preset.",
)
@click.option(
    "--from",
    "start",
    metavar="MODEL",
    help="Fine-tune a shipped model, a bundle or an engine directory; with --config: its stages.",
)
@click.option("--base", type=LocalPath(text=True), help="Local diffusers folder to start from (preset sd).")
@click.option("--data", type=LocalPath(text=True), help="Image folder, searched recursively.")
@click.option(
    "--run", "run_folder", type=LocalPath(text=True), help="Run folder; an existing one is resumed."
)
@click.option(
    "--weights",
    multiple=True,
    metavar="NAME=FILE",
    help="Perceptual network: lpips_alex=FILE, lpips_vgg=FILE, dists=FILE.",
)
@click.option("--stage", "only", multiple=True, help="Run only this stage (may be repeated).")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="STAGE.FIELD=VALUE",
    help="Change a stage ('*': all), loop or crops.",
)
@click.option("--minutes", type=float, help="Minutes of every stage.")
@click.option("--steps", type=int, help="Steps of every stage.")
@click.option("--seed", type=int, help="Seed of the run.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=0, show_default=True, help="Use only the first N images."
)
@click.option("--licence", type=TextFile(), help="JSON: licences of data and weights.")
@click.option("--card", type=TextFile(), help="Markdown: the models' card.")
@click.option("--dry-run", is_flag=True, help="Print the config as JSON and stop.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.pass_context
def main(
    context: click.Context,
    preset: str | None,
    config_file: str | None,
    start: str | None,
    base: str | None,
    data: str | None,
    run_folder: str | None,
    weights: tuple[str, ...],
    only: tuple[str, ...],
    overrides: tuple[str, ...],
    minutes: float | None,
    steps: int | None,
    seed: int | None,
    limit: int,
    licence: str | None,
    card: str | None,
    dry_run: bool,
    verbose: bool,
) -> None:
    """Train one-step super-resolution models: autoencoder, U-Nets by scale distillation, decoders."""
    if context.invoked_subcommand is not None:
        return
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("PIL").setLevel(logging.INFO)
    from .presets import PRESETS, RunConfig

    paths = named_paths(weights, "--weights", known=("lpips_alex", "lpips_vgg", "dists"))
    for one, other in (("--from", "--preset"), ("--from", "--base"), ("--config", "--preset")):
        given = {"--from": start, "--preset": preset, "--base": base, "--config": config_file}
        if given[one] is not None and given[other] is not None:
            raise click.UsageError(
                f"got {one} {given[one]} and {other} {given[other]}, expected one of them; --from has a "
                f"plan of its own, and stages of your own for it come with --config"
            )
    if config_file is not None:
        try:
            config = RunConfig.load(Path(config_file))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--config") from error
    elif start is not None:
        config = None
    elif preset is None:
        raise click.UsageError(f"give --preset ({', '.join(PRESETS)}), --from MODEL or --config FILE")
    elif preset not in PRESETS:
        raise click.BadParameter(
            f"got {preset!r}, expected one of {', '.join(PRESETS)}", param_hint="--preset"
        )
    else:
        config = PRESETS[preset]
    if start is not None:
        from .fine_tuning import fine_tuning

        try:
            config = fine_tuning(start, weights=paths, config=config)
        except (ValueError, OSError) as error:
            raise click.BadParameter(str(error), param_hint="--from") from error
    assert config is not None
    try:
        changes = with_budget(parse_overrides(overrides), minutes=minutes, steps=steps)
        if seed is not None:
            changes.setdefault("loop", {})["seed"] = seed
        config = apply_overrides(config, changes)
        if licence is not None:
            facts = json.loads(Path(licence).read_text(encoding="utf-8"))
            if not isinstance(facts, dict):
                raise ValueError(f"--licence {licence}: got a {type(facts).__name__}, expected an object")
            origin = config.licence if start is not None else {}  # of the model that it goes on from
            config = dataclasses.replace(config, licence={**origin, **facts})
        if card is not None:
            config = dataclasses.replace(config, card=Path(card).read_text(encoding="utf-8"))
        if base is not None:
            config = dataclasses.replace(config, base=base)
        if preset == "sd" and config.base is None:
            raise ValueError("preset sd starts from Stable Diffusion: give --base with a diffusers folder")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if dry_run:
        click.echo(config.to_json(), nl=False)
        return
    if data is None or run_folder is None:
        raise click.UsageError("give --data IMAGES and --run FOLDER")
    for name, file in paths.items():
        if not Path(file).is_file():
            raise click.BadParameter(f"{name}: no file {file!r}", param_hint="--weights")
    from .data import DataError
    from .loop import TrainingError
    from .run import Run

    try:
        Run(config, run_folder, data=data, weights=paths, limit=limit).run(only)
    except (DataError, TrainingError, ValueError, OSError) as error:
        click.echo(f"yonos-train: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("yonos-train: interrupted; the same command goes on from the last checkpoint", err=True)
        sys.exit(INTERRUPTED)


main.add_command(evaluate_command, "eval")
main.add_command(weights_command, "weights")


if __name__ == "__main__":
    main()
