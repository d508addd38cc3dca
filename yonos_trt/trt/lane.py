"""One lane's share of the TensorRT back end: three contexts, their buffers, and the order of one batch."""

from __future__ import annotations

from collections.abc import Hashable

from yonos_trt.cuda.device import Memory
from yonos_trt.cuda.kernels import TileKernels
from yonos_trt.cuda.launches import Check, DevicePicture, Gather, Noise
from yonos_trt.engine.manifest import EngineManifest, stage_tensors
from yonos_trt.trt.engines import Engine
from yonos_trt.trt.memory import BatchShape, BufferLayout, tensor_shapes
from yonos_trt.trt.ranges import Ranges, no_ranges

_BINDINGS = {
    "encoder": {"image": "image", "z_l": "z_l"},
    "step": {"noise": "noise", "z_l": "z_l", "z_0": "z_0"},
    "decoder": {"z_0": "z_0"},
}
"""Stage -> tensor -> buffer. The decoder's image goes to the slot, which changes from batch to batch."""


def buffer_dtypes(engines: dict[str, Engine]) -> dict[str, str]:
    """The type of every buffer, as the engines take and give it."""
    return {
        "image": engines["encoder"].dtypes["image"],
        "z_l": engines["encoder"].dtypes["z_l"],
        "noise": engines["step"].dtypes.get("noise", "float32"),
        "z_0": engines["step"].dtypes["z_0"],
        "tiles": engines["decoder"].dtypes["image"],
    }


def stage_inputs(
    manifest: EngineManifest, shape: BatchShape
) -> dict[str, dict[str, tuple[int, int, int, int]]]:
    """The input shapes of every stage."""
    shapes = tensor_shapes(manifest, shape)
    return {
        "encoder": {"image": shapes["image"]},
        "step": {name: shapes[name] for name in stage_tensors(manifest.model.start)["step"][0]},
        "decoder": {"z_0": shapes["z_0"]},
    }


class LaneNetworks:
    """The three stages on one stream, with activation memory that they share because they take turns.

    Parameters
    ----------
    engines
        Stage -> engine.
    key
        Prefix of this lane's buffers in the memory owner.
    """

    def __init__(self, engines: dict[str, Engine], manifest: EngineManifest, key: Hashable) -> None:
        self.key = key
        self.dtypes = buffer_dtypes(engines)
        self.manifest = manifest
        self.contexts = {name: engine.context() for name, engine in engines.items()}
        self.buffers: dict[str, int] = {}
        self._shape = BatchShape(0, 0, 0)
        self._scratch_bytes = 0

    def set_shapes(self, shape: BatchShape, stream: int) -> int:
        """Fix the shapes; returns the bytes of scratch memory that the neediest stage asks for."""
        if shape == self._shape:
            return self._scratch_bytes
        self._shape = shape
        inputs = stage_inputs(self.manifest, shape)
        self._scratch_bytes = max(
            context.set_shapes(inputs[name], stream) for name, context in self.contexts.items()
        )
        return self._scratch_bytes

    def allocate(self, memory: Memory, sizes: BufferLayout) -> None:
        """Take this lane's buffers and bind them, unless they are the same as before."""
        buffers = {name: memory.device((self.key, name), nbytes) for name, nbytes in sizes.lane.items()}
        if buffers == self.buffers:
            return
        self.buffers = buffers
        for name, context in self.contexts.items():
            context.set_memory(self.buffers["scratch"], sizes.lane["scratch"])
            for tensor, buffer in _BINDINGS[name].items():
                if tensor != "noise" or self.manifest.model.start == "noise":
                    context.bind(tensor, self.buffers[buffer])

    def capturable(self, stream: int) -> bool:
        """Whether all three stages may be captured into a graph."""
        return all(context.capturable(stream) for context in self.contexts.values())

    def enqueue(
        self,
        kernels: TileKernels,
        picture: DevicePicture,
        seed: int,
        tiles: int,
        flags: int,
        stream: int,
        ranges: Ranges = no_ranges,
    ) -> None:
        """Queue one batch: gather, encoder, noise, step, decoder, check. Origins lie in the lane already."""
        shape, buffers, model = self._shape, self.buffers, self.manifest.model
        shapes = tensor_shapes(self.manifest, shape)
        gather = Gather(
            picture,
            buffers["origins"],
            buffers["image"],
            count=shape.count,
            tile_h_px=shape.tile_h_px,
            tile_w_px=shape.tile_w_px,
            scale=model.scale,
            lr=self.manifest.tiles.encoder_input == "lr",
            half=self.dtypes["image"] == "float16",
        )
        noise = Noise(
            seed,
            buffers["origins"],
            buffers["noise"],
            count=shape.count,
            channels=model.latent_channels,
            factor=model.latent_factor,
            h_lat=shapes["noise"][2],
            w_lat=shapes["noise"][3],
            half=self.dtypes["noise"] == "float16",
        )
        check = Check(
            tiles,
            flags,
            count=shape.count,
            items=3 * shape.tile_h_px * shape.tile_w_px,
            half=self.dtypes["tiles"] == "float16",
        )
        with ranges("gather"):
            kernels.launch(gather, stream=stream)
        with ranges("encode"):
            self.contexts["encoder"].enqueue(stream)
        if model.start == "noise":
            with ranges("noise"):
                kernels.launch(noise, stream=stream)
        with ranges("step"):
            self.contexts["step"].enqueue(stream)
        with ranges("decode"):
            self.contexts["decoder"].bind("image", tiles)
            self.contexts["decoder"].enqueue(stream)
            kernels.launch(check, stream=stream)
