"""A buffer of transforms over time, as tf2's: the one the node and the bag reader both look into.

An own one, because PyPI's ROS wheels have no tf2_ros, and because replaying a recording must place every
camera exactly as the live node did, which only the same code promises.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from gdfusion_ros.assembly.messages import SECOND, Message, stamp_ns
from gdfusion_ros.geometry import Matrix, interpolate, inverse, transform

CACHE_NS = 10 * SECOND
"""How long a moving transform is remembered."""
JUMP_NS = SECOND
"""A stamp this much older than the newest is a clock that jumped back, not a transform that came late."""
MAX_DEPTH = 64
"""Transforms from a frame up to its root; more is a loop."""
MAX_FRAMES = 10_000


class TransformError(LookupError):
    """A transform that cannot be had. ``may_come`` tells whether waiting can help."""

    def __init__(self, text: str, may_come: bool) -> None:
        super().__init__(text)
        self.may_come = may_come


@dataclass(frozen=True)
class _Sample:
    stamp_ns: int
    parent_from_child: Matrix


@dataclass
class _Edge:
    """A frame's transform to its parent, over time or for ever."""

    parent: str
    static: bool
    samples: list[_Sample] = field(default_factory=list)

    def at(self, child: str, stamp: int) -> Matrix:
        if self.static:
            return self.samples[0].parent_from_child
        i = bisect_left(self.samples, stamp, key=_STAMP)
        if i < len(self.samples) and self.samples[i].stamp_ns == stamp:
            return self.samples[i].parent_from_child
        if i == len(self.samples):
            late = (stamp - self.samples[-1].stamp_ns) / SECOND
            raise TransformError(
                f"{self.parent} -> {child}: the newest is {late:.3f} s too old", may_come=True
            )
        if i == 0:
            early = (self.samples[0].stamp_ns - stamp) / SECOND
            raise TransformError(
                f"{self.parent} -> {child}: the oldest is {early:.3f} s too new", may_come=False
            )
        before, after = self.samples[i - 1], self.samples[i]
        fraction = (stamp - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
        return interpolate(before.parent_from_child, after.parent_from_child, fraction)


_STAMP = attrgetter("stamp_ns")


class TransformBuffer:
    """Remembers transforms and composes them. Not thread-safe; one thread feeds it and asks it."""

    def __init__(self, cache_ns: int = CACHE_NS) -> None:
        self.cache_ns = cache_ns
        self._edges: dict[str, _Edge] = {}

    def set_message(self, message: Message, static: bool) -> None:
        """Take over a geometry_msgs/TransformStamped. Raises ValueError when a number is not finite, the
        quaternion is not of unit length, or the names are empty.
        """
        t, q = message.transform.translation, message.transform.rotation
        self.set(
            message.header.frame_id,
            message.child_frame_id,
            0 if static else stamp_ns(message.header.stamp),
            transform((t.x, t.y, t.z), (q.w, q.x, q.y, q.z)),
            static,
        )

    def set(
        self, parent: str, child: str, stamp: int, parent_from_child: Matrix, static: bool = False
    ) -> None:
        """Remember ``parent_from_child`` (4, 4) at ``stamp`` in nanoseconds, or for ever when ``static``. A
        stamp far back clears what was known of this frame: the clock has jumped, as when a bag starts again.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if not parent or not child or parent == child:
            raise ValueError(f"transform from {child!r} to {parent!r}")
        edge = self._edges.get(child)
        if edge is None or edge.parent != parent or edge.static != static:
            if edge is None and len(self._edges) >= MAX_FRAMES:
                raise ValueError(f"more than {MAX_FRAMES} frames")
            edge = self._edges[child] = _Edge(parent, static)
        sample = _Sample(stamp, parent_from_child)
        if static:
            edge.samples = [sample]
            return
        samples = edge.samples
        if samples and stamp < samples[-1].stamp_ns - JUMP_NS:
            samples.clear()
        if not samples or stamp > samples[-1].stamp_ns:
            samples.append(sample)
            oldest = bisect_left(samples, stamp - self.cache_ns, key=_STAMP)
            del samples[:oldest]
        else:
            i = bisect_left(samples, stamp, key=_STAMP)
            if samples[i].stamp_ns == stamp:
                samples[i] = sample
            else:
                insort(samples, sample, key=_STAMP)

    def clear(self) -> None:
        """Forget every moving transform. Static ones hold whatever the clock does, and are sent only once."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.static}

    def drop_after(self, stamp: int) -> None:
        """Forget moving transforms from after ``stamp``: they were sent before the clock jumped back."""
        for child, edge in list(self._edges.items()):
            if not edge.static:
                edge.samples = [sample for sample in edge.samples if sample.stamp_ns <= stamp]
                if not edge.samples:
                    del self._edges[child]

    def lookup(self, target: str, source: str, stamp: int) -> Matrix:
        """``target_from_source`` (4, 4) at ``stamp`` in nanoseconds, interpolated between its neighbours.
        Raises TransformError when the frames are not connected or the time is not covered; never
        extrapolates.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        if target == source:
            return np.eye(4)
        up_from_source = self._ancestors(source)
        up_from_target = self._ancestors(target)
        common = next((frame for frame in up_from_source if frame in up_from_target), None)
        if common is None:
            raise TransformError(f"{target} and {source} are not connected", may_come=True)
        return inverse(self._climb(target, common, stamp)) @ self._climb(source, common, stamp)

    def _ancestors(self, frame: str) -> dict[str, None]:
        """The frame and those above it, nearest first."""
        chain: dict[str, None] = {frame: None}
        while frame in self._edges:
            frame = self._edges[frame].parent
            if frame in chain or len(chain) > MAX_DEPTH:
                raise TransformError(f"the transforms above {frame} form a loop", may_come=False)
            chain[frame] = None
        return chain

    def _climb(self, frame: str, ancestor: str, stamp: int) -> Matrix:
        """``ancestor_from_frame``."""
        ancestor_from_frame = np.eye(4)
        while frame != ancestor:
            edge = self._edges[frame]
            ancestor_from_frame = edge.at(frame, stamp) @ ancestor_from_frame
            frame = edge.parent
        return ancestor_from_frame
