"""The stacked history of SOLOFusion, the baseline of GDFusion: the last 16 feature volumes (baselines-spec.md 1).

Every frame resamples all of them into its own grid and merges them with its own features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.layers import pointwise
from gdfusion_ros.model.config import TemporalConfig
from gdfusion_ros.model.fusion.temporal import FusedVoxels, layers_first, layers_last
from gdfusion_ros.model.fusion.warp import history_positions, is_flat, sample_history
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch


class StackedFusion(nn.Module):
    """Merges a frame's voxel features with those of the frames before it, all of which it carries on."""

    def __init__(self, channels: int, grid: VoxelGrid, config: TemporalConfig) -> None:
        super().__init__()
        dims = 2 if is_flat(grid) else 3
        self.channels, self.grid = channels, grid
        self.frames, self.interval = config.stacked_frames, config.frame_interval
        self.each = pointwise(channels + 1, channels, dims)
        self.merge = pointwise((self.frames + 1) * channels, channels, dims)

    def forward(
        self, voxels: Tensor, state: TemporalState | None, previous_from_current: Tensor, watch: Watch
    ) -> tuple[FusedVoxels, dict[str, Tensor]]:
        """Fused features and the tensors to carry on.

        ``voxels`` (B, C, Y, X, Z) or (B, C, Y, X); ``state`` None at a sequence's start;
        ``previous_from_current`` (B, 4, 4) ego motion, the identity at a start.
        """
        with watch.stage("stacked_fusion"):
            x = layers_first(voxels)
            positions = history_positions(previous_from_current, self.grid)
            carried = x.new_empty(x.shape[0], self.frames * self.channels, *x.shape[2:])
            ages = x.new_zeros(x.shape[0], self.frames)
            if state is not None:
                ages = state.tensors["history_times"] + 1
            times = torch.cat([torch.zeros_like(ages[:, :1]), ages], dim=1)
            shown: list[tuple[Tensor, Tensor]] = []
            merged: Tensor | None = None
            # Frame by frame: all of them at once, with their time channel, would take four times the history's memory.
            # What the merging convolution gives is the sum of what it gives for each frame.
            for age, block in enumerate(self._blocks(x, state, positions)):
                if age < self.frames:
                    self._part(carried, age).copy_(block.detach())
                one = self.each(torch.cat([block, self._seconds(times[:, age], block)], dim=1))
                part = self._merged_part(one, age)
                merged = (
                    part if merged is None else merged.add_(part) if not part.requires_grad else merged + part
                )
                if watch.on_tensor is not None:
                    shown.append((block, one))
            assert merged is not None
            convolution, norm, relu = self.merge
            bias = cast(Tensor, convolution.bias).view(1, -1, *([1] * (x.dim() - 2)))
            fused = layers_last(relu(norm(merged + bias)))
        if shown:
            watch.show(
                history_sampled=torch.cat([block for block, _ in shown[1:]], dim=1), history_times=times
            )
            watch.show(history_per_frame=torch.cat([one for _, one in shown]))
        watch.show(voxel_fused=fused)
        return FusedVoxels(fused, None, None), {"history": carried, "history_times": times[:, :-1]}

    def _blocks(self, x: Tensor, state: TemporalState | None, positions: Tensor) -> Iterator[Tensor]:
        """The current volume, then the history's at its cells, newest first."""
        yield x
        if state is None:
            # A sequence starts with itself as its whole history.
            sampled = sample_history(x.detach(), positions)
            for _ in range(self.frames):
                yield sampled
            return
        for age in range(self.frames):
            yield sample_history(self._part(state.tensors["history"], age), positions)

    def _part(self, history: Tensor, age: int) -> Tensor:
        """The channels of one frame."""
        return history[:, age * self.channels : (age + 1) * self.channels]

    def _seconds(self, times: Tensor, like: Tensor) -> Tensor:
        """The time channel: the frame's age, also where the warp found nothing."""
        seconds = self.interval * times
        return seconds.view(-1, *([1] * (like.dim() - 1))).expand(-1, 1, *like.shape[2:])

    def _merged_part(self, one: Tensor, age: int) -> Tensor:
        """One frame's contribution to the merging convolution."""
        weight = self._part(cast(Tensor, self.merge[0].weight), age)
        apply = nn.functional.conv3d if one.dim() == 5 else nn.functional.conv2d
        return apply(one, weight)
