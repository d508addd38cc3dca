"""Temporal stabilisation (`--stabilize`): average what the network adds over two frames, along the motion.

::

    added_t = result_t - bicubic_t            what the network put into frame t beyond interpolation
    out_t   = bicubic_t + (1 - w m) added_t + w m warp(added_{t-1})      w = 1/2, m in {0, 1} per pixel

The low frequencies stay those of the frame itself; only added detail is averaged, and only where the motion
between the two low-resolution frames is trusted (m): forward and backward flow agree, and the warped previous
frame looks like this one. A scene cut or an uncovered background has m = 0 and passes untouched.

The previous frame's *unaveraged* addition is used, so a frame depends on two frames only: nothing drifts, and
a resumed job is primed by upscaling one frame again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from yonos_trt.errors import MissingExtraError

WEIGHT = 0.5  # of the previous frame: for two equally noisy frames the mean has the least variance
#: Ruder, Dosovitskiy and Brox (2016): |f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5, flows in LR px
CONSISTENCY = (0.01, 0.5)
LOOKS_ALIKE = (
    12.0  # largest mean difference of the colours, in 255ths: above usual sensor noise, below an edge
)


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError("--stabilize", package="cv2", extra="stabilize", reason=str(error)) from error
    return cv2


class Stabilizer:
    """Stabilises frames given in order; holds one frame of state.

    Parameters
    ----------
    scale
        Enlargement from the low-resolution frames to the results.

    Raises
    ------
    MissingExtraError
        OpenCV, which estimates the motion, is not installed.
    """

    def __init__(self, scale: int) -> None:
        self._cv2 = _cv2()
        self._flow = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._scale = scale
        self._low: NDArray[Any] | None = None  # (H, W, 3) uint8
        self._added: NDArray[np.float32] | None = None  # (s H, s W, 3)

    def __call__(self, low: NDArray[Any], result: NDArray[Any]) -> NDArray[Any]:
        """Return the stabilised result.

        Parameters
        ----------
        low
            (H, W, 3) uint8 or uint16, the frame before upscaling.
        result
            (s H, s W, 3) of the same type, the frame after it; not changed.
        """
        height, width = result.shape[:2]
        base = self._cv2.resize(low.astype(np.float32), (width, height), interpolation=self._cv2.INTER_CUBIC)
        added = result - base
        low8 = low if low.dtype == np.uint8 else (low >> 8).astype(np.uint8)
        before_low, before = self._low, self._added
        self._low, self._added = low8, added
        if before is None or before_low is None or before_low.shape != low8.shape:
            return result
        motion, trusted = self._motion(low8, before_low)
        trusted = self._cv2.resize(trusted, (width, height), interpolation=self._cv2.INTER_LINEAR)
        motion = self._cv2.resize(motion, (width, height), interpolation=self._cv2.INTER_LINEAR)
        motion *= np.float32(self._scale)
        share = (np.float32(WEIGHT) * trusted)[..., None]
        mixed = added + share * (self._warp(before, motion) - added)
        peak = 255 if result.dtype == np.uint8 else 65535
        mixed += base
        steady: NDArray[Any] = np.clip(np.rint(mixed, out=mixed), 0, peak, out=mixed).astype(result.dtype)
        return steady

    def _motion(self, now: NDArray[Any], before: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the motion from ``now`` to ``before`` (H, W, 2) in LR px and where it is trusted, 0 or 1."""
        grey = [self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY) for frame in (now, before)]
        if min(now.shape[:2]) < 16:  # too small for the flow's patches: take it as still, if it looks alike
            forward = backward = np.zeros((*now.shape[:2], 2), np.float32)
        else:
            forward = self._flow.calc(grey[0], grey[1], None)
            backward = self._flow.calc(grey[1], grey[0], None)
        returned = self._warp(backward, forward)
        relative, absolute = CONSISTENCY
        size = (forward**2).sum(axis=2) + (returned**2).sum(axis=2)
        agrees = ((forward + returned) ** 2).sum(axis=2) <= relative * size + absolute
        difference = np.abs(self._warp(before.astype(np.float32), forward) - now).mean(axis=2)
        return forward, (agrees & (difference <= LOOKS_ALIKE)).astype(np.float32)

    def _warp(self, picture: NDArray[Any], motion: NDArray[Any]) -> NDArray[Any]:
        """Return picture[y + v, x + u], linear between samples, edges held."""
        height, width = motion.shape[:2]
        x = np.arange(width, dtype=np.float32)[None, :] + motion[..., 0]
        y = np.arange(height, dtype=np.float32)[:, None] + motion[..., 1]
        warped: NDArray[Any] = self._cv2.remap(
            picture, x, y, self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_REPLICATE
        )
        return warped
