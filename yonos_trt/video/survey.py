"""Read a file's packets once before any work: how many there are, where its clock jumps, what is damaged.

Recordings that were joined as they are (MPEG-TS, MPEG-PS, Ogg) start their clock again in the middle. Each
stream's packets after such a join are moved so that the file's clock runs on, as players and ffmpeg do; a
stream crosses the join at the packet that fits better behind it than before it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from yonos_trt.video.info import require_av
from yonos_trt.video.source import is_cover
from yonos_trt.video.structure import ffv1_is_whole

log = logging.getLogger(__name__)

BACK_S = Fraction(1, 10)  # a clock that goes back by more has started again
AHEAD_S = 10  # a clock that leaves out more was set anew: ffmpeg's -dts_delta_threshold
DAMAGE_S = 1  # in containers with one clock, going back by more is damage
REORDERED = 17  # packets by which reordering can move one, and one more
NEAR_JOIN = 3  # packets around a join that FFmpeg marks as damaged because their counters do not go on
PRIMING_S = Fraction(1, 10)  # hidden audio before time 0: up to this it is what the decoder needs to start
WITH_DURATION = {"matroska", "flv", "asf"}  # headers that say how long the file is; others are estimated

#: by stream index: (number of the stream's first packet that is moved, by how many seconds)
Joins = dict[int, list[tuple[int, Fraction]]]


@dataclass(slots=True)
class Survey:
    """What the packets of a file say."""

    packets: int = 0  # of the main stream, hidden ones too
    keys: int = 0  # of these, packets that are marked as key frames
    #: times of the main stream's packets whose own checksums do not fit; None: outside the interval
    broken: list[Fraction | None] = field(default_factory=list)
    whole: bool = True  # read to its end
    joins: Joins = field(default_factory=dict)
    #: streams of which an edit list hides more than the decoder needs to start
    trimmed: set[int] = field(default_factory=set)
    damage: list[str] = field(default_factory=list)  # sentences for the user
    end_s: Fraction = Fraction(0)  # when the last packet ends, on the file's clock
    end_byte: int = 0  # where the main stream's last packet ends in the file

    def shortfall(self, container: Any, main: Any) -> list[str]:
        """Return what the container's header declares and the packets do not reach."""
        found = []
        family = container.format.name.partition(",")[0]
        # AVI, for one, may list a frame that was never there; edit lists take entries out of the index
        listed = min(main.frames, len(main.index_entries))
        if family == "mov" and self.packets < listed:
            found.append(f"it ends early, {self.packets} of the {listed} frames its index lists are there")
        if family in WITH_DURATION and container.duration and not self.joins:
            declared = Fraction(container.duration, require_av().time_base)
            if self.end_s < declared - DAMAGE_S:
                found.append(
                    f"it ends at {float(self.end_s):.3f} s of the {float(declared):.3f} s it declares"
                )
        if family == "yuv4mpegpipe" and self.end_byte != container.size:
            found.append(
                f"it ends inside a frame, {container.size - self.end_byte} bytes follow the last whole one"
            )
        return found


@dataclass(slots=True)
class _Clock:
    """Follows the clock of one stream through the joins."""

    place: int = 0  # in the list of offsets
    number: int = 0  # packets so far
    last: Fraction | None = None  # time of the last packet, on the clock that runs on
    step: Fraction = Fraction(0)  # how long it lasts, or how long the one before it did

    @property
    def expected(self) -> Fraction | None:
        """Time of the next packet."""
        return None if self.last is None else self.last + self.step


def _time(packet: Any) -> Fraction | None:
    ticks = packet.dts if packet.dts is not None else packet.pts
    return None if ticks is None else Fraction(ticks * packet.time_base)


@dataclass(slots=True)
class _Follower:
    """Moves every stream's packets onto one clock and notes where it jumps."""

    discontinuous: bool  # whether the container lets its clock start again
    found: Survey
    offsets: list[Fraction] = field(default_factory=lambda: [Fraction(0)])
    clocks: dict[int, _Clock] = field(default_factory=dict)

    def follow(self, packet: Any, *, sparse: bool) -> Fraction | None:
        """Return the packet's time on the clock that runs on, in seconds."""
        index = packet.stream.index
        clock = self.clocks.setdefault(index, _Clock())
        time = _time(packet)
        latest = len(self.offsets) - 1
        if sparse:
            self._cross(index, clock, latest)
        elif time is not None and clock.last is not None and clock.expected is not None:
            places, expected = range(clock.place, latest + 1), clock.expected
            place = min(places, key=lambda p: (abs(time + self.offsets[p] - expected), p))
            moved = time + self.offsets[place]
            if moved < clock.last - BACK_S or (self.discontinuous and moved > expected + AHEAD_S):
                if self.discontinuous:
                    self.offsets.append(expected - time)
                    place = latest + 1
                elif moved < clock.last - DAMAGE_S:
                    self.found.damage.append(
                        f"its clock goes back from {float(clock.last):.3f} s to {float(moved):.3f} s in "
                        f"{packet.stream.type} stream {index}"
                    )
            self._cross(index, clock, place)
        clock.number += 1
        if time is None:
            return None
        time += self.offsets[clock.place]
        if packet.duration:
            clock.step = packet.duration * packet.time_base
        elif clock.last is not None and 0 < time - clock.last < AHEAD_S:
            clock.step = time - clock.last
        clock.last = time
        return time

    def _cross(self, index: int, clock: _Clock, place: int) -> None:
        if place != clock.place:
            clock.place = place
            self.found.joins.setdefault(index, []).append((clock.number, self.offsets[place]))


