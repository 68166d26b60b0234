"""The voxel cue (spec 4.2): a recurrent feature volume, h(t) = A h(t-1) + B x(t) with a nonlinearity."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import history as kernel
from gdfusion_ros.kernels import library
from gdfusion_ros.model.blocks.layers import folded, pointwise
from gdfusion_ros.model.fusion.warp import is_flat, sample_history
from gdfusion_ros.model.watch import Watch


class VoxelFusion(nn.Module):
    """Merges this frame's voxel features with the history that was carried to this frame's grid."""

    def __init__(
        self, channels: int, grid: VoxelGrid, frame_interval: float = 0.5, max_time_steps: int = 40
    ) -> None:
        super().__init__()
        dims = 2 if is_flat(grid) else 3
        self.channels, self.frame_interval, self.max_time_steps = channels, frame_interval, max_time_steps
        self.time_embedding = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels)
        )
        self.each = pointwise(channels, channels, dims)
        self.merge = pointwise(2 * channels, channels, dims)

    def forward(
        self, voxels: Tensor, state: VoxelState | None, positions: Tensor, watch: Watch | None = None
    ) -> tuple[Tensor, VoxelState]:
        """Fused features (B, C, ...) and the new state.

        ``voxels`` (B, C, ...) of this frame; ``state`` of the last, None at a sequence's start; ``positions``
        (B, ..., dims) where each voxel's history lies in the state's grid, ego motion and motion offsets included.
        """
        # A sequence starts with itself as history.
        history = voxels.detach() if state is None else state.voxels
        steps = 0 if state is None else state.steps
        now, before = self._time(steps, voxels)
        if watch is not None and watch.on_tensor is not None:
            watch.show(history_sampled=sample_history(history, positions))
        if library.usable(voxels, history, positions):
            each, merge = (_matrix(part[0], part[1]) for part in (self.each, self.merge))
            merged = kernel.voxel_fusion(voxels, history, positions, each, merge, now, before)
        else:
            merged = self._merge(voxels, sample_history(history, positions), now, before)
        # Oddity (spec 12.10): a first frame's output is its input, though the state is already the merged volume.
        return (voxels if state is None else merged), VoxelState(merged.detach(), steps + 1)

    def _merge(self, voxels: Tensor, sampled: Tensor, now: Tensor, before: Tensor) -> Tensor:
        """This frame and the history at its cells, both (B, C, ...), with their time embeddings (C), in one volume."""
        shape = (1, -1, *([1] * (voxels.dim() - 2)))
        both = [self.each(voxels + now.view(shape)), self.each(sampled + before.view(shape))]
        merged: Tensor = self.merge(torch.cat(both, dim=1))
        return merged

    def _time(self, steps: int, like: Tensor) -> Tensor:
        """(2, C): embeddings of now and of the frame before."""
        # The weights saw scenes of some 40 frames; the position of a longer stream stays at the last one they know.
        now = min(steps, self.max_time_steps)
        position = self.frame_interval * torch.tensor(
            [now, max(now - 1, 0)], dtype=torch.float32, device=like.device
        )
        result: Tensor = self.time_embedding(sinusoid(position, self.channels))
        return result


def _matrix(convolution: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A convolution of one cell with its norm, as a matrix (outputs, inputs) and a bias."""
    weight, bias = folded(convolution, norm)
    return weight.flatten(1), bias


class VoxelState(NamedTuple):
    """What the voxel cue carries on."""

    voxels: Tensor
    """(B, C, Z, Y, X) or (B, C, Y, X)."""
    steps: int
    """Frames seen in this sequence."""


def sinusoid(positions: Tensor, channels: int) -> Tensor:
    """(P, channels) position code: sine in even channels, cosine in odd ones."""
    rates = torch.exp(
        torch.arange(0, channels, 2, dtype=torch.float32, device=positions.device)
        * (-math.log(10000.0) / channels)
    )
    angles = positions[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :channels]
