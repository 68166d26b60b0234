"""Lifting over points sorted by cell, with its gradient; twin: ``gdfusion_ros.model.blocks.lifting.splat``."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels.buffers import empty
from gdfusion_ros.kernels.library import call, cells_first

_REMEMBERED = 4
"""Calibrations whose ranks are kept: one for each stream of a process, as a rule."""


class Ranks(NamedTuple):
    """Points sorted by the cell that they lie in."""

    coordinates: Tensor
    """(P, 3) x, y, z in cells; what the ranks belong to."""
    starts: Tensor
    """(cells + 1) where each cell's points begin in ``order``."""
    order: Tensor
    """(P,)."""
    cells: Tensor
    """(P,) the cell of each point, -1 outside the grid."""


class RankCache:
    """Ranks of the last calibrations. A standing rig has one; a recording with exposures of their own has many."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[object, ...], Ranks] = OrderedDict()

    def ranks(self, coordinates: Tensor, shape: tuple[int, int, int], trilinear: bool) -> Ranks:
        """The ranks of points (P, 3) over a grid of shape (X, Y, Z), computed where the points are new."""
        # A few thousand sampled numbers find the entry; all of them decide.
        flat = coordinates.view(-1)
        key = (shape, trilinear, tuple(coordinates.shape), flat[:: max(1, len(flat) // 64)].numpy().tobytes())
        found = self._entries.pop(key, None)
        if found is None or not torch.equal(found.coordinates, coordinates):
            found = rank_points(coordinates, shape, trilinear)
        self._entries[key] = found
        while len(self._entries) > _REMEMBERED:
            self._entries.popitem(last=False)
        return found


_cache = RankCache()


def rank_points(coordinates: Tensor, shape: tuple[int, int, int], trilinear: bool) -> Ranks:
    """Sort points by cell. For ``trilinear``, the layer of cells below the grid counts as well."""
    first = -1 if trilinear else 0
    x, y, z = (size - first for size in shape)
    starts = torch.empty(x * y * z + 1, dtype=torch.int32)
    order, cells = (torch.empty(len(coordinates), dtype=torch.int32) for _ in range(2))
    call("rank_points", coordinates, len(coordinates), *shape, first, starts, order, cells)
    return Ranks(coordinates, starts, order, cells)


def ray_cells(pixels: Tensor, depths: Tensor, steps: Tensor, grid: VoxelGrid) -> Tensor:
    """(B, N, D, h, w, 3): pixels (h, w, 2) of each camera at depths (D), in cells from the grid's lower corner.

    ``steps`` (B, N, 27): the fields of Ray in projection.h.
    """
    batch, cameras = steps.shape[:2]
    h, w, _ = pixels.shape
    out = pixels.new_empty(batch, cameras, len(depths), h, w, 3)
    minimum, cell = pixels.new_tensor(grid.minimum), pixels.new_tensor(grid.cell_size)
    call(
        "ray_cells",
        *(pixels.contiguous(), depths.contiguous(), steps.contiguous(), minimum, cell),
        *(batch * cameras, len(depths), h * w, out),
    )
    return out


def splat_logarithm(
    context: Tensor, coordinates: Tensor, weights: Tensor, shape: tuple[int, int, int], spread: float
) -> Tensor:
    """``log(1 + spread * splat(..., trilinear=False))``; context and weights not negative, no gradient."""
    table, flat, shares = cells_first(context), coordinates.reshape(-1, 3).contiguous(), weights.contiguous()
    return _nearest(table, shares, _cache.ranks(flat, shape, False), shape, spread).permute(3, 0, 1, 2)


def splat(
    context: Tensor, coordinates: Tensor, weights: Tensor, shape: tuple[int, int, int], trilinear: bool
) -> Tensor:
    """Voxel features (C, Y, X, Z), channels last in memory; with a gradient unless ``trilinear``.

    ``context`` (N, C, h, w); ``coordinates`` (N, P, h, w, 3) of each pixel's P points in cells of a grid of shape
    (X, Y, Z); ``weights`` (N, P, h, w).
    """
    table, flat, shares = cells_first(context), coordinates.reshape(-1, 3).contiguous(), weights.contiguous()
    ranks = _cache.ranks(flat.detach(), shape, trilinear)
    if not trilinear:
        out: Tensor = _Nearest.apply(table, shares, ranks, shape)  # type: ignore[no-untyped-call]
    else:
        x, y, z = shape
        out = empty(y, x, z, table.shape[-1])
        call(
            "lift_trilinear",
            table,
            shares,
            flat,
            ranks.starts,
            ranks.order,
            *_sizes(table, shares),
            *shape,
            out,
        )
    return out.permute(3, 0, 1, 2)


class _Nearest(torch.autograd.Function):
    """Rows of voxels (Y, X, Z, C) from a table (N, h, w, C) and weights (N, P, h, w)."""

    @staticmethod
    def forward(
        context: Any, table: Tensor, weights: Tensor, ranks: Ranks, shape: tuple[int, int, int]
    ) -> Tensor:
        context.save_for_backward(table, weights)
        context.ranks = ranks
        return _nearest(table, weights, ranks, shape, 0.0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        table, weights = context.saved_tensors
        of_table, of_weights = torch.empty_like(table), torch.empty_like(weights)
        call(
            "lift_nearest_gradient",
            *(
                table,
                weights,
                gradient.contiguous(),
                context.ranks.cells,
                len(table),
                *_sizes(table, weights),
            ),
            *(of_table, of_weights),
        )
        return of_table, of_weights, None, None


def _nearest(
    table: Tensor, weights: Tensor, ranks: Ranks, shape: tuple[int, int, int], spread: float
) -> Tensor:
    """(Y, X, Z, C)."""
    x, y, z = shape
    out = empty(y, x, z, table.shape[-1])
    call(
        "lift_nearest",
        *(table, weights, ranks.starts, ranks.order, *_sizes(table, weights), x * y * z, spread, out),
    )
    return out


def _sizes(table: Tensor, weights: Tensor) -> tuple[int, int, int]:
    """Depths, pixels and channels."""
    _, h, w, channels = table.shape
    return weights.shape[1], h * w, channels
