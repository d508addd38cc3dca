"""`SR` between NVDEC and NVENC: a video's pixels through the TensorRT back end without leaving the device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("av")

from compiled import emulated_kernels
from fake_nvcodec import Array, install
from fake_tensorrt import FakeTensorRT, write_engines
from test_cuda import load_standin
from test_trt_abi import AtOnce
from video_clips import shown, write_clip

from yonos_trt.cuda.driver import CudaDriver
from yonos_trt.cuda.kernels import CudaKernels
from yonos_trt.sr import SR
from yonos_trt.trt.backend import TrtBackend
from yonos_trt.video import VideoOptions, upscale_video
from yonos_trt.video.format import EncoderSettings

LOSSLESS = EncoderSettings("ffv1", None)
H264 = EncoderSettings("h264_nvenc", 0)  # a constant quantiser of 0 is lossless in the stand-in


def test_frames_go_from_nvdec_through_the_networks_to_nvenc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SR` on the TensorRT back end, whose driver, kernels and engines are stand-ins on the same memory."""
    load_standin()
    kernels = emulated_kernels()
    engine_dir = tmp_path / "engine"
    engine_dir.mkdir()
    write_engines(engine_dir, precisions=("fp32",))

    def open_backend(*_: Any) -> TrtBackend:
        driver, module = CudaDriver(), FakeTensorRT(AtOnce())  # type: ignore[arg-type]
        return TrtBackend(
            engine_dir, driver=driver, kernels=CudaKernels(kernels), module=module, graphs=False
        )

    monkeypatch.setattr("yonos_trt.session.open_backend", open_backend)
    memory = CudaDriver()

    def allocate(nbytes: int) -> int:
        with memory.current():
            return memory.allocate(nbytes)

    install(monkeypatch, allocate)
    source = write_clip(tmp_path / "in.mkv", frames=5)
    with SR(engine_dir, runtime="tensorrt", seed=4) as sr:
        for name, encoder, hwaccel in (
            ("gpu.mkv", H264, "cuda"),
            ("half.mkv", LOSSLESS, "cuda"),
            ("host.mkv", LOSSLESS, "none"),
        ):
            job = VideoOptions(encoder=encoder, hwaccel=hwaccel)

            def upscale(rgb: Any) -> Any:
                if not isinstance(rgb, Array):
                    return sr.upscale(rgb)
                # the stand-in's arrays are NumPy's underneath: show SR what CuPy's have, and nothing else
                return sr.upscale(SimpleNamespace(__cuda_array_interface__=rgb.__cuda_array_interface__))

            upscale_video(source, tmp_path / name, upscale, scale=sr.scale, options=job)
    assert len(shown(tmp_path / "host.mkv")) == 5
    assert shown(tmp_path / "gpu.mkv") == shown(tmp_path / "half.mkv") == shown(tmp_path / "host.mkv")
