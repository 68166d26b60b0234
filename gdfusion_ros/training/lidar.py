"""The LiDAR frame in a world without LiDAR: networks whose grid lies there are trained on a turned ego grid.

nuScenes' LIDAR_TOP looks along the vehicle's left-to-right axis: its y is the ego's x, its x the ego's -y. With the
mounting of ``EGO_FROM_LIDAR``, which is nuScenes' but for a fraction of a degree, every cell of a grid in the LiDAR
frame is a cell of a grid in the ego frame, and ground truth only changes its order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gdfusion_ros.grid import VoxelGrid

MOUNT = (0.943713, 0.0, 1.84023)
"""Metres from the ego's origin to LIDAR_TOP."""
EGO_FROM_LIDAR = np.array(
    [
        [0.0, 1.0, 0.0, MOUNT[0]],
        [-1.0, 0.0, 0.0, MOUNT[1]],
        [0.0, 0.0, 1.0, MOUNT[2]],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def ego_grid(grid: VoxelGrid) -> VoxelGrid:
    """The grid in the ego frame with the same cells; a grid in the ego frame is its own."""
    if grid.frame == "ego":
        return grid
    (x, y, z), (dx, dy, dz), (nx, ny, nz) = grid.minimum, grid.cell_size, grid.shape
    minimum = (y + MOUNT[0], MOUNT[1] - (x + nx * dx), z + MOUNT[2])
    return VoxelGrid(minimum, (dy, dx, dz), (ny, nx, nz), "ego")


def in_grid_order(array: npt.NDArray[Any], grid: VoxelGrid) -> npt.NDArray[Any]:
    """An array (X, Y, ...) over ``ego_grid(grid)`` as one over ``grid``."""
    return array if grid.frame == "ego" else array.swapaxes(0, 1)[::-1]


def ego_from_grid(grid: VoxelGrid) -> npt.NDArray[np.float64]:
    """(4, 4) from the grid's frame to the ego's."""
    return np.eye(4) if grid.frame == "ego" else EGO_FROM_LIDAR
