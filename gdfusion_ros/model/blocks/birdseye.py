"""Encoder of bird's-eye views whose channels become heights at the end (ALOcc-2D, spec 5)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gdfusion_ros.model.blocks.encoders import EncoderConfig
from gdfusion_ros.model.blocks.layers import ImageResidual, upsample


class BirdseyeStages(nn.Module):
    """Stages of residual blocks on a bird's-eye view; gives every stage's map."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for blocks, channels, stride in zip(config.blocks, config.channels, config.strides, strict=True):
            first = ImageResidual(inputs, channels, stride, plain_shortcut(inputs, channels, stride))
            self.layers.append(
                nn.Sequential(first, *(ImageResidual(channels, channels) for _ in range(blocks - 1)))
            )
            inputs = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, Y, X) to one map a stage, finest first."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class BirdseyeNeck(nn.Module):
    """All stages' maps at the finest size, mixed by two convolutions."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.outputs
        self.conv = nn.Sequential(
            nn.Conv2d(sum(config.channels), width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The stages' maps, finest first, to (B, outputs, Y, X)."""
        finest = maps[0]
        resized = [finest, *(upsample(m, finest.shape[2:], align_corners=True) for m in maps[1:])]
        return cast(Tensor, self.conv(torch.cat(resized, dim=1)))


def plain_shortcut(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """The shortcut of these blocks: a 3x3 convolution with bias and without norm."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1)
