"""The page itself, and its server: Gradio's blocks over `yonos_trt.web.work`.

Gradio is imported so that it reports nothing, keeps its files where ours are, and fetches no address that a
client names.
"""

from __future__ import annotations

import importlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from yonos_trt.errors import ConfigError, MissingExtraError, YonosError
from yonos_trt.web.work import Limits, Result, Step, StoppedError, Wish, Workshop

FORMATS = {"as the input": None, "PNG": "png", "JPEG": "jpg", "WebP": "webp", "TIFF": "tiff", "AVIF": "avif"}
CONTAINERS = (".mkv", ".mp4", ".mov", ".webm")

#: pasting puts pictures where dropping does
PASTE = """
() => { document.addEventListener('paste', event => {
  const files = [...(event.clipboardData?.files ?? [])];
  const input = document.querySelector('#pictures input[type=file]');
  if (!files.length || !input) return;
  const carrier = new DataTransfer();
  files.forEach(file => carrier.items.add(file));
  input.files = carrier.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
  event.preventDefault();
}) }
"""


def import_gradio(folder: Path) -> Any:
    """Return the module ``gradio``, silent and with its temporary files in `folder`.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(folder),
        "MPLBACKEND": "agg",  # Gradio asks matplotlib, where that is installed, at every order
        "MPLCONFIGDIR": str(folder),  # which makes folders in the home otherwise
    }
    try:
        gradio = importlib.import_module("gradio")
        processing = importlib.import_module("gradio.processing_utils")
    except ImportError as error:
        raise MissingExtraError("yonos web", package="gradio", extra="web") from error

    async def refuse(url: str, *_: Any, **__: Any) -> Any:
        raise gradio.Error(f"{url}: this server fetches nothing; upload the file instead")

    for name in ("async_ssrf_protected_download", "async_ssrf_protected_get"):
        if not hasattr(processing, name):
            raise ConfigError(
                f"gradio {gradio.__version__} has no {name}, so addresses would be fetched; install the "
                "version of constraints-web.txt"
            )
        setattr(processing, name, refuse)
    return gradio


def build(gradio: Any, workshop: Workshop) -> Any:
    """Return the page as ``gradio.Blocks``; its functions are the API, ``/upscale`` and ``/video``."""
    stops: dict[str, set[threading.Event]] = {}

    def order(session: str | None, stop: threading.Event, run: Any, outputs: Callable[[str], Any]) -> Any:
        """Yield the page's outputs for every step of `run` and return its result; show errors, then raise."""
        mine = stops.setdefault(session or "", set())
        mine.add(stop)
        try:
            yield outputs(_progress(Step("waiting", 0)))
            while True:
                try:
                    step = next(run)
                except StopIteration as end:
                    return end.value
                yield outputs(_progress(step))
        except (StoppedError, YonosError) as error:
            yield outputs(_told_results([Result("", error=str(error))]))
            raise gradio.Error(str(error), print_exception=False) from error
        finally:
            stop.set()
            run.close()
            mine.discard(stop)
            if not mine:
                stops.pop(session or "", None)

    def upscale(
        files: list[str] | None,
        model: str,
        factor: float,
        restore: float,
        format: str,
        quality: float,
        metadata: bool,
        request: Any,
    ) -> Iterator[Any]:
        wish = Wish(
            model,
            factor or None,
            restore if workshop.dial(model) is not None else None,
            FORMATS[format],
            int(quality),
            metadata,
        )
        stop = threading.Event()
        run = workshop.pictures([Path(file) for file in files or ()], wish, stop)
        hidden = gradio.Dropdown(visible=False)
        results, archive = yield from order(
            request.session_hash, stop, run, lambda told: [None, told, [], hidden, ""]
        )
        made = [result for result in results if result.target is not None]
        choices = [(result.name, index) for index, result in enumerate(made)]
        yield [
            [str(result.target) for result in made] + ([str(archive)] if archive else []),
            _told_results(results),
            made,
            gradio.Dropdown(choices=choices, value=0 if made else None, visible=len(made) > 1),
            _pair(made[0]) if made else "",
        ]
        if not made:
            raise gradio.Error("; ".join(result.error for result in results), print_exception=False)

    def video(
        file: str | None,
        model: str,
        factor: float,
        restore: float,
        crf: float,
        container: str,
        request: Any,
    ) -> Iterator[Any]:
        if file is None:
            raise gradio.Error("No video; drop one on the page first", print_exception=False)
        wish = Wish(model, factor or None, restore if workshop.dial(model) is not None else None)
        stop = threading.Event()
        run = workshop.video(Path(file), wish, crf, container, stop)
        result = yield from order(request.session_hash, stop, run, lambda told: [None, told])
        yield [str(result.target), _told_results([result])]

    def cancel(request: Any) -> None:
        for stop in list(stops.get(request.session_hash or "", ())):
            stop.set()

    def dial(model: str) -> Any:
        value = workshop.dial(model)
        return gradio.Slider(
            0,
            1,
            value=value or 0.0,
            label="Restore: 0 keeps every grain, 1 cleans",
            visible=value is not None,
            elem_classes="restore",
        )

    def times() -> Any:
        return gradio.Slider(0, 16, value=0, step=0.25, label="Factor, such as 3; 0: the model's own")

    for function in (upscale, video, cancel):  # Gradio looks for this type, which is no name of this module
        function.__annotations__["request"] = gradio.Request
    names = list(workshop.models)
    first = "lite-x4" if "lite-x4" in names else names[0]
    limits = workshop.limits
    with gradio.Blocks(title="yonos", analytics_enabled=False) as page:
        gradio.Markdown("# yonos\nPictures and videos, enlarged on this machine. Nothing leaves it.")
        with gradio.Tab("Pictures"):
            with gradio.Row():
                with gradio.Column(scale=2, min_width=280):
                    files = gradio.File(
                        label="Pictures: drop, choose or paste",
                        file_count="multiple",
                        elem_id="pictures",
                        height=180,
                    )
                    model = gradio.Dropdown(names, value=first, label="Model", elem_id="model")
                    factor = times()
                    restore = dial(first)
                    with gradio.Accordion("File format", open=False):
                        format = gradio.Dropdown(list(FORMATS), value="as the input", label="Format")
                        quality = gradio.Slider(
                            1, 100, value=95, step=1, label="Quality of JPEG, WebP and AVIF"
                        )
                        metadata = gradio.Checkbox(True, label="Keep EXIF, XMP, IPTC and text")
                    with gradio.Row():
                        start = gradio.Button("Upscale", variant="primary", elem_id="start")
                        halt = gradio.Button("Cancel", variant="secondary", elem_id="cancel")
                with gradio.Column(scale=3, min_width=280):
                    told = gradio.HTML(elem_id="told")
                    chosen = gradio.Dropdown(label="Show", visible=False, elem_id="show")
                    pair = gradio.HTML(elem_id="pair")
                    out = gradio.File(label="Results", file_count="multiple", elem_id="results")
            kept = gradio.State([])
            model.change(dial, model, restore, api_visibility="private", show_progress="hidden")
            start.click(
                upscale,
                [files, model, factor, restore, format, quality, metadata],
                [out, told, kept, chosen, pair],
                api_name="upscale",
                api_description="Upscale pictures. Returns the result files (of several, a zip too), what is "
                "told, and the comparison as HTML; values before the last tell the progress.",
                show_progress="hidden",
                concurrency_id="orders",
            )
            chosen.input(
                lambda made, index: _pair(made[index]), [kept, chosen], pair, api_visibility="private"
            )
            halt.click(cancel, None, None, queue=False, api_visibility="private")
        with gradio.Tab("Video"):
            with gradio.Row():
                with gradio.Column(scale=2, min_width=280):
                    clip = gradio.File(label="Video", elem_id="clip", height=140)
                    model_v = gradio.Dropdown(names, value=first, label="Model")
                    factor_v = times()
                    restore_v = dial(first)
                    crf = gradio.Slider(0, 40, value=16, step=1, label="CRF: smaller is better and larger")
                    container = gradio.Dropdown(CONTAINERS, value=".mkv", label="Container")
                    with gradio.Row():
                        start_v = gradio.Button("Upscale", variant="primary", elem_id="start-video")
                        halt_v = gradio.Button("Cancel", variant="secondary", elem_id="cancel-video")
                with gradio.Column(scale=3, min_width=280):
                    told_v = gradio.HTML(elem_id="told-video")
                    out_v = gradio.File(label="Result", elem_id="result-video")
            model_v.change(dial, model_v, restore_v, api_visibility="private", show_progress="hidden")
            start_v.click(
                video,
                [clip, model_v, factor_v, restore_v, crf, container],
                [out_v, told_v],
                api_name="video",
                api_description="Upscale a video; audio, subtitles and timestamps are kept.",
                show_progress="hidden",
                concurrency_id="orders",
            )
            halt_v.click(cancel, None, None, queue=False, api_visibility="private")
        page.load(None, None, None, js=PASTE)
        page.unload(cancel)
    page.queue(max_size=limits.waiting, default_concurrency_limit=1)
    return page


