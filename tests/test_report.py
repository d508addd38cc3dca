"""The report: complete, self-contained, and working in a real browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import chromium, make_engine_dir, picture, pixels_of
from PIL import Image

from benchmarks.photos import SAMPLES, Photo, sample_photos
from benchmarks.report import build, flat_parts, main
from benchmarks.report_pictures import Pair, make_pair
from yonos_trt.sr import SR

pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install '.[bench]'")

MACHINE = {
    "processor": "Example <CPU> & co",
    "cores": 2,
    "instructions": ["avx2"],
    "clock_mhz": 3000.0,
    "memory_gib": 8.0,
    "system": "Linux x86_64",
    "load_1min": 0.1,
    "python": "3.11.0",
    "versions": {"numpy": "2.0"},
    "gpu": None,
}
MODEL = {"name": "tiny-x4", "scale": 4, "weights_sha256": "ab" * 32}


def common(kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "created": "2026-01-01T00:00:00+00:00",
        "command": ["python", "-m", f"benchmarks.{kind}"],
        "commit": "0123456789ab",
        "machine": MACHINE,
        "model": MODEL,
        "peaks": {
            "gflops": {"fp32": 100.0},
            "probe": {"fp32": "library 1.0, 3x3 convolution, 2 threads"},
            "copy_gbytes_s": 10.0,
        },
    }


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": 0.95 * value, "high": 1.05 * value, "samples": 7}


def speed(side: int) -> dict[str, Any]:
    times = {"bicubic": 0.5, "onnx": 100.0, "openvino": 50.0, "realesrgan-x4plus": 2000.0}
    return {
        **common("speed"),
        "size_lr_px": [side, side],
        "clock": "wall",
        "rounds": 7,
        "note": "An example, not a measurement.",
        "times": {name: estimate(ms * (side / 64) ** 2) for name, ms in times.items()},
        "ratios": [
            {"peer": name, "to": base, **estimate(ms / times[base])}
            for base in ("onnx", "openvino")
            for name, ms in times.items()
            if name != base
        ],
        "not_run": {"tensorrt": "needs an NVIDIA GPU, found <none>"},
    }


def quality() -> dict[str, Any]:
    values = {"bicubic": (0.5, 26.0), "onnx": (0.3, 26.5), "openvino": (0.3005, 26.5)}
    rows = [
        {"set": "s", "name": "p", "method": m, "seconds": 0.1, "lpips_alex": a, "psnr_y": b}
        for m, (a, b) in values.items()
    ]
    means = [{**{k: v for k, v in row.items() if k != "name"}, "pictures": 1} for row in rows]
    return {
        **common("quality"),
        "degradation": "bicubic",
        "metrics": ["psnr_y", "lpips_alex"],
        "pictures": rows,
        "means": means,
        "gflop_per_mpx": {"bicubic": 0.05, "onnx": 200.0, "openvino": 200.0},
        "not_run": {},
    }


def bench() -> dict[str, Any]:
    latency = {f"p{p}_ms": 10.0 for p in (50, 90, 99)} | {"images_s": 1.0, "mpx_s": 1.0}
    stages = [
        {"stage": name, **latency, "share": share, "gflop": 1.0, "gflops": 50.0, "of_peak": 0.5}
        for name, share in (("encode", 0.2), ("step", 0.3), ("decode", 0.45), ("color", 0.05))
    ]
    entry = {
        "runtime": "onnx",
        "precision": "fp32",
        "lanes": 1,
        "threads": 2,
        "tile_px": 512,
        "tile_size_px": [512, 448],
        "batch": 1,
        "tiles": 4,
        "overhead": 0.05,
        "stages": stages,
        "picture": {"with_transfers": latency, "without_transfers": None},
        "memory": {"peak_rss_mib": 300.0, "added_mib": 100.0},
    }
    conventions = {"with_transfers": "trtexec 10: in", "without_transfers": "trtexec 11: out"}
    return {
        **common("yonos-bench"),
        "options": {"percentiles": [50, 90, 99], "size_lr_px": [64, 64]},
        "entries": [entry],
        "conventions": conventions,
        "not_run": [{"runtime": "tensorrt", "reason": "no GPU"}],
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    Image.fromarray(picture(203, 330)).save(folder / "photo.png")
    with SR(make_engine_dir(folder / "engine"), threads=1) as sr:
        photo = Photo(folder / "photo.png", "Edges & waves", "Drawn by <nobody>")
        return make_pair(photo, sr, largest_px=(160, 240))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A second picture, taller than wide, by a model of another scale."""
    folder = tmp_path_factory.mktemp("other")
    Image.fromarray(picture(300, 200, seed=3)).save(folder / "tall.png")
    with SR(make_engine_dir(folder / "engine", scale=2), threads=1) as sr:
        return make_pair(Photo(folder / "tall.png", "tall"), sr, largest_px=(240, 160))


