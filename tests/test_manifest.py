"""The engine directory: what loads, what is refused, and how it is written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import edit_manifest, make_engine_dir, tiny_graphs, tiny_manifest

from yonos_trt.engine import manifest as m
from yonos_trt.errors import ConfigError, EngineIntegrityError, EngineNotFoundError, ManifestError


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engine")


def test_a_written_directory_loads_as_it_was(tmp_path: Path) -> None:
    files, factor, channels = tiny_graphs()
    manifest = tiny_manifest(files, factor, channels)
    m.write_engine_dir(tmp_path / "engine", files, manifest)
    assert m.load_manifest(tmp_path / "engine") == manifest
    assert {p.name for p in tmp_path.iterdir()} == {"engine"}


def test_every_record_has_its_hash_and_size(engine_dir: Path) -> None:
    for record in m.load_manifest(engine_dir).records():
        assert m.file_record(engine_dir / record.file) == record


def test_artifacts_are_found_by_runtime_and_precision(engine_dir: Path) -> None:
    step = m.load_manifest(engine_dir).stages.step
    assert [a.file for a in step.find("onnx")] == ["step.onnx"]
    assert step.find("onnx", "fp16") == ()
    assert step.find("tensorrt") == ()


# ---------------------------------------------------------------------------------------------------------
# Files


def test_no_directory_and_no_manifest_name_the_command(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(EngineNotFoundError, match="yonos-export"):
            m.load_manifest(path)


def test_a_missing_file_is_refused(engine_dir: Path) -> None:
    (engine_dir / "step.onnx").unlink()
    with pytest.raises(EngineIntegrityError, match=r"step\.onnx is named .* but missing; export"):
        m.load_manifest(engine_dir, verify=False)


def test_an_extra_file_is_refused_also_in_a_folder(engine_dir: Path) -> None:
    (engine_dir / "sub").mkdir()
    extra = engine_dir / "sub" / "other.onnx"
    extra.write_bytes(b"x")
    with pytest.raises(EngineIntegrityError, match=r"other\.onnx is not named in manifest\.json; remove it"):
        m.load_manifest(engine_dir, verify=False)


def test_dotfiles_are_not_part_of_the_directory(engine_dir: Path) -> None:
    (engine_dir / ".cache").mkdir()
    (engine_dir / ".cache" / "kernels").write_bytes(b"x")
    (engine_dir / ".DS_Store").write_bytes(b"x")
    m.load_manifest(engine_dir)


def test_a_truncated_file_is_refused_without_hashing(engine_dir: Path) -> None:
    path = engine_dir / "step.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineIntegrityError, match="truncated"):
        m.load_manifest(engine_dir, verify=False)


def test_an_altered_byte_is_found_by_the_hash(engine_dir: Path) -> None:
    path = engine_dir / "step.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    manifest = m.load_manifest(engine_dir, verify=False)
    with pytest.raises(EngineIntegrityError, match="altered"):
        m.load_manifest(engine_dir)
    step, decoder = (getattr(manifest.stages, name).artifacts[0].file for name in ("step", "decoder"))
    records = {record.file: record for record in manifest.records()}
    with pytest.raises(EngineIntegrityError, match="altered"):
        m.read_file(engine_dir, records[step])
    assert m.read_file(engine_dir, records[decoder]) == (engine_dir / decoder).read_bytes()


@pytest.mark.parametrize(
    "file",
    [
        "../step.onnx",
        "/etc/passwd",
        "a/../../b",
        "a\\b",
        "C:x",
        "",
        ".hidden",
        "a//b",
        "./a",
        "manifest.json",
    ],
)
def test_paths_that_leave_the_directory_are_refused(engine_dir: Path, file: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["stages"]["step"]["artifacts"][0]["file"] = file

    edit_manifest(engine_dir, change)
    with pytest.raises(ManifestError, match="stays inside the directory"):
        m.load_manifest(engine_dir)


def test_a_link_out_of_the_directory_is_refused(engine_dir: Path, tmp_path: Path) -> None:
    path = engine_dir / "step.onnx"
    outside = tmp_path / "step.onnx"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(ManifestError, match="leads out of the directory"):
        m.load_manifest(engine_dir)
    path.unlink()
    outside.rename(engine_dir / ".step")
    path.symlink_to(".step")  # a link inside is fine
    m.load_manifest(engine_dir)


# ---------------------------------------------------------------------------------------------------------
# The manifest itself


@pytest.mark.parametrize(
    "raw", [b"", b"not json", b"\xff\xfe", b"[1]", b"{}", b'{"schema_version": "1"}', b"[" * 50_000]
)
def test_what_is_not_a_manifest_is_refused(engine_dir: Path, raw: bytes) -> None:
    (engine_dir / m.MANIFEST_NAME).write_bytes(raw)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        m.load_manifest(engine_dir)


@pytest.mark.parametrize("what", ["directory", "pipe", "endless", "socket"])
def test_a_manifest_that_is_no_regular_file_is_refused_at_once(engine_dir: Path, what: str) -> None:
    path = engine_dir / m.MANIFEST_NAME
    path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "endless":
        path.symlink_to("/dev/zero")
    else:
        os.mknod(path, 0o600 | stat.S_IFSOCK)
    with pytest.raises(ManifestError, match="cannot be read"):
        m.load_manifest(engine_dir)


def test_a_manifest_of_any_size_is_not_read_to_its_end(engine_dir: Path) -> None:
    with (engine_dir / m.MANIFEST_NAME).open("r+b") as stream:
        stream.truncate(1 << 40)  # a hole: takes no disk
    with pytest.raises(ManifestError, match="more than 16 MiB"):
        m.load_manifest(engine_dir)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["step.onnx", "other"])
def test_files_of_the_directory_that_are_no_regular_files_are_refused_at_once(
    engine_dir: Path, name: str, what: str, verify: bool
) -> None:
    path = engine_dir / name
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
        if name == "other":
            (path / "x").write_bytes(b"x")
    with pytest.raises((EngineIntegrityError, ManifestError), match=name):
        m.load_manifest(engine_dir, verify=verify)


def test_a_newer_schema_asks_for_an_update_whatever_else_it_holds(engine_dir: Path) -> None:
    (engine_dir / m.MANIFEST_NAME).write_text(json.dumps({"schema_version": m.SCHEMA_VERSION + 1, "new": 1}))
    with pytest.raises(
        ManifestError, match=r"git pull\), then: pip install -c constraints.txt \. \(in the checkout"
    ):
        m.load_manifest(engine_dir)


def _set(*path: Any, value: Any) -> Any:
    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("unknown", value=1), "unknown"),
        (_set("model", "scale", value="4"), "scale"),
        (_set("model", "scale", value=0), "scale is 0"),
        (_set("model", "latent_channels", value=0), "latent_channels"),
        (_set("model", "latent_factor", value=0), "latent_factor"),
        (_set("model", "weights_sha256", value="zz"), "weights_sha256"),
        (_set("model", "latent_channels", value=1 << 40), "latent_channels"),
        (_set("model", "scale", value=1 << 40), "scale is"),
        (_set("model", "scale", value=1 << 80), "scale"),
        (_set("tiles", "largest_px", value=1 << 40), "largest_px is 1099511627776, expected at most 32768"),
        (_set("tiles", "largest_px", value=1 << 80), "largest_px"),
        (_set("tiles", "smallest_px", value=-(1 << 40)), "smallest_px"),
        (_set("tiles", "overlap_px", value=1 << 40), "overlap_px"),
        (_set("tiles", "multiple_px", value=6), "not a multiple of model.scale"),
        (_set("tiles", "smallest_px", value=7), "smallest_px"),
        (_set("tiles", "default_px", value=8 * 100), "do not satisfy"),
        (_set("tiles", "overlap_px", value=1000), "overlap_px"),
        (_set("tiles", "encoder_input", value="both"), "encoder_input"),
        (_set("stages", "encoder", "inputs", 0, "name", value="x"), "expected \\('image',\\)"),
        (_set("stages", "step", "outputs", 0, "name", value="z"), "expected \\('z_0',\\)"),
        (_set("stages", "step", "inputs", value=[]), "expected \\('noise', 'z_l'\\)"),
        (_set("stages", "decoder", "inputs", 0, "shape", value=["N", 3]), "2 dimensions"),
        (_set("stages", "decoder", "inputs", 0, "shape", value=["N", 5, "H", "W"]), "5 channels"),
        (_set("stages", "decoder", "artifacts", value=[]), "no artifacts"),
        (_set("stages", "decoder", "artifacts", 0, "sha256", value="0"), "64 hex digits"),
        (_set("stages", "decoder", "artifacts", 0, "bytes", value=-1), "size"),
        (_set("stages", "decoder", "artifacts", 0, "file", value="step.onnx"), "named twice"),
        (_set("stages", "decoder", "artifacts", 0, "runtime", value="tflite"), "runtime"),
    ],
)
def test_wrong_fields_are_refused_with_their_name_and_the_fix(
    engine_dir: Path, change: Any, message: str
) -> None:
    edit_manifest(engine_dir, change)
    with pytest.raises(ManifestError, match=message) as caught:
        m.load_manifest(engine_dir)
    assert "yonos-export" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------
# Writing


def test_replacing_a_directory_leaves_nothing_else_behind(engine_dir: Path) -> None:
    files, factor, channels = tiny_graphs(seed=2)
    manifest = tiny_manifest(files, factor, channels)
    m.write_engine_dir(engine_dir, files, manifest)
    assert m.load_manifest(engine_dir) == manifest
    assert [p.name for p in engine_dir.parent.iterdir()] == ["engine"]


def test_a_failing_write_keeps_the_old_directory(engine_dir: Path) -> None:
    before = m.load_manifest(engine_dir)
    files, factor, channels = tiny_graphs(seed=2)
    manifest = tiny_manifest(files, factor, channels)
    with pytest.raises(EngineIntegrityError, match="truncated"):
        m.write_engine_dir(engine_dir, files | {"step.onnx": b"short"}, manifest)
    with pytest.raises(EngineIntegrityError, match="missing"):
        m.write_engine_dir(engine_dir, {"step.onnx": files["step.onnx"]}, manifest)
    assert m.load_manifest(engine_dir) == before
    assert [p.name for p in engine_dir.parent.iterdir()] == ["engine"]


def test_a_write_killed_before_the_rename_leaves_no_loadable_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, factor, channels = tiny_graphs()

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == "engine":
            raise KeyboardInterrupt
        return rename(source, target)

    rename = os.rename
    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        m.write_engine_dir(tmp_path / "engine", files, tiny_manifest(files, factor, channels))
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_never_replaced(tmp_path: Path) -> None:
    files, factor, channels = tiny_graphs()
    manifest = tiny_manifest(files, factor, channels)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"x")
    for target in (photos, photos / "a.jpg"):
        with pytest.raises(ConfigError, match="not an engine directory"):
            m.write_engine_dir(target, files, manifest)
    assert (photos / "a.jpg").read_bytes() == b"x"
    m.write_engine_dir(tmp_path / "empty", files, manifest)


def test_files_are_copied_from_paths_too(tmp_path: Path) -> None:
    files, factor, channels = tiny_graphs()
    paths: dict[str, str | os.PathLike[str] | bytes] = {}
    for name, raw in files.items():
        (tmp_path / f"from_{name}").write_bytes(raw)
        paths[name] = tmp_path / f"from_{name}"
    m.write_engine_dir(tmp_path / "engine", paths, tiny_manifest(files, factor, channels))
    m.load_manifest(tmp_path / "engine")


def test_saving_refuses_what_would_not_load(engine_dir: Path) -> None:
    manifest = m.load_manifest(engine_dir)
    bad = msgspec.structs.replace(manifest, tiles=msgspec.structs.replace(manifest.tiles, overlap_px=10_000))
    with pytest.raises(ManifestError, match="overlap_px"):
        m.save_manifest(engine_dir, bad)
    assert m.load_manifest(engine_dir) == manifest


def test_the_identity_manifest_has_no_artifacts() -> None:
    manifest = m.identity_manifest(scale=2, encoder_input="lr")
    assert manifest.model.scale == 2
    assert list(manifest.records()) == []
