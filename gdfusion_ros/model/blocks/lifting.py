"""Lifting: image features into voxels, each pixel along its ray with the weight of each depth (spec 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import library
from gdfusion_ros.kernels import lifting as kernel
from gdfusion_ros.model.blocks.cameras import CameraRig, grid_points, pixel_grid, ray_steps


class Contributions(NamedTuple):
    """Which pixel adds how much to which voxel. What lies outside the grid goes to one more voxel behind the last: to
    drop it would need its number, for which a GPU would have to be waited for."""

    pixel: Tensor
    """(K,) row of the context table."""
    voxel: Tensor
    """(K,) flat voxel index, z slowest, then y, then x."""
    weight: Tensor
    """(K,)."""


class VoxelPlacement(nn.Module):
    """The grid's constants as the published checkpoints carry them: cell size, centre of the first cell, shape."""

    dx: Tensor
    bx: Tensor
    nx: Tensor

    def __init__(self, grid: VoxelGrid) -> None:
        super().__init__()
        cell = torch.tensor(grid.cell_size)
        self.register_buffer("dx", cell)
        self.register_buffer("bx", torch.tensor(grid.minimum) + cell / 2)
        self.register_buffer("nx", torch.tensor(grid.shape, dtype=torch.float32))


def lift(
    context: Tensor,
    weights: Tensor,
    depths: Tensor,
    rig: CameraRig,
    grid: VoxelGrid,
    image_size: tuple[int, int],
    trilinear: bool,
) -> Tensor:
    """Voxel features (B, C, Y, X, Z) from context (B, N, C, h, w) and depth weights (B, N, D, h, w).

    ``trilinear`` spreads each point over its eight neighbours; otherwise it goes whole into one voxel.
    """
    pixels = pixel_grid((context.shape[-2], context.shape[-1]), image_size, context.device)
    return lift_pixels(context, weights, pixels, depths, rig, grid, trilinear)


def lift_pixels(
    context: Tensor,
    weights: Tensor,
    pixels: Tensor,
    depths: Tensor,
    rig: CameraRig,
    grid: VoxelGrid,
    trilinear: bool,
) -> Tensor:
    """As ``lift``, for the network pixels (h, w, 2) that the cells of the context stand for."""
    if library.usable(context, weights, pixels, depths, gradient=not trilinear):
        return _by_kernel(
            context, kernel.ray_cells(pixels, depths, ray_steps(rig), grid), weights, grid, trilinear
        )
    along = pixels.expand(*context.shape[:2], len(depths), *pixels.shape)
    points = grid_points(along, depths[:, None, None].expand(along.shape[:-1]), rig)
    return splat(context, points, weights, grid, trilinear)


def lift_logarithm(
    context: Tensor,
    weights: Tensor,
    pixels: Tensor,
    depths: Tensor,
    rig: CameraRig,
    grid: VoxelGrid,
    spread: float,
) -> Tensor:
    """``log(1 + spread * voxels)`` of what ``lift_pixels`` gives without ``trilinear``, in one pass where it can be.

    Context and weights are not negative.
    """
    if library.usable(context, weights, pixels, depths):
        cells = kernel.ray_cells(pixels, depths, ray_steps(rig), grid)
        samples = [
            kernel.splat_logarithm(*sample, grid.shape, spread) for sample in zip(context, cells, weights)
        ]
        return _stacked(samples)
    return torch.log1p(spread * lift_pixels(context, weights, pixels, depths, rig, grid, trilinear=False))


