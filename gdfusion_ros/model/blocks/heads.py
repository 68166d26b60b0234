"""From encoded voxels to the logits of each class (spec 5)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from gdfusion_ros.kernels import head as kernel
from gdfusion_ros.kernels import library
from gdfusion_ros.model.blocks.layers import ConvNorm


class VoxelHead(nn.Module):
    """BEVDetOcc's head: a 3x3x3 convolution, then two linear layers for each voxel."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        # Oddity: this last convolution has a ReLU behind it, so the classifier sees no negative features.
        self.final_conv = ConvNorm(inputs, inputs, 3, dims=3, bias=True, norm=False)
        self.classifier = nn.Sequential(
            nn.Linear(inputs, 2 * inputs), nn.Softplus(), nn.Linear(2 * inputs, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, Y, X, Z) to logits (B, classes, Y, X, Z)."""
        features = self.final_conv(x)
        if library.usable(features):
            first, last = cast(nn.Linear, self.classifier[0]), cast(nn.Linear, self.classifier[2])
            return kernel.classifier(features, first, last)
        logits: Tensor = self.classifier(features.movedim(1, -1))
        return logits.movedim(-1, 1)