@pytest.fixture(scope="module")
def page(pair: Pair, other: Pair) -> str:
    second = {"model": {**MODEL, "name": "tiny-x2", "scale": 2}}
    speeds = [speed(64), speed(128), speed(64) | second, speed(128) | second]
    qualities = [quality(), quality() | {"degradation": "realesrgan"}, quality() | second]
    parts = [bench(), bench() | second, {"kind": "parts", "parts": speeds}, *qualities]
    return build(list(flat_parts({"kind": "parts", "parts": parts})), [pair, other], title="example")


# ---------------------------------------------------------------------------------------------------------
# The text


class Strict(HTMLParser):
    """Check that tags close in order, and collect ids and addresses."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href"):
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_loads_nothing_from_elsewhere(page: str) -> None:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert all(address.startswith("data:") for address in parser.addresses)
    assert "default-src 'none'" in page


def test_every_reference_inside_a_figure_has_its_target(page: str) -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    used = set(re.findall(r'xlink:href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used
    assert used <= ids


def test_text_from_documents_is_escaped(page: str) -> None:
    assert "Example &lt;CPU&gt; &amp; co" in page
    assert "found &lt;none&gt;" in page
    assert "<b>Edges &amp; waves, x4</b>" in page
    assert "Drawn by &lt;nobody&gt;." in page


def test_page_says_what_was_measured_and_what_was_not(page: str) -> None:
    for text in (
        "40.0x",  # Real-ESRGAN over the faster runtime
        "not run",
        "onnx = openvino",  # one point of the scatter: same arithmetic, same quality
        "trtexec 10",
        "An example, not a measurement.",
        "python -m benchmarks.speed",
        "tiny-x4, time against size",
        "tiny-x2, time against size",
    ):
        assert text in page


def test_figures_take_their_colours_from_the_page(page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) >= 4
    for figure in figures:
        assert "var(--ink)" in figure
        assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", figure)
        assert 'role="img" aria-label="' in figure


def test_report_is_reproducible(pair: Pair) -> None:
    assert build([speed(64), quality()], [pair]) == build([speed(64), quality()], [pair])


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(ValueError, match="no documents"):
        build([])


def test_committed_results_of_every_date_can_be_drawn() -> None:
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    drawn = 0
    for path in sorted(results.glob("*.json")):
        parts = list(flat_parts(json.loads(path.read_text(encoding="utf-8"))))
        if parts:
            page = build(parts)
            assert "measured peak in fp32: " in page
            drawn += 1
    assert drawn


def test_pair_is_the_middle_of_the_photograph_at_full_size(pair: Pair) -> None:
    assert (pair.height_px, pair.width_px) == (160, 240)
    for uri in (pair.before_uri, pair.after_uri):
        raw = base64.b64decode(uri.partition(",")[2])
        from io import BytesIO

        with Image.open(BytesIO(raw)) as image:
            assert (image.format, image.size) == ("WEBP", (240, 160))
    assert pair.before_uri != pair.after_uri


def test_small_photograph_is_enlarged_as_it_is_on_request(tmp_path: Path) -> None:
    Image.fromarray(picture(30, 50)).save(tmp_path / "small.png")
    with SR(make_engine_dir(tmp_path / "engine"), threads=1) as sr:
        reduced = make_pair(Photo(tmp_path / "small.png", "small"), sr)
        whole = make_pair(Photo(tmp_path / "small.png", "small"), sr, reduce=False)
    assert (reduced.height_px, reduced.width_px) == (28, 48)
    assert (whole.height_px, whole.width_px) == (120, 200)
    assert "the photograph itself" in whole.caption


def test_sample_photographs_are_there_with_author_and_licence() -> None:
    pytest.importorskip("skimage", reason="needs scikit-image: pip install '.[bench]'")
    photos = sample_photos()
    assert [photo.title for photo in photos] == [photo.title for photo in SAMPLES]
    assert len(photos) >= 3
    for photo in photos:
        assert "CC0" in photo.credit or "public domain" in photo.credit
        with Image.open(photo.path) as image:
            assert min(image.size) >= 256


def test_report_of_the_command_stays_light_and_shows_the_samples(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs scikit-image: pip install '.[bench]'")
    (tmp_path / "speed.json").write_text(json.dumps(speed(64)))
    engine_dir = make_engine_dir(tmp_path / "engine")
    arguments = [str(tmp_path / "speed.json"), "--engine", str(engine_dir), "-o", str(tmp_path / "r.html")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count('class="stack"') == len(SAMPLES)
    assert len(page) < 3 << 20
    assert all(photo.credit in page for photo in SAMPLES)


# ---------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def opened(browser: Any, page: str, tmp_path: Path) -> Any:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    browser.set_window_size(1000, 900)
    browser.get((tmp_path / "report.html").as_uri())
    return browser


def stacks(driver: Any) -> list[Any]:
    from selenium.webdriver.common.by import By

    return list(driver.find_elements(By.CSS_SELECTOR, ".stack"))


def control_of(stack: Any) -> Any:
    from selenium.webdriver.common.by import By

    return stack.find_element(By.TAG_NAME, "input")


def test_every_slider_moves_by_keyboard_and_by_pointer_and_none_moves_another(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    found = stacks(opened)
    assert len(found) == 2
    for index, stack in enumerate(found):
        control = control_of(stack)
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", stack)
        assert control.get_attribute("value") == "50"
        half = pixels_of(stack)
        control.send_keys(Keys.HOME)
        assert control.get_attribute("value") == "0"
        after_only = pixels_of(stack)
        control.send_keys(Keys.END, Keys.ARROW_LEFT)
        assert control.get_attribute("value") == "99"
        assert control.get_attribute("aria-valuetext") == "99 % bicubic"
        before_only = pixels_of(stack)
        left = np.s_[30:60, 20:70]  # away from tags, line and knob
        assert np.abs(half[left] - before_only[left]).mean() < 1
        assert np.abs(after_only[left] - before_only[left]).mean() > 1
        quarter = stack.size["width"] // 4
        ActionChains(opened).move_to_element_with_offset(control, quarter, 0).click().perform()
        assert 70 <= int(control.get_attribute("value")) <= 80
        assert [control_of(s).get_attribute("value") for s in found[index + 1 :]] == ["50"] * (1 - index)


def test_keyboard_alone_reaches_every_slider_and_shows_where_it_is(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(60):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        active = opened.switch_to.active_element
        if active.tag_name == "input" and len(reached) < 2:  # after the last one it begins again
            style = opened.execute_script(
                "return getComputedStyle(arguments[0].closest('.stack')).outlineStyle", active
            )
            reached.append((active.get_attribute("aria-label"), style))
    assert [label.partition(":")[0] for label, _ in reached] == ["Edges & waves, x4", "tall, x2"]
    assert {style for _, style in reached} == {"solid"}


def test_images_load_nothing_is_fetched_and_the_console_is_silent(opened: Any) -> None:
    sizes = opened.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])"
    )
    assert sizes == [[True, 240, 160]] * 2 + [[True, 160, 240]] * 2
    assert opened.get_log("browser") == []
    requests = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in opened.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_colour_scheme_switches_figures_and_page(opened: Any) -> None:
    from selenium.webdriver.common.by import By

    def colours() -> list[str]:
        return list(
            opened.execute_script(
                "const text = document.querySelector('svg.plot text');"
                "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill]"
            )
        )

    first = colours()
    opened.find_element(By.ID, "theme").click()
    second = colours()
    assert first[0] != second[0]
    assert first[1] != second[1]


def tap(driver: Any, x: float, stack: Any) -> None:
    """Touch the middle of a stack's height, as a finger does."""
    top = driver.execute_script("return arguments[0].getBoundingClientRect().top", stack)
    point = {"x": x, "y": top + stack.size["height"] / 2}
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_phone_sees_the_page_without_scrolling_sideways(opened: Any) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        widths = opened.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth,"
            " parseFloat(getComputedStyle(document.body).fontSize)]"
        )
        for stack in stacks(opened):
            control = control_of(stack)
            opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", stack)
            where = stack.rect
            assert where["x"] >= 0
            assert where["x"] + where["width"] <= 360
            tap(opened, where["x"] + 0.25 * where["width"], stack)
            assert 20 <= int(control.get_attribute("value")) <= 30
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert widths[0] <= widths[1] == 360
    assert widths[2] >= 16
