"""`yonos-export --triton`: what it writes, and both models on a real Triton server, by NVIDIA's client."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import triton_server
from click.testing import CliRunner
from helpers import make_engine_dir, picture
from PIL import Image
from triton_server import Server
from yonos_export.cli import main
from yonos_export.triton import MODELS, write_repository

from yonos_trt import triton
from yonos_trt.engine.manifest import load_manifest
from yonos_trt.errors import ConfigError, EngineIntegrityError, InputError, NumericError, OutOfMemoryError
from yonos_trt.images import SaveOptions
from yonos_trt.sizing import Sizing
from yonos_trt.sr import SR

log = logging.getLogger(__name__)

# YONOS_TRITON_FULL=1 sends as many as docs/scale.md speaks of
FILES, REQUESTS = (200, 1000) if os.environ.get("YONOS_TRITON_FULL") == "1" else (24, 120)


def export(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments])


# ---------------------------------------------------------------------------------------------------------
# What is written


def test_an_engine_directory_becomes_a_repository_without_an_export(engine_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    result = export(engine_dir, "--triton", target)
    assert result.exit_code == 0, result.output
    assert f"{target}: yonos, yonos_tensor" in result.output
    assert {p.name for p in tmp_path.iterdir()} == {"repository"}
    assert {p.name for p in target.iterdir()} == set(MODELS)
    for name, kind in MODELS.items():
        version = target / name / "1"
        assert load_manifest(version / "engine") == load_manifest(engine_dir)
        assert f"import {kind} as TritonPythonModel" in (version / "model.py").read_text()
        assert "kind: KIND_CPU" in (target / name / "config.pbtxt").read_text()
        assert isinstance(getattr(triton, kind), type)


def test_an_option_of_the_export_is_not_ignored_where_nothing_is_exported(
    engine_dir: Path, tmp_path: Path
) -> None:
    result = export(engine_dir, "--fp16", "--triton", tmp_path / "to")
    assert (result.exit_code, "--fp32 / --fp16 / --bf16 says how to export" in result.stderr) == (2, True)
    assert not (tmp_path / "to").exists()
    assert export(engine_dir, "--dry-run", "--triton", tmp_path / "to").exit_code == 0
    assert not (tmp_path / "to").exists()


def test_an_export_goes_on_to_the_repository(engine_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    arguments = (
        engine_dir,
        "-o",
        tmp_path / "engines",
        "--onnx-only",
        "--no-verify",
        "--triton",
        tmp_path / "to",
    )
    result = export(*arguments)
    assert result.exit_code == 0, result.output
    assert load_manifest(tmp_path / "to" / "yonos" / "1" / "engine") == load_manifest(tmp_path / "engines")


def test_what_does_not_belong_to_the_directory_is_left_behind(engine_dir: Path, tmp_path: Path) -> None:
    own = make_engine_dir(tmp_path / "own")
    (own / ".cache").mkdir()
    (own / ".cache" / "kernels").write_text("x")
    write_repository(own, tmp_path / "to")
    names = {p.name for p in (tmp_path / "to" / "yonos_tensor" / "1" / "engine").iterdir()}
    assert names == {"manifest.json", "encoder.onnx", "step.onnx", "decoder.onnx"}


@pytest.mark.parametrize("command", [(), ("--dry-run",)])
def test_targets_that_are_not_ours_are_refused_before_any_work(
    engine_dir: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    other = tmp_path / "models"
    (other / "resnet" / "1").mkdir(parents=True)
    for target, word in ((other, "resnet"), (engine_dir / "manifest.json", "is a file")):
        out = tmp_path / "engines"
        result = export(engine_dir, "-o", out, "--onnx-only", "--triton", target, "--force", *command)
        assert result.exit_code == 2
        assert word in result.stderr
        assert "--triton" in result.stderr
        assert not out.exists()
    with pytest.raises(ConfigError, match="lie in each other"):
        write_repository(engine_dir, engine_dir / "inside")


def test_a_repository_is_replaced_with_force_and_stays_when_that_fails(
    engine_dir: Path, tmp_path: Path
) -> None:
    target = tmp_path / "repository"
    write_repository(engine_dir, target)
    before = sorted((p.relative_to(target), p.stat().st_mtime_ns) for p in target.rglob("*"))
    refused = export(engine_dir, "--triton", target)
    assert (refused.exit_code, "--force" in refused.stderr) == (2, True)
    damaged = make_engine_dir(tmp_path / "damaged")
    graph = (damaged / "step.onnx").read_bytes()
    (damaged / "step.onnx").write_bytes(graph[:-1] + bytes([graph[-1] ^ 1]))
    with pytest.raises(EngineIntegrityError, match="altered"):
        write_repository(damaged, target, force=True)
    assert sorted((p.relative_to(target), p.stat().st_mtime_ns) for p in target.rglob("*")) == before
    other = make_engine_dir(tmp_path / "other", scale=2)
    assert export(other, "--triton", target, "--force").exit_code == 0
    assert load_manifest(target / "yonos_tensor" / "1" / "engine").model.scale == 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".yonos")]


def test_where_there_are_no_hard_links_the_second_model_has_copies(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_repository(engine_dir, tmp_path / "to")
    load_manifest(tmp_path / "to" / "yonos_tensor" / "1" / "engine", verify=True)


# ---------------------------------------------------------------------------------------------------------
# Options and wishes


def arguments(options: str, *, kind: str = "CPU", device: str = "0", count: int = 1) -> dict[str, str]:
    config = {"parameters": {"options": {"string_value": options}}, "instance_group": [{"count": count}]}
    return {
        "model_config": json.dumps(config), "model_instance_kind": kind, "model_instance_device_id": device
    }  # fmt: skip


def test_an_instance_gets_its_device_or_its_share_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "usable_cpus", lambda: 9)
    assert triton._options(arguments('{"lanes": 3}', kind="GPU", device="2")) == {"lanes": 3, "device": 2}
    assert triton._options(arguments("", count=4)) == {"runtime": "onnx", "threads": 2}
    assert triton._options(arguments('{"threads": 5, "runtime": "openvino"}')) == {
        "threads": 5, "runtime": "openvino"
    }  # fmt: skip


@pytest.mark.parametrize("options", ["{", "[]", '{"tile": 4}', '{"device": 1}', '{"engine_dir": "/"}'])
def test_options_that_are_none_are_refused(options: str) -> None:
    with pytest.raises(ConfigError, match=r"options of config.pbtxt is .*expected a JSON object"):
        triton._options(arguments(options))


def test_parameters_of_a_request_are_those_of_the_sdk() -> None:
    assert triton._wishes({}) == (None, None, "bicubic", SaveOptions())
    wish = {"format": "JPG", "factor": "2.5", "alpha": "drop", "quality": 80, "drop_alpha": True}
    expected = ("jpg", Sizing(factor=2.5), "drop", SaveOptions(quality=80, drop_alpha=True))
    assert triton._wishes(wish) == expected


@pytest.mark.parametrize(
    ("wish", "match"),
    [
        ({"qualiti": 3}, "parameter qualiti, expected some of alpha, compression"),
        ({"quality": "high"}, "quality is 'high', expected a whole number"),
        ({"factor": "much"}, "factor is 'much', expected a number"),
        ({"factor": "2", "long_edge": 9}, "name one"),
        ({"long_edge": "9"}, "expected whole px"),
        ({"format": "doc"}, "format is 'doc', expected one of png"),
        ({"format": "../../x"}, "expected one of png"),
        ({"drop_alpha": "no"}, "drop_alpha is 'no', expected a bool"),
    ],
)
def test_parameters_that_are_none_are_refused(wish: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        triton._wishes(wish)


# ---------------------------------------------------------------------------------------------------------
# Errors, on a stand-in of the backend's module: what a real server is not made to do here


class TritonError:
    INVALID_ARG, UNAVAILABLE, INTERNAL, CANCELLED = "invalid", "unavailable", "internal", "cancelled"

    def __init__(self, text: str, code: str) -> None:
        self.text, self.code = text, code


@pytest.mark.parametrize(
    ("problem", "code", "text"),
    [
        (InputError("E/engine: bad"), "invalid", "this server: bad"),
        (ConfigError("bad"), "invalid", "bad"),
        (OutOfMemoryError("a picture ran out"), "unavailable", "a picture ran out"),
        (NumericError("NaN", stage="step", tile=1), "internal", "NumericError: NaN"),
        (KeyError("x"), "internal", "KeyError: 'x'"),
    ],
)
def test_every_error_has_its_code(problem: Exception, code: str, text: str) -> None:
    class Failing(triton.PictureModel):
        def outputs(self, *_: object) -> Any:
            raise problem

    model = Failing()
    model._pb = SimpleNamespace(TritonError=TritonError, InferenceResponse=SimpleNamespace)
    model._sr = SimpleNamespace(engine_dir=Path("E/engine"))  # type: ignore[assignment]
    request = SimpleNamespace(is_cancelled=lambda: False, parameters=lambda: "{}")
    (response,) = model.execute([request])
    assert response.error.code == code
    assert response.error.text.startswith(text)
    request.is_cancelled = lambda: True
    assert model.execute([request])[0].error.code == "cancelled"


# ---------------------------------------------------------------------------------------------------------
# A real server


@pytest.fixture(scope="module")
def server(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    triton_server.needed()
    folder = tmp_path_factory.mktemp("server")
    repository = folder / "repository"
    assert export(engine_dir, "--triton", repository).exit_code == 0
    config = repository / "yonos_tensor" / "config.pbtxt"
    text = config.read_text().replace("max_queue_size: 64", "max_queue_size: 2")
    config.write_text(text.replace("string_value: '{}'", """string_value: '{"threads": 1, "lanes": 1}'"""))
    running = Server(repository, folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def encoded(format: str, height: int, width: int, *, channels: int = 3, **save: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.squeeze(picture(height, width, channels=channels, seed=height))).save(
        stream, format, **save
    )
    return stream.getvalue()


def array(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)


def pictures() -> list[bytes]:
    """Files of several formats, modes and sizes, with metadata."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    kinds: list[Callable[[int, int], bytes]] = [
        lambda h, w: encoded("PNG", h, w),
        lambda h, w: encoded("JPEG", h, w, exif=exif, quality=90),
        lambda h, w: encoded("PNG", h, w, channels=4),
        lambda h, w: encoded("WEBP", h, w, lossless=True),
        lambda h, w: encoded("TIFF", h, w, dpi=(72, 72)),
        lambda h, w: encoded("BMP", h, w),
    ]
    return [kinds[k % len(kinds)](9 + 7 * k % 41, 12 + 11 * k % 53) for k in range(FILES)]


