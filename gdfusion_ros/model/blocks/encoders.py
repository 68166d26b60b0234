"""What the fused voxels go through before the head (spec 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdfusion_ros.model.blocks.layers import ConvNorm, VoxelResidual, upsample


@dataclass(frozen=True)
class EncoderConfig:
    """Stages of an encoder."""

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    outputs: int
    """Channels after the stages' maps have been merged."""

    def __post_init__(self) -> None:
        if not len(self.blocks) == len(self.channels) == len(self.strides) > 0:
            raise ValueError("blocks, channels and strides need one number for each stage")


class VoxelStages(nn.Module):
    """Stages of residual blocks on voxels; gives every stage's map."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for blocks, channels, stride in zip(config.blocks, config.channels, config.strides):
            first = VoxelResidual(inputs, channels, stride, project=True)
            self.layers.append(
                nn.Sequential(first, *(VoxelResidual(channels, channels) for _ in range(blocks - 1)))
            )
            inputs = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, Y, X, Z) to one map a stage, finest first."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class VoxelNeck(nn.Module):
    """All stages' maps at the finest size, mixed by a 1x1x1 convolution."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.conv = ConvNorm(sum(config.channels), config.outputs, 1, dims=3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The stages' maps, finest first, to (B, outputs, Y, X, Z)."""
        finest = maps[0]
        resized = [finest, *(upsample(m, finest.shape[2:], align_corners=True) for m in maps[1:])]
        return self.conv(torch.cat(resized, dim=1))
