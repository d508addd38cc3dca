"""`yonos web`: the command line of the page."""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

import click

from yonos_trt.cli import options


@click.command(short_help="Serve a page to drop pictures on, to this machine.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option(
    "-m",
    "--model",
    "engine_dirs",
    type=options.LocalPath(),
    multiple=True,
    metavar="ENGINE_DIR",
    help="Offer this engine directory beside the shipped models; may be given several times.",
)
@click.option("--max-files", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N",
              help="Pictures at once.")  # fmt: skip
@click.option("--max-file-mb", type=click.IntRange(1, 1 << 20), default=200, show_default=True, metavar="MIB",
              help="Largest upload.")  # fmt: skip
@click.option("--max-pixels", type=click.IntRange(1, 1 << 40), default=1 << 25, show_default=True,
              metavar="N", help="Refuse pictures that declare more.")  # fmt: skip
@click.option("--max-result-pixels", type=click.IntRange(1, 1 << 40), default=1 << 29, show_default=True,
              metavar="N", help="Refuse results that would have more.")  # fmt: skip
@click.option("--time-limit", "seconds", type=options.Finite(1, 1e7), default=3600, show_default=True,
              metavar="S", help="Seconds for one order.")  # fmt: skip
@click.option("--queue", "waiting", type=click.IntRange(1, 10_000), default=8, show_default=True, metavar="N",
              help="Orders that may wait.")  # fmt: skip
@click.option("--keep", "keep_min", type=options.Finite(1, 1e6), default=60, show_default=True, metavar="MIN",
              help="Minutes after which uploads and results are removed.")  # fmt: skip
@options.machine
@click.option("-v", "--verbose", count=True, help="Log more; twice for everything.")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
def web(
    host: str,
    port: int,
    engine_dirs: tuple[Path, ...],
    max_files: int,
    max_file_mb: int,
    max_pixels: int,
    max_result_pixels: int,
    seconds: float,
    waiting: int,
    keep_min: float,
    verbose: int,
    quiet: bool,
    **machine: Any,
) -> None:
    """Serve a page on which pictures and videos are dropped, and its API, until Ctrl-C.

    \b
    yonos web                        then open http://127.0.0.1:7860
    yonos web -m engines/mine --port 8000

    Uploads and results lie in a temporary folder that is removed at the end.
    """
    from yonos_trt.backends.choose import shipped_models
    from yonos_trt.cli.progress import set_up_logging
    from yonos_trt.sr import SR
    from yonos_trt.web.page import build, import_gradio, serve
    from yonos_trt.web.work import Limits, Workshop

    set_up_logging(verbose, quiet=quiet, mode="none")
    machine = options.on_cpu(machine)
    models = dict(shipped_models()) | {path.name: path for path in engine_dirs}
    for path in models.values():
        SR(path, **machine)  # refuses what cannot be used before anybody waits
    limits = Limits(
        files=max_files,
        file_mb=max_file_mb,
        pixels=max_pixels,
        result_pixels=max_result_pixels,
        seconds=seconds,
        waiting=waiting,
        keep_s=keep_min * 60,
    )
    stopped = threading.Event()
    with tempfile.TemporaryDirectory(prefix="yonos-web-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        gradio = import_gradio(folder)
        for library in ("httpx", "uvicorn"):
            logging.getLogger(library).setLevel(logging.ERROR)
        workshop = Workshop(folder, models, limits, machine)
        page = build(gradio, workshop)
        try:
            click.echo(serve(page, gradio, host=host, port=port, limits=limits, folder=folder))
            while not stopped.wait(60):
                workshop.sweep()
        finally:
            page.close(verbose=False)
