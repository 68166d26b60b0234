"""A frame on its way through the assembler, and where such frames went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gdfusion_ros.assembly.matching import Shot
from gdfusion_ros.assembly.placement import Placement


@dataclass(eq=False)
class PendingFrame:
    """A frame whose images are chosen; placed once `placement` is there."""

    stamp_ns: int
    shots: dict[str, Shot | None]
    arrived_ns: int | None
    """When its anchor image came, by the caller's clock."""
    tolerance_ns: int = 0
    """How far its images may be from it."""
    after_skip: bool = False
    """A frame between this and the one before was skipped because a camera was missing."""
    placement: Placement | None = None


@dataclass
class FrameCounts:
    """Where the selected anchor images went. ``selected`` is the sum of the rest and of frames under way."""

    selected: int = 0
    made: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
