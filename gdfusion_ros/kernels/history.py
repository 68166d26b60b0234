"""The motion cue, the warp of the history and the voxel cue.

Twins: ``gdfusion_ros.model.fusion.motion``, ``warp`` and ``voxel``. Volumes come and go as (B, C, Z, Y, X), or
(B, C, Y, X) for flat grids; in memory they are rows of channels in the order y, x, z, and any that are not are copied.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gdfusion_ros.kernels.buffers import empty
from gdfusion_ros.kernels.library import call, pack, pad


class Moved(NamedTuple):
    """What the motion cue gives."""

    offsets: Tensor
    """(B, dims, Z, Y, X) or (B, 2, Y, X) in cells."""
    positions: Tensor
    """(B, Z, Y, X, dims) or (B, Y, X, 2) where each cell's history lies, in cells of the previous grid."""
    inside: Tensor
    """(B, Z, Y, X) or (B, Y, X) whether that is inside the grid."""


def rows(volume: Tensor) -> Tensor:
    """(B, C, Z, Y, X) as contiguous (B, Y, X, Z, C); (B, C, Y, X) as (B, Y, X, 1, C)."""
    flat = volume.dim() == 4
    return (volume.movedim(1, -1).unsqueeze(3) if flat else volume.permute(0, 3, 4, 2, 1)).contiguous()


def volume(cells: Tensor, flat: bool) -> Tensor:
    """The inverse of ``rows``, without a copy."""
    return cells.squeeze(3).movedim(-1, 1) if flat else cells.permute(0, 4, 3, 1, 2)


def motion(
    voxels: Tensor, weight: Tensor, bias: Tensor, previous: Tensor | None, transforms: Tensor, rate: float
) -> Moved:
    """The updated offsets, where they point and whether that is inside.

    ``voxels`` (B, C, ...); ``weight`` (dims, C) and ``bias`` (dims) of the offsets' convolution; ``previous``
    (B, dims, ...) of the last frame, None at a sequence's start; ``transforms`` (B, dims, 4): a cell (x, y, z, 1)
    to its position by ego motion.
    """
    flat, dims = voxels.dim() == 4, len(bias)
    cells = rows(voxels)
    batch, y, x, z, channels = cells.shape
    before = None if previous is None else rows(previous)
    offsets, positions = cells.new_empty(batch, y, x, z, dims), cells.new_empty(batch, y, x, z, dims)
    inside = torch.empty(batch, y, x, z, dtype=torch.bool)
    for b in range(batch):
        call(
            "motion",
            *(cells[b], weight.contiguous(), bias.contiguous(), None if before is None else before[b]),
            *(
                transforms[b].contiguous(),
                channels,
                x,
                y,
                z,
                dims,
                float(rate),
                offsets[b],
                positions[b],
                inside[b],
            ),
        )
    if flat:
        return Moved(volume(offsets, True), positions.squeeze(3), inside.squeeze(3))
    return Moved(volume(offsets, False), positions.permute(0, 3, 1, 2, 4), inside.permute(0, 3, 1, 2))


def warp(history: Tensor, positions: Tensor) -> Tensor:
    """The history (B, C, ...) at positions (B, ..., dims), interpolated; zero outside the grid."""
    cells, places = rows(history), _places(positions)
    batch, y, x, z, channels = cells.shape
    out = empty(*cells.shape)
    for b in range(batch):
        call("warp", cells[b], places[b], channels, x, y, z, places.shape[-1], out[b])
    return volume(out, history.dim() == 4)


def voxel_fusion(
    voxels: Tensor,
    history: Tensor,
    positions: Tensor,
    each: tuple[Tensor, Tensor],
    merge: tuple[Tensor, Tensor],
    now: Tensor,
    before: Tensor,
) -> Tensor:
    """``relu(merge([relu(each(voxels + now)), relu(each(warped history + before))]))``, (B, C, ...).

    ``each`` and ``merge``: weight (C, C) or (C, 2C) and bias (C) with their norms folded in; ``now`` and ``before``
    (C): time embeddings.
    """
    cells, old, places = rows(voxels), rows(history), _places(positions)
    batch, y, x, z, channels = cells.shape
    weight, bias = each
    parameters = [
        *(pack(weight.T), pad(bias + weight @ now), pad(bias + weight @ before)),
        *(pack(merge[0].T), pad(merge[1])),
    ]
    out = empty(*cells.shape)
    for b in range(batch):
        call(
            "voxel_fusion",
            cells[b],
            old[b],
            places[b],
            *parameters,
            channels,
            x,
            y,
            z,
            places.shape[-1],
            out[b],
        )
    return volume(out, voxels.dim() == 4)


def _places(positions: Tensor) -> Tensor:
    """Positions (B, Z, Y, X, 3) or (B, Y, X, 2) as contiguous (B, Y, X, Z, dims)."""
    return (positions.unsqueeze(3) if positions.dim() == 4 else positions.permute(0, 2, 3, 1, 4)).contiguous()
