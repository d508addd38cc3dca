"""Loops over the tiles of a picture with ONNX Runtime, to measure our data path against.

`bare` is the least that can be done: for every tile of our plan the three sessions run, on inputs made
beforehand, and the result is thrown away. `quiet` is the same with threads that sleep while they have no
work, as in our own sessions, instead of spinning, ONNX Runtime's default. `naive` is what repositories of
one-step super-resolution models do: tiles of one size whatever the picture's, the last one shifted inside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_types import NotRun, Picture, Setting, Upscaler
from yonos_trt.backends.numpy import NumpyBackend
from yonos_trt.backends.ort import pick_onnx
from yonos_trt.backends.telemetry import import_onnxruntime
from yonos_trt.planning import plan_picture
from yonos_trt.tiles.plan import TilePlan, batches

Array = NDArray[np.float32]
Networks = Callable[[Array, Array], Array]

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_PLUGIN = "yonos-openvino"  # the name the plugin is registered under, once per process


def open_loop(kind: str, setting: Setting) -> Upscaler:
    """Open "bare", "quiet", "naive", "openvino-plugin", "cuda" or "tensorrt".

    Raises
    ------
    NotRun
        The installed ONNX Runtime lacks the provider.
    """
    networks = _networks(setting, kind)
    return (_Naive if kind == "naive" else _Bare)(setting, networks)


def _networks(setting: Setting, kind: str) -> Networks:
    ort = import_onnxruntime()
    provider = _PROVIDERS.get(kind, "CPUExecutionProvider")
    if provider not in ort.get_available_providers():
        raise NotRun(f"this ONNX Runtime has no {provider} (the package onnxruntime-gpu has it)")
    sessions = {}
    for name, artifact in pick_onnx(setting.manifest, setting.engine_dir).items():
        options = ort.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.log_severity_level = 3
        if kind == "quiet":
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if kind == "openvino-plugin":
            device = _openvino_device(ort)
            options.add_provider_for_devices([device], {"num_of_threads": str(setting.threads)})
            sessions[name] = ort.InferenceSession(setting.engine_dir / artifact.file, options)
        else:
            sessions[name] = ort.InferenceSession(
                setting.engine_dir / artifact.file, options, providers=[provider]
            )
            # a provider that cannot be loaded is replaced by the CPU without an error
            if (used := sessions[name].get_providers()[0]) != provider:
                raise NotRun(f"ONNX Runtime cannot load {provider} here and took {used}")

    def run(tiles: Array, noise: Array) -> Array:
        z_l = sessions["encoder"].run(None, {"image": tiles})[0]
        z_0 = sessions["step"].run(None, {"noise": noise, "z_l": z_l})[0]
        image: Array = sessions["decoder"].run(None, {"z_0": z_0})[0]
        return image

    return run


def _openvino_device(ort: Any) -> Any:
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError as error:
        raise NotRun("onnxruntime-ep-openvino is not installed") from error
    _register(plugin.get_library_path())
    for device in ort.get_ep_devices():
        if device.ep_name == plugin.get_ep_name() and device.device.type == ort.OrtHardwareDeviceType.CPU:
            return device
    raise NotRun("the OpenVINO plugin of ONNX Runtime offers no device for this processor")


@functools.cache
def _register(library: str) -> None:
    ort = import_onnxruntime()
    try:
        ort.register_execution_provider_library(_PLUGIN, library)
    except Exception as error:
        raise NotRun(f"ONNX Runtime cannot load the OpenVINO plugin: {error}") from error


def _plan(setting: Setting, lr: Picture, *, shrink: bool) -> TilePlan:
    return plan_picture(setting.manifest, *lr.shape[:2], tile_px=setting.tile_px, shrink=shrink).tiles


class _Bare:
    """Run the networks on every tile; the inputs are kept between calls on one picture."""

    def __init__(self, setting: Setting, networks: Networks) -> None:
        self._setting, self._networks = setting, networks
        self._kept: tuple[Picture, list[tuple[Array, Array]]] | None = None

    def _inputs(self, lr: Picture) -> list[tuple[Array, Array]]:
        if self._kept is None or self._kept[0] is not lr:
            backend = NumpyBackend(self._setting.manifest, kernels="native")
            plan = _plan(self._setting, lr, shrink=True)
            made = [
                (
                    backend.gather(lr, plan, batch, lane=0),
                    backend.noise(plan, batch, seed=self._setting.seed, lane=0),
                )
                for batch in batches(plan)
            ]
            self._kept = (lr, made)
        return self._kept[1]

    def __call__(self, lr: Picture) -> Picture:
        """Return an empty picture: only the time counts."""
        for tiles, noise in self._inputs(lr):
            image = self._networks(tiles, noise)
            assert image.shape[1] == 3
        scale = self._setting.manifest.model.scale
        return np.empty((lr.shape[0] * scale, lr.shape[1] * scale, 3), np.uint8)


class _Naive:
    """Enlarge the picture, cut, run, weight, add, divide: everything in whole-picture NumPy arrays."""

    def __init__(self, setting: Setting, networks: Networks) -> None:
        self._setting, self._networks = setting, networks

    def __call__(self, lr: Picture) -> Picture:
        """Return the upscaled picture; every tile has noise of its own and no colour fix is made."""
        from PIL import Image

        manifest = self._setting.manifest
        scale, factor = manifest.model.scale, manifest.model.latent_factor
        plan = _plan(self._setting, lr, shrink=False)
        pad = (
            (0, plan.padded_h_px // scale - lr.shape[0]),
            (0, plan.padded_w_px // scale - lr.shape[1]),
            (0, 0),
        )
        padded = np.pad(lr, pad, mode="symmetric")
        size = (plan.padded_w_px, plan.padded_h_px)
        large = np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BICUBIC), np.float32)
        read, step = (
            (padded.astype(np.float32), scale) if manifest.tiles.encoder_input == "lr" else (large, 1)
        )
        canvas = (read / 127.5 - 1).transpose(2, 0, 1)
        total = np.zeros((3, plan.padded_h_px, plan.padded_w_px), np.float32)
        weights = np.zeros_like(total)
        bell = _bell(plan.tile_h_px, plan.tile_w_px)
        rng = np.random.default_rng(self._setting.seed)
        for y in plan.ys:
            for x in plan.xs:
                inside = np.s_[:, y : y + plan.tile_h_px, x : x + plan.tile_w_px]
                cut = np.s_[
                    :, y // step : (y + plan.tile_h_px) // step, x // step : (x + plan.tile_w_px) // step
                ]
                noise = rng.standard_normal(
                    (1, manifest.model.latent_channels, plan.tile_h_px // factor, plan.tile_w_px // factor),
                    np.float32,
                )
                tile = self._networks(np.ascontiguousarray(canvas[cut])[None], noise)[0]
                total[inside] += tile * bell
                weights[inside] += bell
        picture = (total / weights).transpose(1, 2, 0)[: plan.height_px, : plan.width_px]
        return np.rint((picture.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


@functools.cache
def _bell(height: int, width: int) -> Array:
    """Return a Gaussian weight over a tile, sigma 1/4 of its side."""
    y, x = (np.exp(-(((np.arange(n) + 0.5) / n - 0.5) ** 2) * 8) for n in (height, width))
    return np.outer(y, x).astype(np.float32)
