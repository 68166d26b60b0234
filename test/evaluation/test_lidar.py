"""LiDAR as a witness: a made-up wall, and a real sweep against grids made from itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gdfusion_ros import grid as grids
from gdfusion_ros.evaluation.lidar import EGO_RADIUS, LidarWitness
from gdfusion_ros.frame import CameraFrame, Occupancy
from gdfusion_ros.geometry import inverse
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.rays import passed_cells
from gdfusion_ros.sources.nuscenes import FolderSource

FREE, WALL = 17, 15


def occupancy_of(labels: np.ndarray, grid: VoxelGrid = grids.OCC3D) -> Occupancy:
    return Occupancy(labels, grid, OCC3D, 0, 1, 0, (), (), "made-up", "none", np.eye(4))


def frame_of(points: np.ndarray) -> CameraFrame:
    lidar = np.eye(4)
    lidar[2, 3] = 1.8
    return CameraFrame(0, (), np.eye(4), ego_from_lidar=lidar, lidar_points=points.astype(np.float32))


def test_a_grid_that_is_right_is_confirmed() -> None:
    labels = np.full(grids.OCC3D.shape, FREE, np.uint8)
    labels[150] = WALL  # 20.0 .. 20.4 m ahead
    y = np.linspace(-5, 5, 101)
    witness = LidarWitness()
    assert witness.add(
        frame_of(np.stack([np.full(101, 20.2), y, np.zeros(101)], axis=1)), occupancy_of(labels)
    )
    result = witness.summary()
    assert result["returns"] == 101
    assert result["returns_in_occupied"] == 1.0
    assert result["free_space_free"] == 1.0
    row = result["depth_error"][2]  # 20 to 30 m
    assert row["rays"] == 101
    assert row["rays_through"] == 0
    assert row["mean_abs_error_m"] < 0.05


def test_a_wall_that_is_too_near_shows_as_blocked_rays_and_a_negative_error() -> None:
    labels = np.full(grids.OCC3D.shape, FREE, np.uint8)
    labels[145] = WALL  # two metres too near
    witness = LidarWitness()
    witness.add(frame_of(np.array([[20.2, 0.0, 0.0]])), occupancy_of(labels))
    result = witness.summary()
    assert result["returns_in_occupied"] == 0.0
    # 50 cells from 0 to 20 m; the last before the return does not count, one of the 49 is occupied.
    assert result["free_space_free"] == pytest.approx(48 / 49)
    assert result["depth_error"][2]["median_error_m"] == pytest.approx(-2.0, abs=1e-6)


def test_an_empty_grid_lets_every_ray_through() -> None:
    witness = LidarWitness()
    witness.add(
        frame_of(np.array([[20.2, 0.0, 0.0]])), occupancy_of(np.full(grids.OCC3D.shape, FREE, np.uint8))
    )
    row = witness.summary()["depth_error"][2]
    assert (row["rays"], row["rays_through"], row["mean_abs_error_m"]) == (1, 1, None)


def test_returns_from_the_vehicle_itself_and_broken_ones_are_left_out() -> None:
    points = np.array([[1.0, 0.5, -1.0], [np.nan, 0.0, 0.0], [500.0, 0.0, 0.0], [20.2, 0.0, 0.0]])
    witness = LidarWitness()
    witness.add(frame_of(points), occupancy_of(np.full(grids.OCC3D.shape, FREE, np.uint8)))
    assert witness.returns == 1


def test_a_frame_without_lidar_says_nothing() -> None:
    witness = LidarWitness()
    labels = np.full(grids.OCC3D.shape, FREE, np.uint8)
    assert not witness.add(CameraFrame(0, (), np.eye(4)), occupancy_of(labels))
    assert witness.summary()["returns_in_occupied"] is None


def test_passed_cells_equal_brute_force() -> None:
    rng = np.random.default_rng(2)
    grid = VoxelGrid((-2.0, -2.0, -1.0), (0.5, 0.4, 0.3), (8, 9, 7))
    for _ in range(200):
        solid = rng.random(grid.shape) < 0.2
        origin, point = rng.uniform(grid.minimum, grid.maximum, (2, 3))
        # Between two crossings of the grid's planes a ray is in one cell: that of the middle.
        planes = [
            low + size * np.arange(n + 1)
            for low, size, n in zip(grid.minimum, grid.cell_size, grid.shape, strict=True)
        ]
        crossings = [(plane - origin[a]) / (point - origin)[a] for a, plane in enumerate(planes)]
        at = np.sort(np.concatenate([*crossings, [0.0, 1.0]]))
        at = at[(at >= 0) & (at <= 1)]
        order, _ = grid.index(origin + ((at[1:] + at[:-1]) / 2)[:, None] * (point - origin))
        on_the_way = order[:-2]
        free = int((~solid[tuple(on_the_way.T)]).sum())
        assert passed_cells(solid, grid, origin, point[None]) == (len(on_the_way), free)


def test_a_real_sweep_confirms_the_grid_that_is_made_from_it(shared_dir: Path) -> None:
    frame = next(iter(FolderSource(shared_dir / "data" / "nuscenes_n015")))
    assert frame.lidar_points is not None
    assert frame.ego_from_lidar is not None
    assert frame.world_from_ego_at_lidar is not None
    ego_from_lidar = inverse(frame.world_from_ego) @ frame.world_from_ego_at_lidar @ frame.ego_from_lidar
    outside = frame.lidar_points[np.linalg.norm(frame.lidar_points, axis=1) > EGO_RADIUS]
    points = outside @ ego_from_lidar[:3, :3].T + ego_from_lidar[:3, 3]
    cells, inside = grids.OCC3D.index(points)
    labels = np.full(grids.OCC3D.shape, FREE, np.uint8)
    labels[tuple(cells[inside].T)] = WALL
    witness = LidarWitness()
    assert witness.add(frame, occupancy_of(labels))
    result = witness.summary()
    assert result["returns"] > 15_000
    assert result["returns_in_occupied"] == 1.0
    # Rays graze the ground's cells on their way, so that even this grid does not reach 1.
    assert result["free_space_free"] > 0.95
    assert result["depth_error"][0]["mean_abs_error_m"] < 1.0
