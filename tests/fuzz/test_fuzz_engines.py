"""Mutated engine directories: manifests, graphs, external data, dial files.

With the hashes as they were, and with those that a hostile author would have written himself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

pytest.importorskip("onnx")

import onnx
from helpers import edit_manifest, external_dir, in_own_process, picture, tiny_graphs, with_external

from fuzz.mutate import Mutation, fuzz, mutate, mutations, told
from yonos_trt import SR
from yonos_trt.engine.manifest import MANIFEST_NAME, file_record, load_manifest
from yonos_trt.engine.restore import dial_file
from yonos_trt.errors import YonosError

PHOTO = picture(9, 11)
LONGEST_S = 20.0  # of one tiny directory, on a machine with other work


def whole_dir(root: Path) -> Path:
    """An engine directory with external data (of the step) and a dial (that moves nothing of the step)."""
    engine = external_dir(root)
    dials: dict[str, dict[str, Any]] = {}
    for stage in ("encoder", "step", "decoder"):
        raw = (engine / f"{stage}.onnx").read_bytes()
        tensors = onnx.load_from_string(raw).graph.initializer
        weights = b"" if stage == "step" else tensors[0].raw_data
        places = [(raw.index(weights), len(weights) // 4)] if weights else []
        moved = np.full(len(weights) // 4, 0.01, np.float16)
        path = engine / f"{stage}.dial"
        path.write_bytes(dial_file(np.array(places, np.int64).reshape(-1, 2), moved))
        record = file_record(path)
        dials[stage] = {"file": record.file, "sha256": record.sha256, "bytes": record.bytes}

    def turn(document: dict[str, Any]) -> None:
        document["model"]["restore"] = 0.5
        for stage, dial in dials.items():
            document["stages"][stage]["artifacts"][0]["dial"] = dial

    edit_manifest(engine, turn)
    return engine


def rehash(engine: Path) -> None:
    """Write the hashes and sizes of the files as they are now."""

    def correct(value: Any) -> None:
        if isinstance(value, dict) and {"file", "sha256", "bytes"} <= set(value):
            raw = (engine / value["file"]).read_bytes()
            value |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            correct(each)

    edit_manifest(engine, correct)


def upscaled_or_refused(engine: Path) -> np.ndarray[Any, Any] | None:
    """The picture, or None with an error of ours; in a time that a person waits."""
    start = time.monotonic()
    try:
        with SR(engine, memory_limit_mb=512) as sr:
            got: np.ndarray[Any, Any] = sr.upscale(PHOTO)
    except YonosError as error:
        told(error)
        return None
    finally:
        assert time.monotonic() - start < LONGEST_S
    assert (got.shape, got.dtype) == ((36, 44, 3), np.uint8)
    return got


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every leaf of a JSON document."""
    if isinstance(value, dict):
        return [p for key, v in value.items() for p in places(v, (*path, key))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in places(v, (*path, i))]
    return [path]


