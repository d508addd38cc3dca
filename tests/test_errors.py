"""The exception tree."""

from __future__ import annotations

import inspect

import pytest

from yonos_trt import errors
from yonos_trt.errors import listed


def test_every_error_is_a_yonos_error_and_exported() -> None:
    classes = {n: c for n, c in vars(errors).items() if inspect.isclass(c)}
    assert set(classes) == set(errors.__all__)
    assert all(issubclass(c, errors.YonosError) for c in classes.values())


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        assert name in errors.__doc__


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (errors.ConfigError, ValueError),
        (errors.InputError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.OutOfMemoryError, errors.CudaError),
    ],
)
def test_errors_are_also_what_callers_already_catch(error: type[Exception], base: type[Exception]) -> None:
    assert issubclass(error, base)


def test_missing_extra_names_the_package_and_the_command() -> None:
    error = errors.MissingExtraError("yonos video", package="av", extra="video")
    assert "'av'" in str(error)
    assert "pip install -c constraints.txt '.[video]' (in the checkout of yonos-trt" in str(error)
    assert (error.package, error.extra) == ("av", "video")


def test_out_of_memory_says_how_much_was_asked_and_what_to_do() -> None:
    error = errors.OutOfMemoryError("decoder", asked_bytes=3 << 20, free_bytes=None)
    assert "asked for 3 MiB" in str(error)
    assert "unknown" in str(error)
    assert "smaller tile" in str(error)


def test_numeric_error_carries_stage_and_tile() -> None:
    error = errors.NumericError("bad", stage="step", tile=7)
    assert (error.stage, error.tile) == ("step", 7)


def _raise(error: Exception) -> None:
    with errors.memory_that_runs_out("upscaling"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 3 TiB"),
        RuntimeError("can't start new thread"),
        RuntimeError("Resource temporarily unavailable"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 B"),
        RuntimeError("core.cpp:268: Cannot load library x.so: failed to map segment from shared object"),
        RuntimeError("Exception from core.cpp:120: std::bad_alloc"),
        ImportError("x.so: failed to map segment from shared object"),
        ImportError("x.so: cannot allocate memory in static TLS block"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_ours(error: Exception) -> None:
    with pytest.raises(errors.OutOfMemoryError, match="upscaling ran out of host memory") as caught:
        _raise(error)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("other"),
        ImportError("no module"),
        OSError(28, "No space left"),
        ValueError("x"),
        OSError(11, "Resource temporarily unavailable"),
        errors.InputError("x"),
        errors.NumericError("n", stage="step", tile=0),
    ],
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        _raise(error)
    assert caught.value is error


def test_a_list_of_what_a_file_holds_is_short() -> None:
    assert listed(["b", "a", "b"]) == "2 x b, a"
    assert listed(range(100), most=3) == "0, 1, 2 and 97 more"
    assert listed([]) == ""