def saved(sr: SR, data: bytes) -> tuple[bytes, str]:
    """What `SR` itself makes of a file, in the file's own format."""
    result = sr.upscale(data)
    format = {"JPEG": "jpg", "BMP": "png"}.get(
        result.picture.kind.format or "", (result.picture.kind.format or "").lower()
    )
    return result.save(io.BytesIO(), format=format).getvalue(), format


def test_files_of_mixed_sizes_from_eight_clients_are_what_sr_makes(
    server: Server, sr: SR, tmp_path: Path
) -> None:
    files = pictures()
    jobs = [
        {"protocol": ("http", "grpc")[k // 3 % 2], "model": "yonos", "inputs": {"IMAGE": array(data)}}
        for k, data in enumerate(files)
    ]
    answers = server.ask(tmp_path / "ask", jobs, clients=8)
    pixels = 0
    for answer, data in zip(answers, files, strict=True):
        assert answer.error == ""
        expected, format = saved(sr, data)
        assert answer.outputs["IMAGE"].tobytes() == expected
        info = json.loads(answer.outputs["INFO"].tobytes())
        with Image.open(io.BytesIO(expected)) as image:
            assert (info["width_px"], info["height_px"]) == image.size
        assert (format.startswith(info["format"]), info["left_out"]) == (True, [])
        pixels += info["width_px"] * info["height_px"]
    found = server.metrics()
    assert found['yonos_output_pixels_total{model="yonos",version="1"}'] == pixels
    assert found['nv_inference_request_success{model="yonos",version="1"}'] == len(files)
    assert server.ready("yonos")
    assert "Traceback" not in server.log


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_batches_of_arrays_are_what_sr_makes(server: Server, sr: SR, tmp_path: Path, dtype: Any) -> None:
    name = next(n for n, kind in triton.TENSORS.items() if kind == dtype)
    batches = [
        np.stack([picture(h, w, dtype=dtype, channels=c, seed=k) for k in range(n)])
        for n, h, w, c in ((1, 1, 1, 3), (3, 17, 30, 3), (2, 21, 8, 4), (1, 30, 20, 1))
    ]
    jobs = [
        {"protocol": protocol, "model": "yonos_tensor", "inputs": {name: batch}}
        for batch in batches
        for protocol in ("http", "grpc")
    ]
    answers = server.ask(tmp_path / "ask", jobs)
    for answer, batch in zip(answers, (b for b in batches for _ in range(2)), strict=True):
        assert answer.error == ""
        assert list(answer.outputs) == [name]
        np.testing.assert_array_equal(answer.outputs[name], sr.upscale(batch))


def test_parameters_are_heeded(server: Server, sr: SR, tmp_path: Path) -> None:
    data = encoded("PNG", 20, 30, channels=4)
    wishes = [
        {"format": "jpg", "alpha": "drop", "quality": 60},
        {"factor": "2.5"},
        {"long_edge": 75, "format": "webp", "lossless": True},
    ]
    jobs = [
        {"protocol": p, "model": "yonos", "inputs": {"IMAGE": array(data)}, "parameters": wish}
        for wish in wishes
        for p in ("http", "grpc")
    ]
    answers = server.ask(tmp_path / "ask", jobs)
    assert [a.error for a in answers] == [""] * 6
    images = [a.outputs["IMAGE"].tobytes() for a in answers]
    assert images[::2] == images[1::2]
    expected = [
        sr.upscale(data, alpha="drop").save(io.BytesIO(), format="jpg", quality=60),
        sr.upscale(data, size=Sizing(factor=2.5)).save(io.BytesIO(), format="png"),
        sr.upscale(data, size=Sizing(long_edge=75)).save(io.BytesIO(), format="webp", lossless=True),
    ]
    assert images[::2] == [stream.getvalue() for stream in expected]


def test_what_cannot_be_used_is_refused_with_our_text_and_the_server_goes_on(
    server: Server, sr: SR, tmp_path: Path
) -> None:
    good = encoded("PNG", 20, 30)
    bomb = encoded("PNG", 8, 8)
    bomb = bomb[:16] + (50_000).to_bytes(4, "big") * 2 + bomb[24:]
    image = picture(4, 4)[None]
    cases: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
        ("yonos", {"IMAGE": array(b"no picture")}, {}, "<bytes>: "),
        ("yonos", {"IMAGE": array(good[:-30])}, {}, "<bytes>: "),
        ("yonos", {"IMAGE": array(bomb)}, {}, "<bytes>: "),
        ("yonos", {"IMAGE": array(b"")}, {}, "IMAGE has the shape (0,), expected no side of 0"),
        ("yonos", {"IMAGE": array(good)}, {"format": "doc"}, "format is 'doc', expected one of png"),
        ("yonos", {"IMAGE": array(good)}, {"factor": "9"}, "enlarges by 4"),
        ("yonos", {"IMAGE": array(encoded("PNG", 9, 9, channels=4))}, {"format": "jpg"}, "alpha"),
        ("yonos", {"IMAGE": image[0]}, {}, "unexpected shape for input 'IMAGE'"),  # Triton's own
        ("yonos", {"IMAGE": np.zeros(3, np.float32)}, {}, "data-type"),  # the same
        ("yonos_tensor", {"IMAGE_UINT8": np.zeros((1, 3, 3, 5), np.uint8)}, {}, "with 1 to 4 channels"),
        ("yonos_tensor", {"IMAGE_UINT8": np.zeros((1, 0, 3, 3), np.uint8)}, {}, "expected no side of 0"),
        ("yonos_tensor", {"IMAGE_FP32": np.full((1, 3, 3, 3), np.nan, np.float32)}, {}, "NaN"),
        ("yonos_tensor", {"IMAGE_UINT8": image}, {"alpha": "more"}, "alpha is 'more', expected one of"),
        (
            "yonos_tensor",
            {"IMAGE_UINT8": image},
            {"format": "png"},
            "parameter format, expected some of alpha",
        ),
        (
            "yonos_tensor",
            {"IMAGE_UINT8": image, "IMAGE_FP32": image.astype(np.float32)},
            {},
            "expected one of IMAGE_UINT8, IMAGE_UINT16, IMAGE_FP32",
        ),
    ]
    jobs = [
        {"protocol": p, "model": model, "inputs": dict(inputs), "parameters": parameters}
        for model, inputs, parameters, _ in cases
        for p in ("http", "grpc")
    ]
    stubs = {s.pid for s in server.stubs()}
    answers = server.ask(tmp_path / "ask", jobs)
    for answer, (*_, word) in zip(answers, (c for c in cases for _ in range(2)), strict=True):
        assert word in answer.error
        assert str(tmp_path) not in answer.error
        assert "/tmp" not in answer.error
        assert answer.status in ("400", "StatusCode.INVALID_ARGUMENT")
    after = server.ask(
        tmp_path / "after", [{"protocol": "http", "model": "yonos", "inputs": {"IMAGE": array(good)}}]
    )
    assert after[0].outputs["IMAGE"].tobytes() == saved(sr, good)[0]
    assert {s.pid for s in server.stubs()} == stubs


def test_a_full_queue_refuses_at_once_and_serves_the_rest(server: Server, sr: SR, tmp_path: Path) -> None:
    batch = picture(150, 150)[None]
    jobs = [
        {"protocol": ("http", "grpc")[k % 2], "model": "yonos_tensor", "inputs": {"IMAGE_UINT8": batch}}
        for k in range(8)
    ]
    answers = server.ask(tmp_path / "ask", jobs, clients=8)
    refused = [a for a in answers if a.error]
    assert 0 < len(refused) < 8
    assert all("Exceeds maximum queue size" in a.error for a in refused)
    assert {a.status for a in refused} <= {"503", "StatusCode.UNAVAILABLE"}
    expected = sr.upscale(batch)
    for answer in answers:
        if not answer.error:
            np.testing.assert_array_equal(answer.outputs["IMAGE_UINT8"], expected)
    assert max(a.seconds for a in refused) < max(a.seconds for a in answers)


def test_a_cancelled_request_stops_at_the_next_tile(server: Server, tmp_path: Path) -> None:
    small, large = picture(4, 4)[None], picture(700, 700)[None]
    whole = {"protocol": "grpc", "model": "yonos_tensor", "inputs": {"IMAGE_UINT8": large}}
    before = server.metrics()
    jobs = [
        {**whole, "cancel_after_s": 0.3},
        {"protocol": "grpc", "model": "yonos_tensor", "inputs": {"IMAGE_UINT8": small}},
    ]
    cancelled, next_one = server.ask(tmp_path / "ask", jobs)
    assert "CANCELLED" in cancelled.status
    assert next_one.error == ""
    name = 'nv_inference_compute_infer_duration_us{model="yonos_tensor",version="1"}'
    spent_s = (server.metrics()[name] - before[name]) / 1e6
    (complete,) = server.ask(tmp_path / "complete", [whole])
    assert next_one.seconds < complete.seconds / 2, (next_one, complete.seconds, spent_s)
    pixels = 'yonos_output_pixels_total{model="yonos_tensor",version="1"}'
    assert server.metrics()[pixels] - before[pixels] == 16 * (4 * 4 + 700 * 700)


def test_memory_does_not_grow_with_requests(server: Server, tmp_path: Path) -> None:
    data = encoded("JPEG", 40, 40)

    def jobs(number: int) -> list[dict[str, Any]]:
        return [
            {"protocol": ("http", "grpc")[k % 2], "model": "yonos", "inputs": {"IMAGE": array(data)}}
            for k in range(number)
        ]

    server.ask(tmp_path / "warm", jobs(60), clients=4)
    before = server.resident_bytes()
    answers = server.ask(tmp_path / "many", jobs(REQUESTS), clients=4)
    grown = server.resident_bytes() - before
    log.info(f"{REQUESTS} requests: {grown / 2**20:.1f} MiB more, of {before / 2**20:.0f} MiB")
    assert {a.error for a in answers} == {""}
    assert len({a.outputs["IMAGE"].tobytes() for a in answers}) == 1
    assert grown < 24 << 20


def test_an_instance_that_dies_is_an_error_at_once_and_leaves_the_other_model_alone(
    server: Server, tmp_path: Path
) -> None:
    """Triton 2.51 does not start it again, and calls the model ready: a probe has to ask for a picture."""
    server.stub_of("yonos").kill()
    data, image = array(encoded("PNG", 20, 30)), picture(4, 4)[None]
    jobs: list[dict[str, Any]] = [
        {"protocol": "http", "model": "yonos", "inputs": {"IMAGE": data}},
        {"protocol": "http", "model": "yonos_tensor", "inputs": {"IMAGE_UINT8": image}},
    ]
    dead, other = server.ask(tmp_path / "ask", jobs)
    assert "is not healthy" in dead.error
    assert dead.seconds < 30
    assert other.error == ""


def test_a_killed_server_leaves_no_process_and_starts_again(server: Server, sr: SR, tmp_path: Path) -> None:
    good = encoded("PNG", 20, 30)
    stubs = server.stubs()
    server.stop(signal.SIGKILL)
    until = time.monotonic() + 60
    while any(stub.is_running() and stub.status() != "zombie" for stub in stubs):
        assert time.monotonic() < until, stubs
        time.sleep(0.2)
    server.start()
    (answer,) = server.ask(
        tmp_path / "ask", [{"protocol": "grpc", "model": "yonos", "inputs": {"IMAGE": array(good)}}]
    )
    assert answer.outputs["IMAGE"].tobytes() == saved(sr, good)[0]