def splat(context: Tensor, points: Tensor, weights: Tensor, grid: VoxelGrid, trilinear: bool) -> Tensor:
    """Voxel features (B, C, Y, X, Z): the sum over points (B, N, P, h, w, 3) of weight (B, N, P, h, w) times context.

    The P points of a pixel share its context (B, N, C, h, w).
    """
    batch, cameras, channels, h, w = context.shape
    x, y, z = grid.shape
    minimum, cell = points.new_tensor(grid.minimum), points.new_tensor(grid.cell_size)
    if library.usable(context, points, weights, gradient=not trilinear):
        return _by_kernel(context, (points - minimum) / cell, weights, grid, trilinear)
    place = trilinear_contributions if trilinear else nearest_contributions
    table = context.permute(0, 1, 3, 4, 2).reshape(batch, cameras * h * w, channels)
    row = torch.arange(cameras * h * w, device=context.device).view(cameras, 1, h, w)
    volumes = []
    for b in range(batch):
        coordinates = ((points[b] - minimum) / cell).view(-1, 3)
        rows = row.expand(points.shape[1:-1]).reshape(-1)
        contributions = place(coordinates, rows, weights[b].reshape(-1), grid.shape)
        volumes.append(gather_sum(table[b], contributions, x * y * z))
    volume = torch.stack(volumes).view(batch, z, y, x, channels)
    return volume.permute(0, 4, 2, 3, 1).contiguous()


def _by_kernel(context: Tensor, cells: Tensor, weights: Tensor, grid: VoxelGrid, trilinear: bool) -> Tensor:
    """As ``splat``, for points in cells of the grid."""
    return _stacked([kernel.splat(*sample, grid.shape, trilinear) for sample in zip(context, cells, weights)])


def _stacked(samples: list[Tensor]) -> Tensor:
    """A batch of volumes (C, Y, X, Z)."""
    if len(samples) == 1:
        return samples[0][None]
    # Stacked as the rows of channels that they are in memory.
    return torch.stack([sample.movedim(0, -1) for sample in samples]).movedim(-1, 1)


def nearest_contributions(
    coordinates: Tensor, rows: Tensor, weights: Tensor, shape: tuple[int, int, int]
) -> Contributions:
    """Each point whole into one voxel. ``coordinates`` (K, 3) in cells from the grid's minimum corner."""
    # Oddity (spec 12.7): truncation, not floor, so points up to one cell below the lower bound are kept.
    return Contributions(rows, _flat(coordinates.long(), shape), weights)


def trilinear_contributions(
    coordinates: Tensor, rows: Tensor, weights: Tensor, shape: tuple[int, int, int]
) -> Contributions:
    """Each point over the eight cells around it. ``coordinates`` (K, 3) in cells from the grid's minimum corner."""
    # Oddity (spec 12.7): a voxel's index stands for its lower corner, so everything shifts by half a cell.
    floor = coordinates.floor()
    fraction = coordinates - floor
    low = floor.long()
    parts: list[Contributions] = []
    for corner in range(8):
        step = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], device=low.device)
        cells = low + step
        share = torch.where(step.bool(), fraction, 1 - fraction).prod(dim=-1)
        parts.append(Contributions(rows, _flat(cells, shape), share * weights))
    return Contributions(*(torch.cat(columns) for columns in zip(*parts)))


def gather_sum(table: Tensor, contributions: Contributions, voxels: int) -> Tensor:
    """(voxels, C): for every voxel the weighted sum of its pixels' rows of ``table`` (pixels, C)."""
    voxel, order = contributions.voxel.sort()
    offsets = torch.searchsorted(voxel, torch.arange(voxels + 1, device=voxel.device))
    sums = nn.functional.embedding_bag(
        contributions.pixel[order],
        table,
        offsets,
        mode="sum",
        per_sample_weights=contributions.weight[order],
    )
    return sums[:voxels]


def _flat(cells: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Flat indices of cells (K, 3); that behind the last one for cells outside the grid."""
    inside = ((cells >= 0) & (cells < cells.new_tensor(shape))).all(dim=-1)
    flat = (cells[:, 2] * shape[1] + cells[:, 1]) * shape[0] + cells[:, 0]
    return torch.where(inside, flat, torch.full_like(flat, shape[0] * shape[1] * shape[2]))