def survey(
    container: Any,
    main: Any,
    *,
    name: str,
    start_s: Fraction | None = None,
    end_s: Fraction | None = None,
) -> Survey:
    """Read all packets of an open file; nothing is decoded.

    Parameters
    ----------
    container
        PyAV's container, at its start; it has to be opened again to be read once more.
    main
        The video stream that is upscaled.
    name
        What messages call the file.
    start_s, end_s
        In seconds of the file's clock: what is damaged outside is left alone, and reading stops when the
        main stream has passed the end.
    """
    av = require_av()
    flags = av.format.Flags(container.format.flags)
    found = Survey()
    follower = _Follower(av.format.Flags.ts_discont in flags, found)
    hidden: dict[int, bool] = {}  # number of the packet: whether it is a key frame
    checked = main.codec_context.name == "ffv1"
    corrupt: list[tuple[int, int, Fraction | None]] = []  # stream, number of the packet, time
    start = Fraction(container.start_time or 0, av.time_base)
    packets = container.demux()
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            found.damage.append(f"it cannot be read on after {found.packets} video packets: {error}")
            break
        if packet is None:
            break
        if not packet.size:
            continue
        stream, index = packet.stream, packet.stream.index
        sparse = stream.type not in ("video", "audio") or is_cover(stream)
        time = follower.follow(packet, sparse=sparse)
        if packet.is_discard and time is not None:
            ended = time + (packet.duration or 0) * packet.time_base
            if ended < start - PRIMING_S or time > start:
                found.trimmed.add(index)
        wanted = time is None or (start_s or time) <= time < (end_s or time + 1)
        if packet.is_corrupt and wanted:
            corrupt.append((index, follower.clocks[index].number, time))
        if time is not None:
            found.end_s = max(found.end_s, time + (packet.duration or 0) * packet.time_base)
        if index == main.index:
            if packet.is_discard:
                hidden[found.packets] = packet.is_keyframe
            if checked and not ffv1_is_whole(bytes(packet)):
                found.broken.append(time if wanted else None)
            found.packets += 1
            found.keys += packet.is_keyframe
            found.end_byte = (packet.pos or 0) + packet.size
            if end_s is not None and time is not None and time > end_s + 1:
                found.whole = False
                break
    # an edit hides runs, and at their ends what reordering mixes with them; one alone is a damaged time
    for number, key in hidden.items():
        around = range(number - REORDERED, number + REORDERED + 1)
        near = any(other in hidden for other in around if other != number)
        if REORDERED <= number < found.packets - REORDERED and not key and not near:
            found.damage.append("a single frame in its middle is hidden, so its table of times is damaged")
            break
    if 2 * len(found.broken) > found.packets:
        found.broken.clear()  # it was written without checksums
    found.damage += [
        f"the frame at {float(time - start):.3f} s cannot be decoded (its checksum does not fit)"
        for time in found.broken
        if time is not None
    ]
    damaged: dict[int, list[Fraction | None]] = {}
    for index, number, time in corrupt:
        if not any(abs(number - first) <= NEAR_JOIN for first, _ in found.joins.get(index, ())):
            damaged.setdefault(index, []).append(time)
    for index, times in damaged.items():
        at = "" if times[0] is None else f" from {float(times[0] - start):.3f} s on"
        found.damage.append(f"{len(times)} packets of stream {index} are incomplete or damaged{at}")
    for first, offset in found.joins.get(main.index, ()):
        log.warning(
            "%s: its clock starts again at frame %d (a joined recording); it runs on, what follows is "
            "moved by %.3f s",
            name,
            first,
            offset,
        )
    return found


def continuous(packets: Iterator[Any], joins: Joins) -> Iterator[Any]:
    """Yield a file's packets, from its start on, with the times behind joins moved.

    Decoding times of a stream rise strictly: where the parts overlap, a packet is moved behind the last.
    """
    if not joins:
        yield from packets
        return
    numbers: dict[int, int] = {}
    last: dict[int, int] = {}
    for packet in packets:
        if packet.size:
            index = packet.stream.index
            number = numbers[index] = numbers.get(index, -1) + 1
            passed = [offset for first, offset in joins.get(index, ()) if first <= number]
            ticks = round(passed[-1] / packet.time_base) if passed else 0
            if passed and packet.dts is not None and index in last:
                apart = math.ceil(Fraction(1, 1000) / packet.time_base)  # what every container can tell apart
                ticks += max(0, last[index] + apart - packet.dts - ticks)
            if ticks:
                packet.pts = None if packet.pts is None else packet.pts + ticks
                packet.dts = None if packet.dts is None else packet.dts + ticks
            if packet.dts is not None:
                last[index] = packet.dts
        yield packet
