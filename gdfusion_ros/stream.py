"""OccupancyStream: the only way frames reach a network, live or offline, and the owner of its temporal state."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView, Occupancy

if TYPE_CHECKING:
    from gdfusion_ros.model.model import OccupancyModel
    from gdfusion_ros.model.state import TemporalState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameDigest:
    """What the rules remember of the frame before: enough to compare, without its images."""

    stamp_ns: int
    scene: str
    world_from_ego: tuple[float, ...]
    calibration: tuple[tuple[str, tuple[int, ...], bytes, bytes], ...]
    missing: tuple[str, ...]

    @classmethod
    def of(cls, frame: CameraFrame) -> FrameDigest:
        """The digest of a frame."""
        return cls(
            frame.stamp_ns,
            frame.scene,
            tuple(frame.world_from_ego.ravel().tolist()),
            tuple(_calibration(view) for view in frame.views),
            tuple(view.name for view in frame.views if view.missing),
        )


def _calibration(view: CameraView) -> tuple[str, tuple[int, ...], bytes, bytes]:
    size: tuple[int, ...] = () if view.missing else view.image.shape[:2]
    return (view.name, size, view.intrinsics.round(6).tobytes(), view.ego_from_camera.round(6).tobytes())


@dataclass(frozen=True)
class SequenceRules:
    """When history starts anew. One list of rules, the same for a live node and for a recording."""

    max_gap: float = 1.5
    """Seconds between two frames after which the past is no longer the past of this frame."""
    max_speed: float = 70.0
    """Metres per second: a pose that moved faster than this is a jump, not a drive."""
    pose_slack: float = 0.5
    """Metres a pose may jump at any time difference: localisation corrects itself by such steps."""
    restart_after_missing: bool = True
    """Start anew after a frame in which a camera was missing."""

    def reason_to_restart(self, previous: FrameDigest | None, frame: CameraFrame) -> str | None:
        """Why ``frame`` begins a new sequence, as a short word, or None when it goes on from ``previous``."""
        if previous is None:
            return "first_frame"
        if frame.scene != previous.scene:
            return "scene_changed"
        if frame.restart_reason:
            return frame.restart_reason
        seconds = (frame.stamp_ns - previous.stamp_ns) * 1e-9
        if seconds <= 0:
            return "time_went_back"
        if seconds > self.max_gap:
            return "gap"
        moved = np.linalg.norm(
            frame.world_from_ego[:3, 3] - np.reshape(previous.world_from_ego, (4, 4))[:3, 3]
        )
        if moved > self.max_speed * seconds + self.pose_slack:
            return "pose_jump"
        digest = FrameDigest.of(frame)
        if _changed(previous, digest):
            return "calibration_changed"
        if self.restart_after_missing and previous.missing:
            return "camera_was_missing"
        return None


def _changed(previous: FrameDigest, current: FrameDigest) -> bool:
    """Whether any camera that both frames have changed its size or calibration, or the cameras themselves changed."""
    before = {entry[0]: entry[1:] for entry in previous.calibration if entry[0] not in previous.missing}
    now = {entry[0]: entry[1:] for entry in current.calibration if entry[0] not in current.missing}
    names_before = [entry[0] for entry in previous.calibration]
    names_now = [entry[0] for entry in current.calibration]
    return names_before != names_now or any(before[name] != now[name] for name in before.keys() & now.keys())


class OccupancyStream:
    """Feeds frames to a model one by one and hands its temporal state from frame to frame.

    A step either succeeds as a whole or changes nothing: when the model raises, the state, the counters and the
    memory of the last frame are those of before the call. Not thread-safe: one stream belongs to one thread.
    """

    def __init__(
        self,
        model: OccupancyModel,
        rules: SequenceRules = SequenceRules(),
        on_restart: Callable[[str, CameraFrame], None] | None = None,
    ) -> None:
        self.model = model
        self.rules = rules
        self.state: TemporalState | None = None
        self.sequence = 0
        self.restarts: Counter[str] = Counter()
        self._previous: FrameDigest | None = None
        self._pending_reset: str | None = None
        self._on_restart = on_restart

    def reset(self, reason: str = "reset") -> None:
        """Let the next frame begin a new sequence."""
        self._pending_reset = reason

    def forget(self, reason: str) -> None:
        """Drop the temporal state at once, as when memory runs out; the next frame begins a new sequence."""
        self.state = None
        self.reset(reason)

    def step(self, frame: CameraFrame) -> Occupancy:
        """The occupancy at ``frame``, seen from it and from the sequence's frames before it.

        Raises ValueError when the frame does not fit the model (a camera missing, numbers that are not finite).
        """
        _check_finite(frame)
        reason = self._pending_reset or self.rules.reason_to_restart(self._previous, frame)
        begin = time.perf_counter()
        prediction, state = self.model(frame, None if reason else self.state)
        inference_ms = (time.perf_counter() - begin) * 1e3

        # The commit: nothing above has changed the stream, nothing below can fail.
        self.state, self._previous, self._pending_reset = state, FrameDigest.of(frame), None
        if reason:
            self.sequence += 1
            self.restarts[reason] += 1
            log.info("sequence %d starts at %d ns: %s", self.sequence, frame.stamp_ns, reason)
            if self._on_restart is not None:
                self._on_restart(reason, frame)
        missing = {view.name for view in frame.views if view.missing}
        cameras = self.model.cameras
        return Occupancy(
            labels=prediction.labels,
            grid=self.model.grid,
            label_set=self.model.label_set,
            stamp_ns=frame.stamp_ns,
            sequence=self.sequence,
            history_frames=state.frames - 1,
            cameras=cameras,
            cameras_used=tuple(name not in missing for name in cameras),
            model=self.model.name,
            weights=self.model.weights,
            world_from_ego=frame.world_from_ego,
            confidence=prediction.confidence,
            flow=prediction.flow,
            state_bytes=state.bytes,
            timings_ms={**prediction.timings_ms, "inference": inference_ms},
        )

    def save(self, path: Path) -> None:
        """Write the temporal state and what the rules remember, so that another process can go on from here.

        Whole or not at all: the file is replaced in one step. Raises ValueError before the first frame.
        """
        if self.state is None or self._previous is None:
            raise ValueError("there is no temporal state before the first frame")
        note = {
            "weights": self.model.weights,
            "sequence": self.sequence,
            "previous": _digest_to_json(self._previous),
        }
        unfinished = path.with_name(path.name + ".unfinished")
        self.state.save(unfinished, json.dumps(note))
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a saved state, if the next frame's gap allows it.

        Raises UserError when the file is damaged, or comes from another model or other weights; nothing changes then.
        """
        from gdfusion_ros.model.state import TemporalState, saved_note

        try:
            note = json.loads(saved_note(path))
            weights, sequence = str(note["weights"]), int(note["sequence"])
            previous = _digest_from_json(note["previous"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path} holds a temporal state, but not what a stream needs to go on from it"
            ) from None
        state = TemporalState.load(path, self.model.device)
        if state.model != self.model.name or weights != self.model.weights:
            raise UserError(
                f"{path} is the state of {state.model} with {weights}, "
                f"not of {self.model.name} with {self.model.weights}"
            )
        self.state, self._previous, self._pending_reset = state, previous, None
        self.sequence = sequence


