"""What the node says of itself on /diagnostics: temporal state, frames, stages, cameras, memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from gdfusion_ros.assembly.matching import CameraCounts
from gdfusion_ros.assembly.pending import FrameCounts
from gdfusion_ros.frame import Occupancy

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
SILENT_SECONDS = 2.0
"""A camera from which nothing has come for this long is named."""
HARMLESS = frozenset({"superseded", "clock_jump", "stopped"})
"""Reasons for dropping a frame that say nothing against what comes in."""


class CameraHealth:
    """How one camera does."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._arrivals: deque[float] = deque(maxlen=20)
        self.missing_in_a_row = 0
        self.last_problem = ""

    def arrived(self) -> None:
        """An image came."""
        self._arrivals.append(time.monotonic())

    @property
    def rate(self) -> float:
        """Images a second, over the last twenty; 0 when it is silent."""
        if len(self._arrivals) < 2 or self.silence > SILENT_SECONDS:
            return 0.0
        seconds = self._arrivals[-1] - self._arrivals[0]
        return (len(self._arrivals) - 1) / seconds if seconds > 0 else 0.0

    @property
    def age(self) -> float | None:
        """Seconds since the last image; None before the first."""
        return time.monotonic() - self._arrivals[-1] if self._arrivals else None

    @property
    def silence(self) -> float:
        """Seconds since the last image, or since the node listens."""
        return time.monotonic() - (self._arrivals[-1] if self._arrivals else self._since)


class Health:
    """Collects what happened and says it in DiagnosticStatus messages."""

    def __init__(self, cameras: tuple[str, ...]) -> None:
        self.cameras = {name: CameraHealth() for name in cameras}
        self.restarts: Counter[str] = Counter()
        self.slow_in_a_row = 0
        self.last_error = ""
        self._published = self._published_told = 0
        self._faults_told = self._faults_at_grid = 0
        self._last_problem = ""
        self._stages: dict[str, deque[float]] = {}
        self._last: Occupancy | None = None

    def problem(self, where: str, reason: str, text: str) -> None:
        """Something was refused or dropped."""
        self._last_problem = f"{where}: {text}"
        camera = self.cameras.get(where)
        if camera is not None:
            camera.last_problem = f"{reason}: {text}"
            if reason == "missing":
                camera.missing_in_a_row += 1

    def frame_made(self, occupancy: Occupancy, timings_ms: Mapping[str, float], slow_ms: float) -> None:
        """A grid was published."""
        self._last = occupancy
        self._published += 1
        for name, used in zip(occupancy.cameras, occupancy.cameras_used, strict=True):
            if used and name in self.cameras:
                self.cameras[name].missing_in_a_row = 0
                self.cameras[name].last_problem = ""
        for stage, value in timings_ms.items():
            self._stages.setdefault(stage, deque(maxlen=50)).append(value)
        self.slow_in_a_row = self.slow_in_a_row + 1 if timings_ms["total"] > slow_ms else 0
        self.last_error = ""

    def silent(self) -> tuple[str, ...]:
        """The cameras from which nothing has come for a while."""
        return tuple(name for name, camera in self.cameras.items() if camera.silence > SILENT_SECONDS)

    def camera_status(
        self, name: str, counts: CameraCounts, waiting: int, missing_error: int, period: float
    ) -> DiagnosticStatus:
        """One camera's status. ``missing_error`` frames in a row without it are an error, and so is a silence
        that is as long as so many frames of ``period`` seconds."""
        health = self.cameras[name]
        age, silence = health.age, health.silence
        level, text = OK, "images arrive"
        if health.last_problem:
            level, text = WARN, health.last_problem
        if silence > SILENT_SECONDS:
            level = ERROR if silence > missing_error * period else WARN
            text = f"no image has come in {silence:.1f} s" if age is None else f"silent for {silence:.1f} s"
        if health.missing_in_a_row >= missing_error:
            level, text = ERROR, f"missing in {health.missing_in_a_row} frames in a row"
        values = {
            "rate_hz": f"{health.rate:.2f}",
            "age_s": "" if age is None else f"{age:.3f}",
            "received": counts.received,
            "used": counts.used,
            "waiting": waiting,
            **_named("dropped", counts.dropped),
        }
        return status(f"camera {name}", level, text, values)

    def frames_status(
        self, counts: FrameCounts, failed: Counter[str], refused: Counter[str], error_after: int
    ) -> DiagnosticStatus:
        """Where frames went: ``selected`` are made, dropped or under way; made ones are published, failed or
        under way. A frame lost to a fault is a warning, ``error_after`` since the last grid are an error."""
        dropped = sum(number for reason, number in counts.dropped.items() if reason not in HARMLESS)
        faults = dropped + failed.total()
        if self._published != self._published_told:
            self._published_told, self._faults_at_grid = self._published, faults
        lost, new = faults - self._faults_at_grid, faults - self._faults_told
        self._faults_told = faults
        level, text = OK, "frames are made" if self._published else "no frame yet"
        if lost >= error_after:
            level, text = ERROR, f"{lost} frames lost since the last grid: {self._last_problem}"
        elif lost or new:
            level, text = WARN, f"a frame was lost: {self._last_problem}"
        values = {
            "selected": counts.selected,
            "made": counts.made,
            "published": self._published,
            **_named("dropped", counts.dropped),
            **_named("failed", failed),
            **_named("refused", refused),
        }
        return status("frames", level, text, values)

    def stage_status(self, slow_error: int) -> DiagnosticStatus:
        """Milliseconds by stage over the last fifty frames."""
        level, text = OK, "in time"
        if not self._stages:
            text = "no frame yet"
        elif self.slow_in_a_row >= slow_error:
            level, text = ERROR, f"{self.slow_in_a_row} slow frames in a row"
        elif self.slow_in_a_row:
            level, text = WARN, "the last frame was slow"
        values = {}
        for stage, times in list(self._stages.items()):
            values[f"{stage}_median_ms"] = f"{statistics.median(times):.1f}"
            values[f"{stage}_max_ms"] = f"{max(times):.1f}"
        return status("stages", level, text, values)

    def state_status(self, active: bool, random_weights: bool) -> DiagnosticStatus:
        """The temporal state and what the network is."""
        level, text = (OK, "running") if active else (WARN, "the node is not active")
        if active and random_weights:
            level, text = WARN, "random weights: the grids mean nothing"
        if self.last_error:
            level, text = ERROR, self.last_error
        last = self._last
        values: dict[str, object] = {**_named("restarts", self.restarts)}
        if last is not None:
            values |= {"sequence": last.sequence, "history_frames": last.history_frames}
            values |= {"state_bytes": last.state_bytes}
        values["resident_bytes"] = resident_bytes()
        return status("temporal state", level, text, values)


def status(name: str, level: bytes, text: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """A DiagnosticStatus; its name gets the node's name in front by the caller."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=text, values=pairs)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _named(prefix: str, counts: Counter[str]) -> dict[str, int]:
    return {f"{prefix}_{reason}".replace(" ", "_"): number for reason, number in sorted(counts.items())}