def with_leaf(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return copy


def test_a_mutated_file_of_an_engine_directory_is_refused(tmp_path: Path) -> None:
    """Whatever byte of an artifact changes, nothing runs; of the manifest, it is refused or says the same."""
    engine = whole_dir(tmp_path / "engine")
    wanted = upscaled_or_refused(engine)
    assert wanted is not None
    files = sorted(p.name for p in engine.iterdir() if p.is_file())
    assert len(files) == 8

    def check(drawn: tuple[str, list[Mutation]]) -> None:
        name, changes = drawn
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(engine, copy)
        raw = (copy / name).read_bytes()
        mutated = mutate(raw, changes)
        (copy / name).write_bytes(mutated)
        got = upscaled_or_refused(copy)
        if got is not None and load_manifest(copy).model.restore == 0.5:  # a digit of it may have changed
            assert name == MANIFEST_NAME or mutated == raw
            np.testing.assert_array_equal(got, wanted)

    assert fuzz(st.tuples(st.sampled_from(files), mutations()), check, share=0.3) >= 10


@in_own_process
def test_a_mutated_file_with_its_right_hash_runs_or_is_refused(tmp_path: Path) -> None:
    """An author's own damage gets past the hashes: a picture of the right size or an error, and no crash."""
    engine = whole_dir(tmp_path / "engine")
    assert upscaled_or_refused(engine) is not None
    files = [p.name for p in sorted(engine.iterdir()) if p.name != MANIFEST_NAME]

    def check(drawn: tuple[str, list[Mutation]]) -> None:
        name, changes = drawn
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(engine, copy)
        (copy / name).write_bytes(mutate((copy / name).read_bytes(), changes))
        rehash(copy)
        upscaled_or_refused(copy)

    assert fuzz(st.tuples(st.sampled_from(files), mutations(2)), check, share=0.2) >= 10


def test_a_hostile_dial_moves_weights_of_its_graph_or_nothing(tmp_path: Path) -> None:
    engine = whole_dir(tmp_path / "engine")
    assert upscaled_or_refused(engine) is not None
    size = (engine / "encoder.onnx").stat().st_size
    numbers = st.one_of(
        st.integers(-8, size + 8), st.sampled_from([-(2**63), -1, 2**31, 2**32, 2**62, 2**63 - 1])
    )
    places = st.lists(st.tuples(numbers, numbers), max_size=3)
    values = st.sampled_from([0.0, 0.5, 65504.0, float("inf"), float("nan")])
    kinds = st.sampled_from([np.float16, np.float32, np.int64, np.complex64, "S4"])

    def check(drawn: tuple[list[tuple[int, int]], float, int, Any]) -> None:
        at, value, count, kind = drawn
        array = np.array(at, np.int64).reshape(-1, 2)
        with np.errstate(all="ignore"):
            change = np.full(count, value).astype(kind)
        (engine / "encoder.dial").write_bytes(dial_file(array, change))
        rehash(engine)
        upscaled_or_refused(engine)

    drawn = st.tuples(places, values, st.integers(0, size), kinds)
    assert fuzz(drawn, check, share=0.1) >= 10


def test_no_name_makes_the_run_time_open_a_file_that_was_not_hashed(tmp_path: Path) -> None:
    """Outside and in hidden places lie other weights, which never come into a picture."""
    engine = whole_dir(tmp_path / "engine")
    wanted = upscaled_or_refused(engine)
    assert wanted is not None
    other = external_dir(tmp_path / "other", seed=2) / "step.data"
    for place in (
        tmp_path / "step.data",
        tmp_path / "other.data",
        engine / ".hidden",
        engine / ".sub" / "step.data",
    ):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(other, place)
    (engine / ".link").symlink_to(other)
    graph = with_external(tiny_graphs()[0]["step.onnx"], "step.data", offset=64)[0]
    names = [
        "step.data", "./step.data", ".sub/../step.data", ".sub/step.data", "../step.data", "../other.data",
        "../engine/step.data", str(tmp_path / "other.data"), f"file://{tmp_path}/other.data", ".hidden",
        ".link", "STEP.DATA", "step.data/", "step.data\0x", "*/_ORT_MEM_ADDR_/*", "/dev/zero", "",
    ]  # fmt: skip
    offsets = st.sampled_from(
        ["0", "64", "-64", "1", "+64", " 64", "6_4", "64.0", "", "x", str(2**63), str(-(2**63))]
    )

    def check(drawn: tuple[str, str | None, str | None]) -> None:
        name, offset, length = drawn
        model = onnx.load_from_string(graph)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                value = {"location": name, "offset": offset, "length": length}[entry.key]
                entry.value = entry.value if value is None else value
        (engine / "step.onnx").write_bytes(model.SerializeToString())
        rehash(engine)
        got = upscaled_or_refused(engine)
        if got is not None and offset in (None, "64", "+64", " 64", "6_4"):
            np.testing.assert_array_equal(got, wanted)

    drawn = st.tuples(st.sampled_from(names), st.none() | offsets, st.none() | offsets)
    assert fuzz(drawn, check, share=0.1) >= 10


def test_any_value_in_a_manifest_is_used_or_refused(tmp_path: Path) -> None:
    engine = whole_dir(tmp_path / "engine")
    path = engine / MANIFEST_NAME
    document = json.loads(path.read_text())
    leaves = places(document)
    values = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(
            [0, -1, 1, 2**31, 2**63, 10**30, 1e308, "", ".", "..", "/etc/passwd", "a/../../b", "\x00"]
        ),
        st.integers(),
        st.text(max_size=8),
        st.lists(st.integers(), max_size=2),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )

    def check(drawn: tuple[tuple[Any, ...], Any]) -> None:
        place, value = drawn
        path.write_text(json.dumps(with_leaf(document, place, value)))
        try:
            load_manifest(engine)
            with SR(engine, memory_limit_mb=512) as sr:
                sr.upscale(PHOTO)
        except YonosError as error:
            told(error)

    assert fuzz(st.tuples(st.sampled_from(leaves), values), check, share=0.3) >= 10