def _digest_to_json(digest: FrameDigest) -> dict[str, Any]:
    calibration = [[name, list(size), k.hex(), pose.hex()] for name, size, k, pose in digest.calibration]
    return {**asdict(digest), "calibration": calibration}


def _digest_from_json(content: dict[str, Any]) -> FrameDigest:
    return FrameDigest(
        stamp_ns=int(content["stamp_ns"]),
        scene=str(content["scene"]),
        world_from_ego=tuple(float(value) for value in content["world_from_ego"]),
        calibration=tuple(
            (str(name), tuple(int(n) for n in size), bytes.fromhex(k), bytes.fromhex(pose))
            for name, size, k, pose in content["calibration"]
        ),
        missing=tuple(str(name) for name in content["missing"]),
    )


def _check_finite(frame: CameraFrame) -> None:
    matrices = [("ego pose", frame.world_from_ego)]
    if frame.world_from_ego_at_lidar is not None:
        matrices.append(("ego pose at the LiDAR's sweep", frame.world_from_ego_at_lidar))
    if frame.ego_from_lidar is not None:
        matrices.append(("LiDAR extrinsics", frame.ego_from_lidar))
    for view in frame.views:
        matrices += [
            (f"{view.name}: intrinsics", view.intrinsics),
            (f"{view.name}: extrinsics", view.ego_from_camera),
            (f"{view.name}: ego pose at exposure", view.world_from_ego),
        ]
    for what, matrix in matrices:
        if not np.isfinite(matrix).all():
            raise ValueError(f"frame at {frame.stamp_ns} ns: {what} holds a number that is not finite")
