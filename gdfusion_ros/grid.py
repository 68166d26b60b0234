"""The voxel grid: where it lies, how large its cells are, and which metre belongs to which cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class VoxelGrid:
    """A box of equal cells. Arrays over it have shape (X, Y, Z); cell (0, 0, 0) touches the minimum corner."""

    minimum: Triple
    """The minimum corner in metres, in the grid's frame."""
    cell_size: Triple
    """Edge lengths of one cell in metres."""
    shape: tuple[int, int, int]
    """Number of cells along x, y and z."""
    frame: Literal["ego", "lidar"] = "ego"
    """``ego``: x forward, y left, z up. ``lidar``: nuScenes' LIDAR_TOP, x right, y forward, z up."""

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or min(self.cell_size) <= 0:
            raise ValueError(f"a voxel grid needs cells of positive size and number, not {self}")

    @classmethod
    def from_bounds(
        cls, x: Triple, y: Triple, z: Triple, frame: Literal["ego", "lidar"] = "ego"
    ) -> VoxelGrid:
        """A grid from (lower, upper, step) in metres along each axis."""
        shape = tuple(round((upper - lower) / step) for lower, upper, step in (x, y, z))
        return cls((x[0], y[0], z[0]), (x[2], y[2], z[2]), (shape[0], shape[1], shape[2]), frame)

    @property
    def maximum(self) -> Triple:
        """The maximum corner in metres."""
        upper = np.asarray(self.minimum) + np.asarray(self.shape) * np.asarray(self.cell_size)
        return float(upper[0]), float(upper[1]), float(upper[2])

    @property
    def cells(self) -> int:
        """Number of cells in all."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def index(self, points: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Cell indices (..., 3) of points (..., 3) in metres, and whether each point lies inside the grid."""
        cells = np.floor(
            (np.asarray(points, dtype=np.float64) - np.asarray(self.minimum)) / np.asarray(self.cell_size)
        )
        inside = ((cells >= 0) & (cells < np.asarray(self.shape))).all(axis=-1)
        return np.where(inside[..., None], cells, 0).astype(np.int64), inside

    def centers(self, indices: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Centres (..., 3) in metres of the cells with the given indices (..., 3)."""
        return np.asarray(self.minimum) + (np.asarray(indices) + 0.5) * np.asarray(self.cell_size)


OCC3D = VoxelGrid.from_bounds((-40.0, 40.0, 0.4), (-40.0, 40.0, 0.4), (-1.0, 5.4, 0.4))
"""Occ3D-nuScenes: 200 x 200 x 16 cells of 0.4 m in the ego frame."""
SURROUNDOCC = VoxelGrid.from_bounds((-50.0, 50.0, 0.5), (-50.0, 50.0, 0.5), (-5.0, 3.0, 0.5), "lidar")
"""SurroundOcc: 200 x 200 x 16 cells of 0.5 m in the LiDAR frame."""
OPENOCCUPANCY = VoxelGrid.from_bounds((-51.2, 51.2, 0.2), (-51.2, 51.2, 0.2), (-5.0, 3.0, 0.2), "lidar")
"""OpenOccupancy: 512 x 512 x 40 cells of 0.2 m in the LiDAR frame."""
