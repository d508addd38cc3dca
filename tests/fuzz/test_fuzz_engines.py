"""Mutated engine directories: manifests, graphs, external data, dial files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

pytest.importorskip("onnx")

from helpers import make_engine_dir, picture

from fuzz.mutate import Mutation, fuzz, mutate, mutations, told
from yonos_trt import SR
from yonos_trt.engine.manifest import MANIFEST_NAME, load_manifest
from yonos_trt.errors import YonosError

PHOTO = picture(9, 11)


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
    engine = make_engine_dir(tmp_path / "engine")
    with SR(engine) as sr:
        wanted = sr.upscale(PHOTO)
    files = sorted(p.name for p in engine.iterdir() if p.is_file())

    def check(drawn: tuple[str, list[Mutation]]) -> None:
        name, changes = drawn
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(engine, copy)
        raw = (copy / name).read_bytes()
        mutated = mutate(raw, changes)
        (copy / name).write_bytes(mutated)
        try:
            with SR(copy) as sr:
                got = sr.upscale(PHOTO)
        except YonosError as error:
            told(error)
        else:
            assert name == MANIFEST_NAME or mutated == raw
            np.testing.assert_array_equal(got[: len(wanted)], wanted)

    assert fuzz(st.tuples(st.sampled_from(files), mutations()), check, share=0.5) >= 10


def test_any_value_in_a_manifest_is_used_or_refused(tmp_path: Path) -> None:
    engine = make_engine_dir(tmp_path / "engine")
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

    assert fuzz(st.tuples(st.sampled_from(leaves), values), check, share=0.5) >= 10
