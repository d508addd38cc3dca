"""Packets and the frames they announce: what decodes them, and the list by which none is lost unnoticed."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any, Protocol

#: Codecs with packets that rightly show nothing (VP8 alternate references): their packets are not counted.
UNCOUNTED_CODECS = {"vp8", "libvpx"}


class PacketDecoder(Protocol):
    """What may decode instead of FFmpeg; see `yonos_trt.video.nvidia.nvdec`."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """What `decode` raises for a packet that it cannot use."""

    def decode(self, packet: Any) -> list[Any]:
        """Return the frames that are ready, in display order; an empty packet asks for all that are left.

        Frames have PyAV's attributes ``pts``, ``duration``, ``height``, ``width``, ``format.name``,
        ``is_corrupt`` and ``interlaced_frame``, and a method ``rgb(layout, coding)``.
        """


@dataclass(slots=True)
class Tally:
    """Times announced by packets and not yet seen as frames."""

    enabled: bool = True
    pending: list[int] = field(default_factory=list)

    def announce(self, pts: int | None) -> None:
        if pts is None:
            self.enabled = False
        if self.enabled and pts is not None:
            heapq.heappush(self.pending, pts)

    def lost_before(self, pts: int | None) -> list[int]:
        """Tick off ``pts`` and return the times before it that were never seen (all, for None)."""
        lost = []
        while self.pending and (pts is None or self.pending[0] < pts):
            lost.append(heapq.heappop(self.pending))
        if self.pending and self.pending[0] == pts:
            heapq.heappop(self.pending)
        return lost if self.enabled else []
