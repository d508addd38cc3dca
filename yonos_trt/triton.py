"""What runs inside NVIDIA's Triton Inference Server: the two models of ``yonos-export --triton``.

Their ``1/model.py`` imports one of these classes under the name that Triton's Python backend looks for; the
engine directory lies beside it. One instance is one process of the backend with one `SR`: Triton queues,
counts and spreads requests, an instance answers them one after the other. ::

    Triton -> request -> PictureModel | TensorModel -> SR -> response, or an error with our text

Tensors travel by DLPack, never through the backend's own NumPy bindings: in Triton 2.51 those are compiled
for NumPy 1 and hand over empty results where NumPy 2 is installed, and a ``BYTES`` input ends the process.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from yonos_trt.backends.base import Array
from yonos_trt.errors import ConfigError, InputError, OutOfMemoryError
from yonos_trt.host import usable_cpus
from yonos_trt.images import SUPPORTED_SUFFIXES, SaveOptions, read_image
from yonos_trt.session import OnTiles
from yonos_trt.sizing import Sizing
from yonos_trt.sr import SR

_log = logging.getLogger(__name__)

ENGINE = "engine"
"""Name of the engine directory beside ``model.py``."""

TENSORS = {"IMAGE_UINT8": np.uint8, "IMAGE_UINT16": np.uint16, "IMAGE_FP32": np.float32}
"""Input of `TensorModel` -> its dtype; the output of the same name has the result."""

_USED = b"used_dltensor"
_SUFFIXES = {format: suffix.lstrip(".") for suffix, format in reversed(SUPPORTED_SUFFIXES.items())}


class _CancelledError(Exception):
    """Whoever asked has gone."""


class _Model:
    """What both models share: options, life cycle, errors, cancellation, one metric of our own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the engines; an error ends here, and Triton reports the model as not ready with its text.

        Parameters
        ----------
        args
            Triton's: ``model_config`` (JSON), ``model_repository`` (the model's folder), ``model_version``,
            ``model_instance_kind`` ("CPU" or "GPU") and ``model_instance_device_id``.

        Raises
        ------
        ConfigError
            The parameter ``options`` of ``config.pbtxt`` is no JSON object of `SR`'s options.
        YonosError
            The engine directory is damaged, or does not run here.
        """
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        folder = Path(args["model_repository"], args["model_version"], ENGINE)
        self._sr = SR(folder, **_options(args)).open()
        family = self._pb.MetricFamily(
            name="yonos_output_pixels_total",
            description="Pixels of finished results",
            kind=self._pb.MetricFamily.COUNTER,
        )
        self._pixels = family.Metric(labels={"model": args["model_name"], "version": args["model_version"]})
        self._family = family  # Triton forgets the metric with it

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request: with its outputs, or with an error that says what, got and expected."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Release the engines."""
        self._sr.close()

    def outputs(self, request: Any, parameters: dict[str, Any], on_tiles: OnTiles) -> dict[str, Array]:
        """Return name -> contiguous, writable array."""
        raise NotImplementedError

    def _answer(self, request: Any) -> Any:
        def on_tiles(done: int, total: int) -> None:
            if request.is_cancelled():
                raise _CancelledError

        errors = self._pb.TritonError
        try:
            on_tiles(0, 1)
            found = self.outputs(request, json.loads(request.parameters() or "{}"), on_tiles)
            return self._pb.InferenceResponse([self._tensor(*output) for output in found.items()])
        except _CancelledError:
            error = errors("the request was cancelled; what was done of it is discarded", errors.CANCELLED)
        except (InputError, ConfigError) as problem:
            text = str(problem).replace(str(self._sr.engine_dir), "this server")  # nobody else's business
            error = errors(text, errors.INVALID_ARG)
        except OutOfMemoryError as problem:
            _log.error("%s", problem)
            error = errors(str(problem), errors.UNAVAILABLE)
        except Exception as problem:
            _log.exception("a request failed")
            error = errors(f"{type(problem).__name__}: {problem}", errors.INTERNAL)
        return self._pb.InferenceResponse(error=error)

    def _tensor(self, name: str, array: Array) -> Any:
        """Hand an array to the backend; its memory lives until the response is sent."""
        capsule = array.__dlpack__()
        tensor = self._pb.Tensor.from_dlpack(name, capsule)
        # The backend marks what it took as "used_dlpack", of which NumPy complains when the capsule goes.
        ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), _USED)
        return tensor


