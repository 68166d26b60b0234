"""Voxel pyramids: an encoder of basic residual blocks, its feature pyramid, and the head that mixes the levels.

Layout of FB-Occ and OpenOccupancy (surroundocc-spec.md 11, gdfusion-spec.md 5). Which of the three spatial axes is
which does not matter here; ``...`` stands for them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gdfusion_ros.kernels import library
from gdfusion_ros.model.blocks.encoders import EncoderConfig
from gdfusion_ros.model.blocks.layers import ConvNorm, upsample

_ROWS_AT_A_TIME = 4
"""Of the finest level, of which the doubled size is made."""


class BasicVoxelBlock(nn.Module):
    """Two 3x3x3 convolutions around a shortcut, which is a 1x1x1 convolution with norm where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=bias)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, 1, bias=bias)
        self.bn2 = nn.BatchNorm3d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=bias), nn.BatchNorm3d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) to (B, outputs, ... / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        return cast(Tensor, (self.bn2(self.conv2(x)) + identity).relu())


class VoxelPyramidEncoder(nn.Module):
    """A projection to the first stage's width, then stages of basic blocks; gives every stage's map."""

    def __init__(self, inputs: int, config: EncoderConfig, bias: bool = False) -> None:
        super().__init__()
        width = config.channels[0]
        self.input_proj = _conv_norm_relu(inputs, width, 1)
        self.layers = nn.ModuleList()
        for blocks, channels, stride in zip(config.blocks, config.channels, config.strides, strict=True):
            first = BasicVoxelBlock(width, channels, stride, bias)
            rest = (BasicVoxelBlock(channels, channels, bias=bias) for _ in range(blocks - 1))
            self.layers.append(nn.Sequential(first, *rest))
            width = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, inputs, ...) to one map a stage, finest first."""
        x = self.input_proj(x)
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class VoxelFeaturePyramid(nn.Module):
    """Brings all stages to one width and adds the coarser to the finer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            nn.Sequential(ConvNorm(channels, config.outputs, 1, dims=3)) for channels in config.channels
        )
        self.fpn_convs = nn.ModuleList(
            nn.Sequential(ConvNorm(config.outputs, config.outputs, 3, dims=3)) for _ in config.channels
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The stages' maps, finest first, to as many maps of ``outputs`` channels."""
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + upsample(merged[i], merged[i - 1].shape[2:], align_corners=False)
        return [smooth(x) for smooth, x in zip(self.fpn_convs, merged, strict=True)]


class Classifier(nn.Sequential):
    """Entries ``0``, ``1`` and ``3``: a convolution of one cell with norm and ReLU, and one to the classes' logits.

    A type of its own, as ``MixingHead`` calls its parts one by one.
    """


class MixingHead(nn.Module):
    """Logits from all levels at the finest size, mixed voxel by voxel with weights read off the finest level."""

    def __init__(self, inputs: int, levels: int, classes: int, doubled: bool = False) -> None:
        """``doubled``: a transposed convolution of the finest level makes one more level of twice its size."""
        super().__init__()
        width, narrow = inputs // 2, inputs // 4
        self.occ_convs = nn.ModuleList(_conv_norm_relu(inputs, width, 3) for _ in range(levels))
        self.deblock = (
            nn.Sequential(
                nn.ConvTranspose3d(inputs, width, 2, 2, bias=False),
                nn.BatchNorm3d(width),
                nn.ReLU(inplace=True),
            )
            if doubled
            else None
        )
        mixed = levels + 1 if doubled else levels
        self.voxel_soft_weights = nn.Sequential(
            *_conv_norm_relu(width, narrow, 1), nn.Conv3d(narrow, mixed, 1, bias=False)
        )
        self.occ_pred_conv = Classifier(
            *_conv_norm_relu(width, narrow, 1), nn.Conv3d(narrow, classes, 1, bias=False)
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels (B, inputs, ...), finest first, to logits (B, classes, ...) at the finest (or doubled) size."""
        maps = [conv(x) for conv, x in zip(self.occ_convs, levels, strict=True)]
        if self.deblock is not None and library.usable(levels[0]):
            return self._in_slabs(levels[0], maps)
        if self.deblock is not None:
            maps.insert(0, self.deblock(levels[0]))
        narrow, norm, relu, last = self.occ_pred_conv
        shares = self.voxel_soft_weights(maps[0]).softmax(dim=1)
        # The first layer of the classifier comes before the mixing, not behind it: it mixes channels, what lies between
        # mixes voxels, and half the channels are half the memory of the largest tensors of the network.
        maps = [narrow(x) for x in maps]
        mixed = shares[:, :1] * maps[0]
        for i, x in enumerate(maps[1:], 1):
            mixed += shares[:, i : i + 1] * upsample(x, mixed.shape[2:], align_corners=False)
        return cast(Tensor, last(relu(norm(mixed))))

    def _in_slabs(self, finest: Tensor, maps: list[Tensor]) -> Tensor:
        """As ``forward``, a few rows of voxels at a time: what is of the doubled size never leaves the cache whole."""
        assert self.deblock is not None
        narrow, norm, relu, last = self.occ_pred_conv
        coarse = [narrow(x) for x in maps]
        full = [2 * size for size in finest.shape[2:]]
        slabs = []
        for begin in range(0, finest.shape[2], _ROWS_AT_A_TIME):
            fine = self.deblock(finest[:, :, begin : begin + _ROWS_AT_A_TIME])
            shares = self.voxel_soft_weights(fine).softmax(dim=1)
            mixed = shares[:, :1] * narrow(fine)
            for i, x in enumerate(coarse, 1):
                mixed += shares[:, i : i + 1] * _upsampled_rows(x, 2 * begin, mixed.shape[2:], full[0])
            slabs.append(last(relu(norm(mixed))))
        return torch.cat(slabs, dim=2)


def _upsampled_rows(x: Tensor, begin: int, size: torch.Size, rows: int) -> Tensor:
    """The part from row ``begin`` on, of the given size, of what ``upsample`` makes of x with this many rows in all."""
    last = x.shape[2] - 1
    place = (torch.arange(begin, begin + size[0], device=x.device) + 0.5) * (x.shape[2] / rows) - 0.5
    low = place.clamp_(0, last).long()
    share = (place - low).view(-1, 1, 1)
    between = torch.lerp(x.index_select(2, low), x.index_select(2, (low + 1).clamp_max(last)), share)
    return upsample(between.contiguous(memory_format=torch.channels_last_3d), size, align_corners=False)


def _conv_norm_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Entries ``0`` and ``1``."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )
