"""LiDAR as a witness where nobody annotated anything: do its returns and its free rays agree with the grid?"""

from __future__ import annotations

from typing import Any

import numpy as np

from gdfusion_ros.frame import CameraFrame, Occupancy
from gdfusion_ros.geometry import Matrix, inverse
from gdfusion_ros.labels import UNKNOWN
from gdfusion_ros.rays import Floats, first_hits, passed_cells

EGO_RADIUS = 3.0
"""Metres around the LiDAR within which returns are taken to be the vehicle's own roof and bonnet."""
DISTANCES = (3.0, 10.0, 20.0, 30.0, 40.0, 60.0)
"""Edges in metres of the bins for depth errors."""


class LidarWitness:
    """Agreement of grids with the LiDAR sweeps of their frames, over any number of frames.

    Three questions: do the returns lie in occupied voxels, are the voxels that rays crossed free, and how far from
    the return does the grid stop the ray? Sweeps are placed by the ego pose at their own time. The free share of a grid
    made of a real sweep itself is 0.98, not 1: rays graze the cells of the ground before they end in it.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.returns = 0
        self.returns_occupied = 0
        self.crossed = 0
        self.crossed_free = 0
        self._errors: list[list[Floats]] = [[] for _ in DISTANCES[1:]]
        self._missed = np.zeros(len(DISTANCES) - 1, dtype=np.int64)

    def add(self, frame: CameraFrame, occupancy: Occupancy) -> bool:
        """Count one frame; False when it has no LiDAR."""
        if frame.lidar_points is None or frame.ego_from_lidar is None:
            return False
        grid_from_lidar = _grid_from_lidar(frame, occupancy)
        points = np.asarray(frame.lidar_points, dtype=np.float64)[:, :3]
        points = points[np.isfinite(points).all(axis=1)]
        points = points[np.linalg.norm(points, axis=1) > EGO_RADIUS]
        points = points @ grid_from_lidar[:3, :3].T + grid_from_lidar[:3, 3]
        origin = grid_from_lidar[:3, 3]

        occupied = (occupancy.labels != occupancy.label_set.free) & (occupancy.labels != UNKNOWN)
        cells, inside = occupancy.grid.index(points)
        self.frames += 1
        self.returns += int(inside.sum())
        self.returns_occupied += int(occupied[tuple(cells[inside].T)].sum())
        blocked = occupancy.labels != occupancy.label_set.free  # unknown is not free
        crossed, free = passed_cells(blocked, occupancy.grid, origin, points)
        self.crossed += crossed
        self.crossed_free += free

        rays = points[inside] - origin
        distance = np.linalg.norm(rays, axis=1)
        hits = first_hits(occupied, occupancy.grid, np.tile(origin, (len(rays), 1)), rays / distance[:, None])
        # A depth is where a cell is entered; the surface in it lies half a cell further on average.
        error = hits.depth + 0.5 * min(occupancy.grid.cell_size) - distance
        bins = np.digitize(distance, DISTANCES) - 1
        for k in range(len(self._errors)):
            self._errors[k].append(error[(bins == k) & hits.hit])
            self._missed[k] += int(((bins == k) & ~hits.hit).sum())
        return True

    def summary(self) -> dict[str, Any]:
        """Shares in 0..1, and errors in metres by distance; a positive median means that the grid is too far."""
        rows = []
        for k, parts in enumerate(self._errors):
            errors = np.concatenate(parts) if parts else np.zeros(0)
            rows.append(
                {
                    "from_m": DISTANCES[k],
                    "to_m": DISTANCES[k + 1],
                    "rays": len(errors) + int(self._missed[k]),
                    "rays_through": int(self._missed[k]),
                    "mean_abs_error_m": float(np.abs(errors).mean()) if len(errors) else None,
                    "median_error_m": float(np.median(errors)) if len(errors) else None,
                }
            )
        return {
            "frames": self.frames,
            "returns": self.returns,
            "returns_in_occupied": self.returns_occupied / self.returns if self.returns else None,
            "free_space_free": self.crossed_free / self.crossed if self.crossed else None,
            "depth_error": rows,
        }


def _grid_from_lidar(frame: CameraFrame, occupancy: Occupancy) -> Matrix:
    assert frame.ego_from_lidar is not None
    world_from_sweep = frame.world_from_ego_at_lidar
    sweep = frame.world_from_ego if world_from_sweep is None else world_from_sweep
    ego_from_lidar = inverse(frame.world_from_ego) @ sweep @ frame.ego_from_lidar
    if occupancy.grid.frame == "ego":
        return ego_from_lidar
    return inverse(frame.ego_from_lidar) @ ego_from_lidar
