"""The motion cue (spec 4.3): where a voxel's content was, beyond what ego motion explains.

The network predicts an offset m for every voxel. The previous frame's offsets M' are sampled where m points to, and
one step of gradient descent on their squared difference pulls m towards them, so that motion persists. The gradient
is written out; it needs no autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import history as kernel
from gdfusion_ros.kernels import library
from gdfusion_ros.model.fusion.warp import history_positions, index_transform, is_flat, is_inside

LARGEST = 20.0
"""Cells: bound of the predicted offset and of its gradient."""


class MotionFusion(nn.Module):
    """Offsets of each voxel's history, in cells along x, y (, z) of the previous grid's axes."""

    def __init__(self, channels: int, grid: VoxelGrid, rate: float = 0.1) -> None:
        super().__init__()
        self.dims = 2 if is_flat(grid) else 3
        self.grid, self.rate = grid, rate
        # A 3D convolution also for flat grids: so the published weights have it.
        self.offset = nn.Conv3d(channels, self.dims, 1)

    def move(
        self, voxels: Tensor, state: Tensor | None, previous_from_current: Tensor, centred: bool
    ) -> kernel.Moved:
        """The updated offsets, the positions of the history by ego motion and offsets, and whether these are inside.

        ``voxels`` and ``state`` as for ``forward``; ``previous_from_current`` and ``centred`` as for
        ``history_positions``.
        """
        if library.usable(voxels):
            transforms = index_transform(previous_from_current, self.grid, centred)[:, : self.dims].clone()
            if self.dims == 2:
                # Oddity (spec 4.2): flat grids take a cell for a point 1 m up.
                transforms[..., 3] += transforms[..., 2]
            weight, bias = self.offset.weight.flatten(1), self.offset.bias
            assert bias is not None
            return kernel.motion(voxels, weight, bias, state, transforms, self.rate)
        positions = history_positions(previous_from_current, self.grid, centred)
        offsets, _ = self(voxels, state, positions)
        positions = positions + offsets.movedim(1, -1)
        return kernel.Moved(offsets, positions, is_inside(positions.detach(), voxels.shape[2:]))

    def forward(self, voxels: Tensor, state: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The updated offsets (B, dims, ...) with gradient, and the same as the new state.

        ``voxels`` (B, C, ...) of this frame; ``state`` (B, dims, ...) of the last, None at a sequence's start;
        ``positions`` (B, ..., dims) of the voxels in the previous grid by ego motion.
        """
        flat = voxels.dim() == 4
        raw = self.offset(voxels.unsqueeze(2) if flat else voxels)
        predicted = (raw.squeeze(2) if flat else raw).clamp(-LARGEST, LARGEST)
        if state is None:
            return predicted, predicted.detach()
        # Oddity (spec 12.12): the old offsets are compared as they are; they do not turn with the ego.
        step = motion_gradient(predicted.detach(), state, positions)
        # The gradient is a constant to the training, so the offsets pass theirs on unchanged. Not clamped again.
        updated = predicted - self.rate * step
        return updated, updated.detach()


@torch.no_grad()
def motion_gradient(offsets: Tensor, previous: Tensor, positions: Tensor) -> Tensor:
    """Gradient of the mean squared difference between ``previous`` sampled at ``positions + offsets``, and ``offsets``.

    All volumes (B, dims, ...), clamped to +-LARGEST; zero where the sample lies outside the grid.
    """
    moved = positions + offsets.movedim(1, -1)
    sampled, jacobian = sample_with_jacobian(previous, moved)
    difference = 2 * (sampled - offsets.movedim(1, -1))
    through_position = torch.einsum("...ac,...c->...a", jacobian, difference)
    gradient = ((through_position - difference) / offsets.shape[1]).clamp(-LARGEST, LARGEST)
    # Oddity (spec 12.12): inside or outside is judged with the offsets before their update.
    gradient = gradient * is_inside(moved, previous.shape[2:])[..., None]
    return gradient.movedim(-1, 1)


def sample_with_jacobian(volume: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """``volume`` (B, C, ...) at positions (B, ..., dims), clamped at the borders, and its derivatives by position.

    Gives values (B, ..., C) and Jacobian (B, ..., dims, C); component 0 of a position is x, the volume's last axis.
    """
    dims = positions.shape[-1]
    spatial = volume.shape[2:]
    floor = positions.floor()
    fraction = positions - floor
    limit = floor.new_tensor([size - 1 for size in reversed(spatial)])
    low = floor.clamp(min=0).minimum(limit)
    high = (floor + 1).clamp(min=0).minimum(limit)
    apart = (high > low).to(volume.dtype)
    # Oddity (spec 4.3): the derivatives' weights come from the clamped corners. They differ from the values' weights
    # only exactly on the upper border, where they vanish.
    slope_low, slope_high = high - positions, positions - low

    table = volume.flatten(2).transpose(1, 2)
    batch, channels = table.shape[0], table.shape[2]
    strides = [1]
    for size in reversed(spatial[1:]):
        strides.append(strides[-1] * size)
    value = positions.new_zeros(*positions.shape[:-1], channels)
    jacobian = positions.new_zeros(*positions.shape, channels)
    for corner in range(2**dims):
        upper = [bool(corner >> axis & 1) for axis in range(dims)]
        index = sum((high if upper[a] else low)[..., a] * strides[a] for a in range(dims))
        assert isinstance(index, Tensor)
        rows = index.long().view(batch, -1, 1).expand(-1, -1, channels)
        corner_value = table.gather(1, rows).view(*positions.shape[:-1], channels)
        weights = [fraction[..., a] if upper[a] else 1 - fraction[..., a] for a in range(dims)]
        slopes = [slope_high[..., a] if upper[a] else slope_low[..., a] for a in range(dims)]
        value += _product(weights)[..., None] * corner_value
        for a in range(dims):
            others = [apart[..., a], *(slopes[o] for o in range(dims) if o != a)]
            sign = 1.0 if upper[a] else -1.0
            jacobian[..., a, :] += (sign * _product(others))[..., None] * corner_value
    return value, jacobian


def _product(factors: list[Tensor]) -> Tensor:
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result
