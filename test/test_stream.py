"""When history starts anew, and that a step succeeds as a whole or changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.stream import FrameDigest, OccupancyStream, SequenceRules

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 3, 4))


def frame(seconds: float = 0.0, x: float = 0.0, scene: str = "scene", **changes) -> CameraFrame:
    """A frame of two small cameras; ``changes`` go to the second camera's view."""
    pose = np.eye(4)
    pose[0, 3] = x
    stamp_ns = START + round(seconds * SECOND)
    front = CameraView("CAM_FRONT", np.zeros((4, 6, 3), np.uint8), np.eye(3), np.eye(4), pose, stamp_ns)
    return CameraFrame(
        stamp_ns, (front, replace(front, **{"name": "CAM_BACK", **changes})), pose, scene=scene
    )


@dataclass
class CountingState:
    frames: int
    bytes: int = 8


class CountingModel:
    """Stands in for a network: its labels are the number of frames of the sequence so far."""

    name, weights, cameras = "counting", "none", ("CAM_FRONT", "CAM_BACK")
    grid, label_set = GRID, OCC3D

    def __init__(self) -> None:
        self.fails = False
        self.states: list[CountingState | None] = []

    def __call__(self, frame, state):
        self.states.append(state)
        if self.fails:
            raise RuntimeError("out of memory")
        frames = 1 + (state.frames if state else 0)
        labels = np.full(GRID.shape, frames, np.uint8)
        return SimpleNamespace(labels=labels, confidence=None, flow=None, timings_ms={}), CountingState(
            frames
        )


def reason(before: CameraFrame, after: CameraFrame, rules: SequenceRules = SequenceRules()) -> str | None:
    return rules.reason_to_restart(FrameDigest.of(before), after)


def test_the_first_frame_begins_a_sequence():
    assert SequenceRules().reason_to_restart(None, frame()) == "first_frame"


def test_a_frame_half_a_second_later_goes_on():
    assert reason(frame(), frame(0.5, x=5.0)) is None


def test_frames_of_two_scenes_never_share_history():
    assert reason(frame(), frame(0.5, scene="another")) == "scene_changed"


@pytest.mark.parametrize("seconds", [0.0, -0.5, -1e4])
def test_time_that_stands_still_or_goes_back_begins_a_sequence(seconds):
    assert reason(frame(), frame(seconds)) == "time_went_back"


def test_a_gap_begins_a_sequence_only_above_the_limit():
    assert reason(frame(), frame(1.5)) is None
    assert reason(frame(), frame(1.501)) == "gap"
    assert reason(frame(), frame(1.501), SequenceRules(max_gap=2.0)) is None


def test_a_pose_that_no_vehicle_could_have_driven_begins_a_sequence():
    assert reason(frame(), frame(0.5, x=35.0)) is None
    assert reason(frame(), frame(0.5, x=36.0)) == "pose_jump"
    assert reason(frame(), frame(0.01, x=1.0)) is None, "localisation may correct itself by a small step"


def test_a_changed_calibration_or_image_size_begins_a_sequence():
    moved = np.eye(4)
    moved[0, 3] = 0.1
    assert reason(frame(), frame(0.5, intrinsics=2 * np.eye(3))) == "calibration_changed"
    assert reason(frame(), frame(0.5, ego_from_camera=moved)) == "calibration_changed"
    assert reason(frame(), frame(0.5, image=np.zeros((8, 6, 3), np.uint8))) == "calibration_changed"
    assert reason(frame(), frame(0.5, name="CAM_LEFT")) == "calibration_changed"


def test_rounding_in_a_calibration_is_no_change():
    assert reason(frame(), frame(0.5, intrinsics=np.eye(3) + 1e-9)) is None


def test_a_camera_that_is_missing_now_does_not_restart_but_one_that_was_missing_does():
    black = {"missing": True, "image": np.zeros((1, 1, 3), np.uint8)}
    assert reason(frame(), frame(0.5, **black)) is None
    assert reason(frame(**black), frame(0.5)) == "camera_was_missing"
    assert reason(frame(**black), frame(0.5), SequenceRules(restart_after_missing=False)) is None


