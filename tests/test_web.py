"""The page as a user walks through it: its work, its API with Gradio's own client, and a real browser.

Gradio lives in an environment of its own, `.venv-web`, which `make test` makes (it takes no Pillow from 13
on), so the server runs as a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import chromium, picture, pixels_of, skip_or_fail
from PIL import Image

from yonos_trt.errors import InputError
from yonos_trt.images import read_image
from yonos_trt.web import work as web_work
from yonos_trt.web.work import Limits, Result, StoppedError, Wish, Workshop

ROOT = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------------------------------------------------
# The work


def workshop(folder: Path, engine_dir: Path, **limits: Any) -> Workshop:
    folder.mkdir(exist_ok=True)
    return Workshop(folder, {"tiny": engine_dir}, Limits(**limits), {"threads": 1})


def saved(path: Path, height: int = 20, width: int = 30, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, **options)).save(path)
    return path


def done(run: Any) -> tuple[list[str], Any]:
    words = []
    while True:
        try:
            step = next(run)
        except StopIteration as end:
            return words, end.value
        assert 0 <= step.done <= 1
        words.append(step.words)


def test_an_order_of_several_goes_on_after_a_bad_file_and_zips_the_rest(
    engine_dir: Path, tmp_path: Path
) -> None:
    work = workshop(tmp_path / "work", engine_dir)
    bad = tmp_path / "in" / "notes.txt"
    sources = [saved(tmp_path / "in" / "a.png"), bad, saved(tmp_path / "other" / "a.png", channels=4)]
    bad.write_text("no picture")
    words, (results, archive) = done(work.pictures(sources, Wish("tiny"), threading.Event()))
    assert [r.error == "" for r in results] == [True, False, True]
    assert "notes.txt" in results[1].error
    assert str(tmp_path) not in results[1].error
    assert any(word.startswith("3 of 3: a.png, tile ") for word in words)
    assert read_image(results[2].target or "").kind.mode == "RGBA"
    with zipfile.ZipFile(archive) as zipped:
        assert zipped.namelist() == ["a_x4.png", "a_x4-2.png"]
        assert zipped.read("a_x4.png") == Path(results[0].target or "").read_bytes()
    assert results[0].size_px == (80, 120)


def test_formats_and_metadata_are_as_wished_and_a_tiff_can_be_looked_at(
    engine_dir: Path, tmp_path: Path
) -> None:
    work = workshop(tmp_path / "work", engine_dir)
    source = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.fromarray(picture(9, 8)).save(source, exif=exif)
    _, ((result,), archive) = done(work.pictures([source], Wish("tiny", format="tiff"), threading.Event()))
    assert archive is None
    assert result.target.suffix == ".tiff"
    with Image.open(result.after) as shown:
        assert (shown.format, shown.size) == ("PNG", (32, 36))
    assert b"a description" in (read_image(result.target).exif or b"")
    _, ((bare,), _) = done(work.pictures([source], Wish("tiny", metadata=False), threading.Event()))
    assert b"a description" not in bare.target.read_bytes()
    assert bare.left_out == ()


def test_what_goes_beyond_the_limits_is_refused_before_any_work(engine_dir: Path, tmp_path: Path) -> None:
    work = workshop(tmp_path / "work", engine_dir, files=1, result_pixels=9_599)
    source = saved(tmp_path / "a.png")
    with pytest.raises(InputError, match="at most 1"):
        done(work.pictures([source, source], Wish("tiny"), threading.Event()))
    with pytest.raises(InputError, match="no pictures"):
        done(work.pictures([], Wish("tiny"), threading.Event()))
    with pytest.raises(InputError, match="not offered here"):
        done(work.pictures([source], Wish("/etc"), threading.Event()))
    _, ((result,), _) = done(work.pictures([source], Wish("tiny"), threading.Event()))
    assert "9599 pixels" in result.error
    small = workshop(tmp_path / "work", engine_dir, pixels=599)
    _, ((result,), _) = done(small.pictures([source], Wish("tiny"), threading.Event()))
    assert "599" in result.error


@pytest.mark.parametrize("how", ["event", "time", "closed"])
def test_an_order_stops_at_the_next_tile_and_leaves_nothing(
    engine_dir: Path, tmp_path: Path, how: str
) -> None:
    work = workshop(tmp_path / "work", engine_dir, **({"seconds": 0.0} if how == "time" else {}))
    stop = threading.Event()
    run = work.pictures([saved(tmp_path / "a.png", 300, 300)], Wish("tiny"), stop)
    if how == "time":
        with pytest.raises(StoppedError, match="time"):
            done(run)
    else:
        assert next(run).words == "a.png, reading"
        if how == "event":
            stop.set()
            with pytest.raises(StoppedError, match="cancelled"):
                done(run)
        else:
            run.close()
    assert list((tmp_path / "work").iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name == "yonos-web-order"]


def test_what_is_old_is_swept_away(engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By time that passes here: neither a clock that jumps nor the times of files count."""
    now_s = 1000.0
    monkeypatch.setattr(web_work.time, "monotonic", lambda: now_s)
    work = workshop(tmp_path / "work", engine_dir, keep_s=60)
    saved(tmp_path / "work" / "old" / "1" / "a.png")
    work.sweep()
    now_s += 50
    new = saved(tmp_path / "work" / "new" / "1" / "a.png")
    for place in (new, new.parent):
        os.utime(place, (0, 0))
    for clock_s in (0.0, 1e11):  # set back, and ahead
        monkeypatch.setattr(web_work.time, "time", lambda clock_s=clock_s: clock_s)
        work.sweep()
        assert (tmp_path / "work" / "old" / "1" / "a.png").exists()
    now_s += 11
    work.sweep()
    assert not (tmp_path / "work" / "old").exists()
    assert new.exists()
    now_s += 60
    work.sweep()
    assert not (tmp_path / "work" / "new").exists()


