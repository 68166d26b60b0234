"""A little street to look at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gdfusion_ros.frame import CameraFrame, CameraView, Flow, FlowKind, Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.viewer.shot import Shot, make_shot

GRID = VoxelGrid((-20.0, -20.0, -1.0), (1.0, 1.0, 1.0), (40, 40, 8))
ROAD, TERRAIN, WALL, CAR, FREE = 11, 14, 15, 4, 17


def street(step: int) -> tuple[CameraFrame, Occupancy, np.ndarray]:
    """Road, grass, a wall to the right and a car that drives ahead; and the truth, in which the car is elsewhere."""
    labels = np.full(GRID.shape, FREE, np.uint8)
    labels[:, :, 0] = TERRAIN
    labels[:, 15:25, 0] = ROAD
    labels[5:35, 8:10, 1:6] = WALL
    truth = labels.copy()
    labels[26 + step : 30 + step, 18:20, 1:3] = CAR
    truth[28 + step : 32 + step, 18:20, 1:3] = CAR
    vectors = np.zeros((*GRID.shape, 3), np.float32)
    vectors[labels == CAR] = (8.0, 0.0, 0.0)
    pose = np.eye(4)
    pose[0, 3] = 2.0 * step
    occupancy = Occupancy(
        labels=labels,
        grid=GRID,
        label_set=OCC3D,
        stamp_ns=1_000_000_000 + step * 500_000_000,
        sequence=1,
        history_frames=step,
        cameras=("CAM_FRONT", "CAM_BACK"),
        cameras_used=(True, True),
        model="made-up",
        weights="none",
        world_from_ego=pose,
        confidence=np.full(GRID.shape, 100 + 10 * step, np.uint8),
        flow=Flow(FlowKind.VELOCITY, vectors, labels == CAR),
        timings_ms={"inference": 12.0},
    )
    views = tuple(camera(name, pose, occupancy.stamp_ns) for name in occupancy.cameras)
    return CameraFrame(occupancy.stamp_ns, views, pose), occupancy, truth


def camera(name: str, pose: np.ndarray, stamp_ns: int) -> CameraView:
    image = np.full((90, 160, 3), (200, 30, 30) if name == "CAM_FRONT" else (30, 30, 200), np.uint8)
    forward = 1.0 if name == "CAM_FRONT" else -1.0
    place = np.array([[0, 0, forward, forward], [-forward, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], float)
    intrinsics = np.array([[100.0, 0, 80], [0, 100.0, 45], [0, 0, 1]])
    return CameraView(name, image, intrinsics, place, pose, stamp_ns)


@pytest.fixture
def shots() -> list[Shot]:
    """Five moments of the street."""
    return [make_shot(occupancy, frame, truth) for frame, occupancy, truth in map(street, range(5))]


@pytest.fixture
def shot_without_truth() -> Shot:
    frame, occupancy, _ = street(0)
    return make_shot(replace(occupancy, flow=None, confidence=None), frame)


@pytest.fixture
def moment() -> tuple[CameraFrame, Occupancy, np.ndarray]:
    """A frame, its occupancy and the true labels."""
    return street(1)


@pytest.fixture
def moments() -> list[tuple[CameraFrame, Occupancy, np.ndarray]]:
    """Five of them."""
    return [street(step) for step in range(5)]