def test_the_state_is_handed_from_frame_to_frame():
    model = CountingModel()
    stream = OccupancyStream(model)
    occupancies = [stream.step(frame(seconds)) for seconds in (0.0, 0.5, 1.0)]
    assert [occupancy.history_frames for occupancy in occupancies] == [0, 1, 2]
    assert [occupancy.sequence for occupancy in occupancies] == [1, 1, 1]
    assert [int(occupancy.labels[0, 0, 0]) for occupancy in occupancies] == [1, 2, 3]
    assert model.states == [None, CountingState(1), CountingState(2)]


def test_a_new_sequence_starts_without_history_and_is_counted_and_told():
    told = []
    stream = OccupancyStream(CountingModel(), on_restart=lambda why, at: told.append((why, at.stamp_ns)))
    stream.step(frame(0.0))
    occupancy = stream.step(frame(10.0))
    assert (occupancy.sequence, occupancy.history_frames) == (2, 0)
    assert stream.restarts == {"first_frame": 1, "gap": 1}
    assert told == [("first_frame", START), ("gap", START + 10 * SECOND)]


def test_a_reset_lets_the_next_frame_and_only_that_begin_a_sequence():
    stream = OccupancyStream(CountingModel())
    stream.step(frame(0.0))
    stream.reset("operator")
    assert [stream.step(frame(seconds)).sequence for seconds in (0.5, 1.0)] == [2, 2]
    assert stream.restarts["operator"] == 1


def test_a_frame_that_fails_changes_nothing():
    model = CountingModel()
    stream = OccupancyStream(model)
    stream.step(frame(0.0))
    stream.step(frame(0.5))
    state = stream.state
    model.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        stream.step(frame(20.0))
    assert (stream.state, stream.sequence, dict(stream.restarts)) == (state, 1, {"first_frame": 1})
    model.fails = False
    occupancy = stream.step(frame(1.0))
    assert (occupancy.sequence, occupancy.history_frames) == (1, 2), "the failed frame left no trace"


def test_a_reset_outlives_a_frame_that_fails():
    model = CountingModel()
    stream = OccupancyStream(model)
    stream.step(frame(0.0))
    stream.reset()
    model.fails = True
    with pytest.raises(RuntimeError):
        stream.step(frame(0.5))
    model.fails = False
    assert stream.step(frame(1.0)).sequence == 2


@pytest.mark.parametrize("field", ["intrinsics", "ego_from_camera", "world_from_ego"])
def test_numbers_that_are_not_finite_are_refused_before_the_network_sees_them(field):
    model = CountingModel()
    broken = np.full((3, 3) if field == "intrinsics" else (4, 4), np.nan)
    with pytest.raises(ValueError, match=r"CAM_BACK.*not finite"):
        OccupancyStream(model).step(frame(**{field: broken}))
    assert model.states == []


@pytest.mark.parametrize("field", ["world_from_ego_at_lidar", "ego_from_lidar"])
def test_a_lidars_numbers_that_are_not_finite_are_refused_too(field):
    model = CountingModel()
    broken = np.eye(4)
    broken[0, 3] = np.inf
    with pytest.raises(ValueError, match=r"LiDAR.*not finite"):
        OccupancyStream(model).step(replace(frame(), **{field: broken}))
    assert model.states == []


def test_the_occupancy_says_where_it_comes_from():
    occupancy = OccupancyStream(CountingModel()).step(frame(x=3.0, missing=True))
    assert (occupancy.model, occupancy.weights, occupancy.grid, occupancy.label_set) == (
        "counting",
        "none",
        GRID,
        OCC3D,
    )
    assert occupancy.cameras_used == (True, False)
    assert (occupancy.stamp_ns, occupancy.state_bytes) == (START, 8)
    assert occupancy.world_from_ego[0, 3] == 3.0
    assert occupancy.timings_ms["inference"] >= 0
