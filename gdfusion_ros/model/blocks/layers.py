"""Convolution, batch norm and residual blocks in the layouts of the published checkpoints."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution (2D or 3D by ``dims``), then batch norm and ReLU where wanted; entries ``conv`` and ``bn``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        dims: int,
        stride: int = 1,
        bias: bool = False,
        norm: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = conv(dims)(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
        self.bn = batch_norm(dims)(outputs) if norm else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) to (B, outputs, ...)."""
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return x.relu() if self.relu else x


class VoxelResidual(nn.Module):
    """Residual block on voxels: two 3x3x3 convolutions; a convolution with norm as shortcut where ``project``."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, dims=3, stride=stride)
        self.conv2 = ConvNorm(outputs, outputs, 3, dims=3, relu=False)
        self.downsample = ConvNorm(inputs, outputs, 3, dims=3, stride=stride, relu=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, Y, X, Z) to (B, outputs, Y', X', Z')."""
        identity = x if self.downsample is None else self.downsample(x)
        return (self.conv2(self.conv1(x)) + identity).relu()


class ImageResidual(nn.Module):
    """Residual block on images or bird's-eye views: two 3x3 convolutions and any module as shortcut."""

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h', w')."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        return cast(Tensor, (self.bn2(self.conv2(x)) + identity).relu())


def conv(dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution over this many spatial dimensions."""
    return nn.Conv3d if dims == 3 else nn.Conv2d


def batch_norm(dims: int) -> type[nn.BatchNorm2d] | type[nn.BatchNorm3d]:
    """The batch norm over this many spatial dimensions."""
    return nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d


def folded(convolution: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution or linear layer with the batch norm behind it taken in; for inference."""
    weight: Tensor = convolution.weight
    bias: Tensor | None = convolution.bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    if norm is None:
        return weight, bias
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return weight * scale.view(-1, *([1] * (weight.dim() - 1))), norm.bias + (
        bias - norm.running_mean
    ) * scale


def pointwise(inputs: int, outputs: int, dims: int) -> nn.Sequential:
    """A convolution of one cell with bias, batch norm and ReLU; entries ``0`` and ``1``."""
    return nn.Sequential(conv(dims)(inputs, outputs, 1), batch_norm(dims)(outputs), nn.ReLU())


def gate(bins: int) -> nn.Sequential:
    """Two 1x1 convolutions from 2 * bins channels to the logit of one gate a pixel; entries ``0`` and ``2``."""
    return nn.Sequential(nn.Conv2d(2 * bins, bins, 1), nn.ReLU(), nn.Conv2d(bins, 1, 1))


def upsample(x: Tensor, size: torch.Size | tuple[int, ...], align_corners: bool) -> Tensor:
    """Bilinear or trilinear resize of (B, C, ...) to a spatial size."""
    mode = "trilinear" if x.dim() == 5 else "bilinear"
    return nn.functional.interpolate(x, size=tuple(size), mode=mode, align_corners=align_corners)
