"""Run `workflow.json` in a real ComfyUI on the CPU, cancel a long one, and check what comes out.

    python integrations/comfyui/walk.py path/to/ComfyUI --python path/to/its/python

ComfyUI lies beside the checkout and is never part of it. It runs in a temporary base folder, at 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Send a request to ComfyUI's server and return its JSON."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{address}{path}", data), timeout=60) as answer:
        raw = answer.read()
    return json.loads(raw) if raw else None


def finished(address: str, graph: dict[str, Any], *, cancel_after_s: float | None = None) -> Any:
    """Queue a graph and return its entry in the history."""
    number = ask(address, "/prompt", {"prompt": graph})["prompt_id"]
    begin = time.monotonic()
    while number not in (history := ask(address, f"/history/{number}")):
        if cancel_after_s is not None and time.monotonic() - begin > cancel_after_s:
            ask(address, "/interrupt", {})
            cancel_after_s = None
        if time.monotonic() - begin > 900:
            raise SystemExit("ComfyUI did not finish within 15 minutes")
        time.sleep(0.2)
    return history[number] | {"seconds": time.monotonic() - begin}


def main() -> None:
    """Walk through it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="yonos-comfyui-") as name:
        base = Path(name)
        for folder in ("input", "output", "custom_nodes", "models", "temp", "user"):
            (base / folder).mkdir()
        (base / "custom_nodes" / "yonos-trt").symlink_to(HERE)
        picture = Image.open(HERE.parents[1] / "examples" / "chelsea.png").convert("RGB")
        picture.crop((60, 40, 180, 130)).save(base / "input" / "picture.png")
        picture.resize((900, 600)).save(base / "input" / "large.png")
        log = (base / "log.txt").open("w+")
        arguments = ["--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
        process = subprocess.Popen(
            [options.python, "main.py", *arguments, "--disable-api-nodes"],
            cwd=options.comfyui,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        try:
            for _ in range(600):
                try:
                    info = ask(address, "/object_info/YonosUpscale")
                    break
                except (urllib.error.URLError, ConnectionError):
                    if process.poll() is not None:
                        log.seek(0)
                        raise SystemExit(f"ComfyUI ended: {log.read()[-4000:]}") from None
                    time.sleep(0.5)
            assert info["YonosUpscale"]["output"] == ["IMAGE", "MASK"], info
            graph = json.loads((HERE / "workflow.json").read_text(encoding="utf-8"))
            done = finished(address, graph)
            assert done["status"]["status_str"] == "success", done
            saved = done["outputs"]["4"]["images"][0]["filename"]
            out = Image.open(base / "output" / saved)
            assert out.size == (300, 225), out.size
            from yonos_trt import SR

            source = np.asarray(Image.open(base / "input" / "picture.png"), np.float32) / 255
            ours = SR("lite-x4").upscale(source, size=(225, 300))
            difference = np.abs(np.asarray(out, np.float32) - 255 * ours).max()
            assert difference <= 1, difference  # ComfyUI's SaveImage rounds down
            print(f"workflow.json: {out.size}, as SR within {difference:.2f} of 255, {done['seconds']:.1f} s")
            graph["1"]["inputs"]["image"] = "large.png"
            graph["2"]["inputs"]["seed"] = 1
            stopped = finished(address, graph, cancel_after_s=3)
            kinds = [kind for kind, _ in stopped["status"]["messages"]]
            assert "execution_interrupted" in kinds, kinds
            print(f"cancelled after {stopped['seconds']:.1f} s; the next one runs:")
            graph["1"]["inputs"]["image"], graph["3"]["inputs"]["factor"] = "picture.png", 0.0
            again = finished(address, graph)
            print(Image.open(base / "output" / again["outputs"]["4"]["images"][0]["filename"]).size)
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
