"""Merge benchmark documents of one machine into one result file.

::

    python -m benchmarks.results OUT.json DOCUMENT.json... [--label TEXT]

Result files of reference machines are committed under ``benchmarks/results/``; `benchmarks.compare` says what
moved between two of them, and `benchmarks.report` draws them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.report import flat_parts

# What the intervals were computed from; rows and times keep their intervals.
_RAW = ("seconds",)


def merge(documents: Sequence[dict[str, Any]], *, label: str) -> dict[str, Any]:
    """Return one document with the parts of all, without raw samples.

    Raises
    ------
    ValueError
        There are no parts, or two parts measured the same thing.
    """
    parts = [
        {key: value for key, value in part.items() if key not in _RAW}
        for document in documents
        for part in flat_parts(document)
    ]
    if not parts:
        raise ValueError(
            "no documents, expected the JSON of yonos bench, benchmarks.speed or benchmarks.quality"
        )
    keys = [row["key"] for part in parts for row in part["rows"]]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"measured twice: {', '.join(twice[:5])}; leave one of the documents out")
    return {"kind": "parts", "label": label, "parts": parts}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.argument(
    "sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--label", help="Default: the name of OUT.")
def main(out: Path, sources: Sequence[Path], label: str | None) -> None:
    """Merge SOURCES into OUT."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sources]
    try:
        merged = merge(documents, label=label or out.stem)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    out.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    click.echo(
        f"{out}: {len(merged['parts'])} documents, {sum(len(p['rows']) for p in merged['parts'])} rows"
    )


if __name__ == "__main__":
    main()