class PictureModel(_Model):
    """The bytes of a picture file in ``IMAGE``, those of the upscaled one out, with all that it carried.

    ``INFO`` is JSON: ``format``, ``height_px``, ``width_px`` and ``left_out``, what of the source the result
    could not carry. Parameters of a request: ``format`` ("png", ...; default: the source's, PNG where that is
    not written), ``factor`` or ``long_edge``, ``alpha``, and the fields of `SaveOptions`.
    """

    def outputs(self, request: Any, parameters: dict[str, Any], on_tiles: OnTiles) -> dict[str, Array]:
        """Return ``IMAGE`` and ``INFO``, both (bytes,) uint8."""
        format, sizing, alpha, options = _wishes(parameters)
        picture = read_image(_input(request, "IMAGE").tobytes(), max_pixels=self._sr.max_pixels)
        format = format or _SUFFIXES.get(picture.kind.format or "", "png")
        left_out: list[str] = []
        with tempfile.TemporaryDirectory(prefix="yonos-") as folder:
            target = Path(folder) / f"result.{format}"
            try:
                self._sr.upscale_file(
                    picture, target, alpha=alpha, format=format, options=options, size=sizing,
                    on_tiles=on_tiles, on_left_out=left_out.extend,
                )  # fmt: skip
            except InputError as error:
                raise InputError(str(error).replace(str(target), "the result")) from error
            data = np.fromfile(target, np.uint8)
        height, width = self._sr.size_of(picture.height_px, picture.width_px, sizing)
        self._pixels.increment(height * width)
        info = {"format": format, "height_px": height, "width_px": width, "left_out": left_out}
        return {"IMAGE": data, "INFO": np.array(bytearray(json.dumps(info).encode()), np.uint8)}


class TensorModel(_Model):
    """A batch (N, H, W, C) in one of the inputs of `TENSORS`, its result in the output of the same name.

    C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); values as `SR.upscale`. Parameter of a request:
    ``alpha``.
    """

    def outputs(self, request: Any, parameters: dict[str, Any], on_tiles: OnTiles) -> dict[str, Array]:
        """Return the result, (N, s H, s W, C), of the input's dtype."""
        given = [tensor.name() for tensor in request.inputs()]
        if len(given) != 1:
            raise InputError(
                f"got {' and '.join(given) or 'no input'}, expected one of {', '.join(TENSORS)}; send one "
                "batch a request"
            )
        _known(parameters, {"alpha"})
        batch = _input(request, given[0])
        result = self._sr.upscale(batch, alpha=parameters.get("alpha", "bicubic"), on_tiles=on_tiles)
        self._pixels.increment(int(np.prod(result.shape[:3])))
        return {given[0]: result}


# ---------------------------------------------------------------------------------------------------------
# Pieces


def _options(args: Mapping[str, str]) -> dict[str, Any]:
    """Return `SR`'s options: those of ``config.pbtxt``, and what the instance's kind says."""
    config = json.loads(args["model_config"])
    text = config.get("parameters", {}).get("options", {}).get("string_value") or "{}"
    known = [
        n for n in inspect.signature(SR.__init__).parameters if n not in ("self", "engine_dir", "device")
    ]
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"options of config.pbtxt is {text!r}, expected a JSON object: {error}") from error
    if not isinstance(options, dict) or not set(options) <= set(known):
        raise ConfigError(
            f"options of config.pbtxt is {text!r}, expected a JSON object with some of {', '.join(known)} "
            "(the instance group chooses the device)"
        )
    if args["model_instance_kind"] == "GPU":
        return {**options, "device": int(args["model_instance_device_id"])}
    if not options.get("providers"):
        options.setdefault("runtime", "onnx")
    count = sum(int(group.get("count", 1)) for group in config.get("instance_group", ())) or 1
    options.setdefault("threads", max(1, usable_cpus() // count))
    return options


def _input(request: Any, name: str) -> Array:
    """Return an input without a copy; it belongs to the request and is read-only."""
    tensor = next((t for t in request.inputs() if t.name() == name), None)
    if tensor is None:
        raise InputError(f"got no input {name}; send one")
    if 0 in tensor.shape():
        raise InputError(f"{name} has the shape {tuple(tensor.shape())}, expected no side of 0")
    return np.from_dlpack(tensor)


def _wishes(parameters: dict[str, Any]) -> tuple[str | None, Sizing | None, str, SaveOptions]:
    """Return format, size, handling of alpha and `SaveOptions` as a request's parameters name them."""
    saving = {field.name for field in fields(SaveOptions)}
    _known(parameters, {"format", "factor", "long_edge", "alpha", *saving})
    size = {name: parameters[name] for name in ("factor", "long_edge") if name in parameters}
    if "factor" in size:
        try:
            size["factor"] = float(size["factor"])  # parameters of Triton are texts, whole numbers, or bools
        except ValueError as error:
            raise ConfigError(f"the factor is {size['factor']!r}, expected a number of 1 or more") from error
    format = parameters.get("format")
    if format is not None and f".{str(format).lower()}" not in SUPPORTED_SUFFIXES:
        expected = ", ".join(suffix.lstrip(".") for suffix in SUPPORTED_SUFFIXES)
        raise ConfigError(f"format is {format!r}, expected one of {expected}")
    for name in ("lossless", "drop_alpha", "drop_depth"):
        if not isinstance(value := parameters.get(name, False), bool):
            raise ConfigError(f"{name} is {value!r}, expected a bool")
    return (
        None if format is None else str(format).lower(),
        Sizing(**size) if size else None,
        str(parameters.get("alpha", "bicubic")),
        SaveOptions(**{name: value for name, value in parameters.items() if name in saving}),
    )


def _known(parameters: dict[str, Any], names: set[str]) -> None:
    if unknown := sorted(set(parameters) - names):
        raise ConfigError(
            f"the request has the parameter {', '.join(unknown)}, expected some of {', '.join(sorted(names))}"
        )
