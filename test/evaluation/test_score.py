"""All scores of a run: grids of another resolution, masks, hidden voxels, and what does not fit together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gdfusion_ros import grid as grids
from gdfusion_ros.errors import UserError
from gdfusion_ros.evaluation.ground_truth import GroundTruth
from gdfusion_ros.evaluation.score import Scores, on_grid
from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D, OPENOCC, UNKNOWN

CAR, ROAD, FREE = 4, 11, 17
SMALL = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 1, 1))


def occupancy_of(labels: np.ndarray, grid: VoxelGrid, flow: Flow | None = None) -> Occupancy:
    return Occupancy(labels, grid, OCC3D, 0, 1, 0, (), (), "made-up", "none", np.eye(4), flow=flow)


def row(*labels: int) -> np.ndarray:
    return np.array(labels, np.uint8).reshape(-1, 1, 1)


def test_another_grid_is_looked_up_at_the_centres_of_its_cells_as_brute_force_does() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        own, other = (
            VoxelGrid(
                tuple(rng.uniform(-3, 0, 3)), tuple(rng.uniform(0.3, 1.2, 3)), tuple(rng.integers(1, 6, 3))
            )
            for _ in range(2)
        )
        labels = rng.integers(0, 18, own.shape).astype(np.uint8)
        vectors = rng.normal(size=(*own.shape, 3)).astype(np.float32)
        flow = Flow(FlowKind.VELOCITY, vectors, rng.random(own.shape) < 0.5)
        found = on_grid(occupancy_of(labels, own, flow), other)
        assert found.grid == other
        assert found.flow is not None
        for at in np.ndindex(other.shape):
            center = np.asarray(other.minimum) + (np.array(at) + 0.5) * other.cell_size
            cell = tuple(np.floor((center - own.minimum) / own.cell_size).astype(int))
            inside = all(0 <= index < size for index, size in zip(cell, own.shape, strict=True))
            assert found.labels[at] == (labels[cell] if inside else UNKNOWN)
            assert found.flow.valid[at] == (inside and flow.valid[cell])
            if found.flow.valid[at]:
                assert (found.flow.vectors[at] == vectors[cell]).all()


def test_the_camera_mask_the_hidden_voxels_and_everywhere_are_scored_apart() -> None:
    truth = GroundTruth(
        row(CAR, CAR, ROAD, FREE),
        SMALL,
        OCC3D,
        seen=np.array([1, 0, 0, 1], bool).reshape(4, 1, 1),
        hidden=np.array([0, 1, 1, 0], bool).reshape(4, 1, 1),
    )
    scores = Scores(OCC3D)
    own = scores.add(occupancy_of(row(CAR, ROAD, ROAD, FREE), SMALL), truth)
    result = scores.summary()
    assert (result["miou"], result["iou"], result["frames"]) == (100.0, 100.0, 1)
    assert result["miou_movable"] == 100.0
    # Hidden: the car is taken for road (0 of 1), of two cells called road one is (1 of 2).
    assert result["miou_hidden"] == pytest.approx(100 * (0 + 1 / 2) / 2)
    assert result["miou_everywhere"] == pytest.approx(100 * (1 / 2 + 1 / 2) / 2)
    assert own.counts.sum() == 2
    assert result["flow_epe_moving"] is None
    assert "rayiou" not in result


def test_classes_that_are_only_predicted_count_unless_just_the_occurring_ones_are_asked_for() -> None:
    scores = Scores(OCC3D)
    scores.add(
        occupancy_of(row(CAR, ROAD, FREE, FREE), SMALL), GroundTruth(row(CAR, CAR, FREE, FREE), SMALL, OCC3D)
    )
    assert scores.summary()["miou"] == pytest.approx(100 * (1 / 2 + 0) / 2)
    assert scores.summary(occurring_only=True)["miou"] == pytest.approx(100 * 1 / 2)


def test_a_history_displacement_is_scored_as_a_velocity_over_the_time_between_frames() -> None:
    vectors = np.zeros((4, 1, 1, 3), np.float32)
    vectors[0] = (-1.0, 0.0, 0.0)  # it was a metre behind: it moves forward at 2 m/s
    flow = Flow(FlowKind.HISTORY_DISPLACEMENT, vectors, np.ones((4, 1, 1), bool))
    velocity = np.zeros((4, 1, 1, 2), np.float32)
    velocity[0] = (2.0, 0.5)
    truth = GroundTruth(row(CAR, FREE, FREE, FREE), SMALL, OCC3D, velocity=velocity)
    scores = Scores(OCC3D, frame_seconds=0.5)
    scores.add(occupancy_of(row(CAR, FREE, FREE, FREE), SMALL, flow), truth)
    assert scores.summary()["flow_epe_moving"] == pytest.approx(0.5)
    assert scores.summary()["mave_voxels"] == pytest.approx(0.5)


def test_other_labels_and_other_frames_are_refused_in_one_line() -> None:
    labels = np.full(SMALL.shape, FREE, np.uint8)
    other = GroundTruth(np.full(SMALL.shape, OPENOCC.free, np.uint8), SMALL, OPENOCC)
    with pytest.raises(UserError, match="labels occ3d, the ground truth openocc"):
        Scores(OCC3D).add(occupancy_of(labels, SMALL), other)
    lidar = GroundTruth(np.full(grids.SURROUNDOCC.shape, FREE, np.uint8), grids.SURROUNDOCC, OCC3D)
    with pytest.raises(UserError, match="in the ego frame, the ground truth lies in the lidar frame"):
        Scores(OCC3D).add(occupancy_of(labels, replace(SMALL)), lidar)
