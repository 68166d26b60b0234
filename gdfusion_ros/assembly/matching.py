"""Which image of each camera belongs to an anchor image, and which anchor images are used.

The choice depends only on each camera's own order of images, never on how messages of different cameras
interleave. So a live node, where DDS mixes them, picks what an offline run over the recording picks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from gdfusion_ros.assembly.loading import Loading
from gdfusion_ros.assembly.messages import SECOND, Message

JUMP_NS = SECOND
"""An image this much older than its camera's last is a clock that jumped back, not an image that came
late."""
QUEUE = 64
"""Images a camera may have waiting; the oldest go first."""


@dataclass(eq=False)
class Shot:
    """One image as it arrived, not yet decoded."""

    camera: str
    stamp_ns: int
    message: Message
    width: int
    height: int
    period_ns: int
    """The least time between two images of this camera, as far as it was known when this one came."""
    loading: Loading | None = None
    """The decoding, once it was begun."""


@dataclass
class CameraCounts:
    """Where a camera's images went. ``received`` is the sum of the rest and of those still waiting."""

    received: int = 0
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class CameraQueue:
    """One camera's images that may still be used, in the order of their stamps."""

    def __init__(self, name: str, tolerance_ns: int) -> None:
        self.name = name
        self.tolerance_ns = tolerance_ns
        self.counts = CameraCounts()
        self.shots: deque[Shot] = deque()
        self.last_ns: int | None = None
        self.last_size: tuple[int, int] | None = None
        """Width and height of the last image."""
        self.horizon_ns: int | None = None
        """Images up to this stamp come too late: their frame is done."""
        self._gaps: deque[int] = deque(maxlen=8)

    def add(self, stamp: int, message: Message, width: int, height: int) -> tuple[Shot | None, bool]:
        """Take an image in. Gives the shot, or None when it was dropped and counted, and whether the clock
        jumped back."""
        self.last_size = (width, height)
        jumped = self.last_ns is not None and stamp < self.last_ns - JUMP_NS
        if jumped:
            self.clear("clock_jump")
        if self.last_ns is not None and stamp <= self.last_ns:
            self.counts.dropped["duplicate" if stamp == self.last_ns else "out_of_order"] += 1
            return None, jumped
        if self.last_ns is not None:
            self._gaps.append(stamp - self.last_ns)
        self.last_ns = stamp
        if self.horizon_ns is not None and stamp <= self.horizon_ns:
            self.counts.dropped["late"] += 1
            return None, jumped
        shot = Shot(self.name, stamp, message, width, height, min(self._gaps, default=self.tolerance_ns))
        self.shots.append(shot)
        if len(self.shots) > QUEUE:
            self.shots.popleft()
            self.counts.dropped["overflow"] += 1
        return shot, jumped

    def clear(self, reason: str) -> None:
        """Drop all that wait, and forget the times: the next image is the first."""
        self.counts.dropped[reason] += len(self.shots)
        self.shots.clear()
        self._gaps.clear()
        self.last_ns = self.horizon_ns = None

    def drop_after(self, stamp: int, reason: str) -> None:
        """Drop what waits from after ``stamp``: it was taken before the clock jumped back."""
        kept = [shot for shot in self.shots if shot.stamp_ns <= stamp]
        if len(kept) == len(self.shots):
            return
        self.counts.dropped[reason] += len(self.shots) - len(kept)
        self.shots = deque(kept)
        self.last_ns = kept[-1].stamp_ns if kept else None
        self.horizon_ns = None

    def choose(self, anchor_ns: int, tolerance_ns: int, final: bool) -> tuple[Shot | None, bool]:
        """The image nearest to the anchor's stamp within the tolerance, and whether that is settled.

        It is settled when no nearer image can come: the last one is at or past the anchor, or so near that
        the next, a period later, must be farther. ``final`` settles it with what there is.
        """
        best: Shot | None = None
        settled = final
        for shot in self.shots:
            if best is None or abs(shot.stamp_ns - anchor_ns) < abs(best.stamp_ns - anchor_ns):
                best = shot
            if shot.stamp_ns >= anchor_ns or 2 * (anchor_ns - shot.stamp_ns) <= shot.period_ns:
                settled = True
                break
        if best is not None and abs(best.stamp_ns - anchor_ns) > tolerance_ns:
            best = None
        return best, settled

    def take(self, shot: Shot | None, anchor_ns: int) -> None:
        """Remove what a finished frame leaves behind: its own image, and all older ones as between frames."""
        until = anchor_ns if shot is None else max(anchor_ns, shot.stamp_ns)
        while self.shots and self.shots[0].stamp_ns <= until:
            if self.shots.popleft() is not shot:
                self.counts.dropped["between_frames"] += 1
        if shot is None:
            # What comes for this frame from now on is late, and no other frame's.
            self.horizon_ns = max(anchor_ns, self.horizon_ns or 0)


class KeyFrames:
    """Picks the anchor images that are used: the first, then those at least a period after the last used.

    A little less than the period counts as the period, as triggers jitter: a tenth of it, and at most half
    the time between two anchor images, so that the next image is never taken for this one.
    """

    def __init__(self, period_ns: int) -> None:
        self.period_ns = period_ns
        self._last: int | None = None
        self._gaps: deque[int] = deque(maxlen=8)
        self._previous: int | None = None

    def is_key(self, stamp: int) -> bool:
        """Whether the anchor image with this stamp is used. To be asked once for each, in order."""
        if self._previous is not None and stamp > self._previous:
            self._gaps.append(stamp - self._previous)
        self._previous = stamp
        if self._last is not None and 0 <= stamp - self._last < self.next_after - self._last:
            return False
        self._last = stamp
        return True

    @property
    def next_after(self) -> int:
        """The next key frame has this stamp or a later one; 0 before the first."""
        if self._last is None:
            return 0
        slack = min([self.period_ns // 10, *(gap // 2 for gap in self._gaps)])
        return self._last + self.period_ns - slack

    @property
    def spacing(self) -> int | None:
        """The least time to the next key frame; None when nothing is known of it yet."""
        between = min(self._gaps, default=0)
        known = max(between, self.next_after - self._last if self._last is not None else 0)
        return known or None

    def restart(self) -> None:
        """Let the next image be a key frame, as after a clock that jumped back."""
        self._last = self._previous = None
        self._gaps.clear()


def total(counts: Iterable[CameraCounts]) -> Counter[str]:
    """Dropped images by reason, over cameras."""
    result: Counter[str] = Counter()
    for one in counts:
        result.update(one.dropped)
    return result
