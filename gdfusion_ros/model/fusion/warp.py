"""Where the history of each voxel lies in the previous frame's grid, and what is there (spec 4.2).

Volumes are (B, C, Z, Y, X), or (B, C, Y, X) for a grid of one layer; positions have the components x, y (, z) last,
in cells of the previous grid, whole numbers at the cells themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import history as kernel
from gdfusion_ros.kernels import library


def is_flat(grid: VoxelGrid) -> bool:
    """Whether features over this grid are a bird's-eye view of one layer."""
    return grid.shape[2] == 1


def history_positions(previous_from_current: Tensor, grid: VoxelGrid, centred: bool = False) -> Tensor:
    """Positions (B, Z, Y, X, 3) or (B, Y, X, 2) of the current cells in the previous grid, by ego motion (B, 4, 4).

    ``centred``: a cell's index stands for its centre; otherwise, as in the published networks, for its lower corner.
    """
    if is_flat(grid):
        return flat_positions(previous_from_current, grid, centred)
    transform = index_transform(previous_from_current, grid, centred)
    x, y, z = (torch.arange(n, dtype=torch.float32, device=transform.device) for n in grid.shape)
    layers, rows, columns = torch.meshgrid(z, y, x, indexing="ij")
    index = torch.stack([columns, rows, layers, torch.ones_like(layers)], dim=-1)
    moved = index.view(1, -1, 4) @ transform[:, :-1].transpose(1, 2)
    return moved.view(-1, *index.shape[:-1], 3)


def flat_positions(previous_from_current: Tensor, grid: VoxelGrid, centred: bool = False) -> Tensor:
    """Positions (B, Y, X, 2) of the current columns in the previous grid, seen from above."""
    flattened = VoxelGrid(grid.minimum, grid.cell_size, (*grid.shape[:2], 1), grid.frame)
    transform = index_transform(previous_from_current, flattened, centred)
    x, y = (torch.arange(n, dtype=torch.float32, device=transform.device) for n in grid.shape[:2])
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    # Oddity (spec 4.2): the flat warp moves a point 1 m up, so pitch and roll leak into x and y.
    index = torch.stack([columns, rows, torch.ones_like(rows), torch.ones_like(rows)], dim=-1)
    moved = index.view(1, -1, 4) @ transform[:, :-1].transpose(1, 2)
    return moved[..., :2].view(-1, *index.shape[:-1], 2)


def index_transform(previous_from_current: Tensor, grid: VoxelGrid, centred: bool = False) -> Tensor:
    """(B, 4, 4) from cell indices (x, y, z, 1) of the current grid to those of the previous one, by ego motion."""
    device = previous_from_current.device
    flat = is_flat(grid)
    metric_from_index = torch.eye(4, device=device)
    for axis in range(2 if flat else 3):
        metric_from_index[axis, axis] = grid.cell_size[axis]
        # Oddity (spec 12.7): the published weights know a voxel by its lower corner, not by its centre.
        metric_from_index[axis, 3] = grid.minimum[axis] + (grid.cell_size[axis] / 2 if centred else 0.0)
    return torch.inverse(metric_from_index) @ previous_from_current @ metric_from_index


def is_inside(positions: Tensor, spatial: torch.Size) -> Tensor:
    """(B, ...) whether positions (B, ..., dims) lie between the first and the last cell of a (Z,) Y, X grid."""
    normal = normalise(positions, spatial)
    return (normal.abs() <= 1).all(dim=-1)


def sample_history(history: Tensor, positions: Tensor) -> Tensor:
    """The history (B, C, ...) at positions (B, ..., dims), interpolated; zero outside the grid."""
    if library.usable(history, positions):
        return kernel.warp(history, positions)
    grid = normalise(positions, history.shape[2:])
    return torch.nn.functional.grid_sample(
        history, grid, mode="bilinear", padding_mode="zeros", align_corners=True
    )


def normalise(positions: Tensor, spatial: torch.Size) -> Tensor:
    """Positions in cells as coordinates of ``grid_sample`` with ``align_corners=True``."""
    last = positions.new_tensor([max(size - 1, 1) for size in reversed(spatial)])
    return positions / last * 2 - 1