def test_a_video_is_enlarged_and_cancelled_like_a_picture(engine_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV: pip install '.[video]'")
    from video_clips import write_clip

    clip = tmp_path / "clip.mkv"
    write_clip(clip, frames=3)
    work = workshop(tmp_path / "work", engine_dir)
    words, result = done(work.video(clip, Wish("tiny"), 20, ".mp4", threading.Event()))
    assert isinstance(result, Result)
    assert (result.target.name, result.target.stat().st_size > 500) == ("clip_x4.mp4", True)
    assert any("frame 3" in word for word in words)
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        done(work.video(clip, Wish("tiny"), 20, ".mp4", stop))
    small = workshop(tmp_path / "work", engine_dir, result_pixels=10)
    with pytest.raises(InputError, match="10 pixels"):
        done(small.video(clip, Wish("tiny"), 20, ".mkv", threading.Event()))


# ---------------------------------------------------------------------------------------------------------
# The server


def web_python() -> str | None:
    """Return the interpreter that has Gradio."""
    own = ROOT / ".venv-web" / "bin" / "python"
    if own.exists():
        return str(own)
    return sys.executable if importlib.util.find_spec("gradio") else None


@dataclass
class Server:
    process: subprocess.Popen[str]
    address: str
    temporary: Path

    def orders(self) -> list[Path]:
        return sorted(self.temporary.glob("yonos-web-*/order-*"))


@pytest.fixture(scope="module")
def server(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    python = web_python()
    if python is None:
        skip_or_fail("YONOS_REQUIRE_WEB", "Gradio is not installed: make .venv-web/.ready")
    temporary = tmp_path_factory.mktemp("server")
    code = "import sys; from yonos_trt.console import yonos; sys.argv[0] = 'yonos'; yonos()"
    arguments = ["web", "--port", "0", "-m", str(engine_dir), "--threads", "1", "--max-file-mb", "1"]
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [python, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    if not address.startswith("http://127.0.0.1:"):
        process.kill()
        pytest.fail(f"no server: {address} {process.communicate()[1]}")
    yield Server(process, address.rstrip("/"), temporary)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: " in errors
    assert list(temporary.glob("yonos-web-*")) == []  # the temporary folder is emptied


CLIENT = """
import json, sys
from gradio_client import Client, handle_file
address, source, other, note = sys.argv[1:]
client = Client(address, verbose=False, download_files=False)
def call(*files, model="engine", factor=0, format="as the input"):
    files = [handle_file(f) if isinstance(f, str) else f for f in files]
    try:
        out = client.predict(files, model, factor, 0.0, format, 95, True, api_name="/upscale")
    except Exception as error:
        return [type(error).__name__, str(error)]
    return [[f["path"] if isinstance(f, dict) else f for f in out[0]], out[1]]
foreign = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
address = {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}}
print(json.dumps({
    "one": call(source, format="JPEG"),
    "two": call(source, other),
    "factor": call(source, factor=2.5),
    "large": call(source, factor=5),
    "bad": call(note),
    "none": call(),
    "model": call(source, model="/etc"),
    "foreign": call(foreign),
    "address": call(address),
    "api": sorted(client.view_api(return_format="dict")["named_endpoints"]),
}))
"""


def test_the_api_answers_gradios_own_client(server: Server, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no picture")
    sources = [saved(tmp_path / "a.png"), saved(tmp_path / "b.png", 8, 8)]
    run = subprocess.run(
        [web_python() or "", "-c", CLIENT, server.address, *map(str, sources), str(note)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["api"] == ["/upscale", "/video"]
    paths, words = told["one"]
    assert [Path(p).name for p in paths] == ["a_x4.jpg"]
    assert "120 x 80 px" in words
    assert [Path(p).name for p in told["two"][0]] == ["a_x4.png", "b_x4.png", "yonos.zip"]
    assert "a_x2.5.png, 75 x 50 px" in told["factor"][1]
    assert "expected 1 to 4" in told["large"][1]
    assert "note.txt" in told["bad"][1]
    assert "no pictures" in told["none"][1]
    assert "not in the list of choices" in told["model"][1]
    assert told["foreign"][0].endswith("Error")  # no file of the server's machine
    assert "fetches nothing" in told["address"][1] or "not in the cache" in told["address"][1]


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is the loopback's too on Linux only")
def test_the_server_listens_at_one_address_of_the_loopback(server: Server) -> None:
    port = int(server.address.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=60).close()
    with pytest.raises(ConnectionRefusedError):  # a server on all interfaces answers here too
        socket.create_connection(("127.0.0.2", port), timeout=60).close()


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Any]:
    with chromium() as driver:
        driver.set_window_size(1200, 1000)
        driver.get(server.address)
        yield driver


def found(driver: Any, css: str, *, seconds: float = 120) -> Any:
    """Wait for an element that can be seen."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def visible(_: Any) -> Any:
        shown = [e for e in driver.find_elements(By.CSS_SELECTOR, css) if e.is_displayed()]
        return shown[0] if shown else None

    return WebDriverWait(driver, seconds, 0.1, ignored_exceptions=[Exception]).until(visible, css)


def give(driver: Any, css: str, *paths: Path) -> None:
    """Choose files, after those of before are gone."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(driver, 60, 0.1)
    for button in driver.find_elements(By.CSS_SELECTOR, f"{css} button[aria-label='Clear']"):
        button.click()
        wait.until(lambda d: not d.find_elements(By.CSS_SELECTOR, f"{css} td.filename"))
    control = wait.until(lambda d: d.find_element(By.CSS_SELECTOR, f"{css} input[type=file]"))
    control.send_keys("\n".join(map(str, paths)))
    names = (
        f"return [...document.querySelectorAll('{css} td.filename')].map(x => x.getAttribute('aria-label'))"
    )
    wait.until(lambda d: sorted(d.execute_script(names)) == sorted(path.name for path in paths))


def says(driver: Any, css: str, text: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 120, 0.1, ignored_exceptions=[Exception]).until(
        lambda d: text in d.find_element(By.CSS_SELECTOR, css).text, f"{text!r} in {css}"
    )


def test_a_user_drops_a_picture_and_compares_by_keyboard_and_touch(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    give(browser, "#pictures", saved(tmp_path / "one.png", 60, 90))
    found(browser, "#start").click()
    slider = found(browser, "#pair input[type=range]")
    says(browser, "#told", "360 x 240 px")
    sizes = "return [...document.querySelectorAll('#pair img')].map(i => [i.complete, i.naturalWidth])"
    for _ in range(100):
        if browser.execute_script(sizes) == [[True, 360], [True, 90]]:
            break
        time.sleep(0.1)
    else:
        pytest.fail(str(browser.execute_script(sizes)))
    stack = found(browser, "#pair .stack")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stack)
    slider.send_keys(Keys.HOME)
    after = pixels_of(stack)
    slider.send_keys(Keys.END)
    before = pixels_of(stack)
    slider.send_keys(Keys.ARROW_LEFT)
    assert slider.get_attribute("value") == "99"
    assert np.abs(after - before).mean() > 0.5
    where = slider.rect
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", slider)
    point = {"x": where["x"] + where["width"] / 4, "y": top + where["height"] / 2}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert 20 <= int(slider.get_attribute("value")) <= 30
    button = found(browser, "#pair button")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert browser.execute_script("return arguments[0].getBoundingClientRect().width", stack) == 360


def test_a_wrong_file_is_told_by_name_and_the_page_goes_on(browser: Any, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no picture")
    give(browser, "#pictures", note)
    found(browser, "#start").click()
    says(browser, "#told .bad", "note.txt")
    give(browser, "#pictures", note, saved(tmp_path / "a.png", 9, 9), saved(tmp_path / "b.png", 9, 9))
    found(browser, "#start").click()
    found(browser, "#results td[aria-label='yonos.zip']")
    says(browser, "#told .bad", "note.txt")
    assert found(browser, "#show").is_displayed()


def test_cancel_ends_the_work_and_leaves_nothing_of_it(server: Server, browser: Any, tmp_path: Path) -> None:
    give(browser, "#pictures", saved(tmp_path / "large.png", 700, 700))
    before = server.orders()
    found(browser, "#start").click()
    says(browser, "#told", "tile ")
    found(browser, "#cancel").click()
    says(browser, "#told", "cancelled")
    assert server.orders() == before


def test_the_dial_is_shown_only_where_the_model_has_one(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def choose(model: str) -> None:
        box = found(browser, "#model input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(model, Keys.ENTER)

    def shown(driver: Any) -> Any:
        dials = "[...document.querySelectorAll('.restore')]"
        return driver.execute_script(f"return {dials}.some(e => e.offsetParent !== null)")

    assert found(browser, ".restore")  # lite-x4
    try:
        choose("engine")
        WebDriverWait(browser, 60).until_not(shown)
    finally:
        choose("lite-x4")
    WebDriverWait(browser, 60).until(shown)


def test_a_phone_needs_no_scrolling_sideways_and_dark_is_dark(browser: Any) -> None:
    wide = {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    colour = "return getComputedStyle(document.body).backgroundColor"
    found(browser, "#start")
    light = browser.execute_script(colour)
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wide)
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        browser.refresh()
        button = found(browser, "#start")
        widths = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert widths == [360, 360]
        assert button.size["height"] >= 36
        assert browser.execute_script(colour) != light
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_is_fetched_from_elsewhere_and_the_console_has_no_errors(
    server: Server, browser: Any
) -> None:
    requests = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith(server.address) for url in requests)
    assert [u for u in requests if not u.startswith((server.address, "data:", "blob:"))] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