def serve(page: Any, gradio: Any, *, host: str, port: int, limits: Limits, folder: Path) -> str:
    """Start the server in threads of its own and return its address; `port` 0 takes a free one.

    Raises
    ------
    ConfigError
        The port is taken.
    """
    if port == 0:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            max_file_size=limits.file_mb << 20,
            allowed_paths=[str(folder)],
            footer_links=["api"],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            theme=gradio.themes.Default(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css_paths=Path(__file__).with_name("page.css"),
        )
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be had: {error}; name another with --port"
        ) from error
    return str(address)


def _progress(step: Step) -> str:
    return (
        f'<div class="yonos-told" role="status"><progress max="1" value="{step.done:.4f}"></progress>'
        f"<div>{escape(step.words)}</div></div>"
    )


def _told_results(results: list[Result]) -> str:
    lines = []
    for result in results:
        name = escape(result.name)
        if result.target is None:
            lines.append(f'<li class="bad">{escape(result.error)}</li>')
            continue
        size = f", {result.size_px[1]} x {result.size_px[0]} px" if result.size_px[0] else ""
        left = f"; left out: {escape('; '.join(result.left_out))}" if result.left_out else ""
        lines.append(f"<li>{name} &rarr; {escape(result.target.name)}{size}{left}</li>")
    return f'<div class="yonos-told" role="status"><ul>{"".join(lines)}</ul></div>'


def _pair(result: Result) -> str:
    """Return before and after under one slider, fitted or at 100 %."""
    if result.before is None or result.after is None:
        return "<p>This result is too large to be shown; it is in the list of results.</p>"
    name = escape(result.name, quote=True)
    height, width = result.size_px
    before, after = (f"/gradio_api/file={quote(str(path))}" for path in (result.before, result.after))
    turn = "const p=this.closest('.yonos-pair');"
    return (
        f'<figure class="yonos-pair" style="--w: {width}px; --ratio: {width} / {height}">'
        f'<div class="scroll" tabindex="0"><div class="stack"><img class="after" src="{after}" '
        f'alt="{name}, after"><img class="before" src="{before}" alt="{name}, before">'
        '<span class="line"></span></div></div><div class="bar"><span>before</span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{name}: how much of the width shows '
        f"the picture before\" oninput=\"{turn}p.style.setProperty('--at', this.value + '%')\">"
        '<span>after</span><button type="button" aria-pressed="false" '
        f"onclick=\"{turn}this.setAttribute('aria-pressed', p.classList.toggle('full'))\">100 %</button>"
        "</div></figure>"
    )
