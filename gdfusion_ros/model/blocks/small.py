"""Blocks of the small network: a narrow image encoder, a depth net that knows the ground, and a flat voxel encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gdfusion_ros.model.blocks.cameras import CameraRig, grid_points
from gdfusion_ros.model.blocks.depth import DepthOutput
from gdfusion_ros.model.blocks.layers import ConvNorm, ImageResidual

STRIDE = 4
"""Image pixels of one cell of the image features."""
RAY_VALUES = 6
"""Channels of what ``ray_values`` gives."""


class SmallImageEncoder(nn.Module):
    """Four halvings of the image, and back to one quarter of it: what is small or far is narrow in the image."""

    def __init__(self, channels: tuple[int, int, int, int], outputs: int) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = channels
        self.stem = ConvNorm(3, half, 3, dims=2, stride=2)
        self.rays = nn.Conv2d(RAY_VALUES, quarter, 1)
        self.quarter = nn.Sequential(
            ConvNorm(half, quarter, 3, dims=2, stride=2), ImageResidual(quarter, quarter)
        )
        self.eighth = nn.Sequential(
            ConvNorm(quarter, eighth, 3, dims=2, stride=2), ImageResidual(eighth, eighth)
        )
        self.sixteenth = nn.Sequential(
            ConvNorm(eighth, sixteenth, 3, dims=2, stride=2),
            ImageResidual(sixteenth, sixteenth),
            ImageResidual(sixteenth, sixteenth),
        )
        self.coarse = ConvNorm(sixteenth, eighth, 1, dims=2, relu=False)
        self.smooth_eighth = ConvNorm(eighth, eighth, 3, dims=2)
        self.middle = ConvNorm(eighth, outputs, 1, dims=2, relu=False)
        self.lateral = ConvNorm(quarter, outputs, 1, dims=2, relu=False)
        self.smooth = ConvNorm(outputs, outputs, 3, dims=2)

    def forward(self, images: Tensor, rays: Tensor) -> Tensor:
        """(B * N, 3, H, W) and what ``ray_values`` gives of the cells to (B * N, outputs, H / 4, W / 4)."""
        # How far something is, is seen by where it touches the ground: layers that see far need to know where that is.
        quarter = self.quarter(self.stem(images)) + self.rays(rays)
        eighth = self.eighth(quarter)
        coarse = _doubled(self.coarse(self.sixteenth(eighth)))
        eighth = self.smooth_eighth((eighth + coarse).relu())
        smoothed: Tensor = self.smooth((self.lateral(quarter) + _doubled(self.middle(eighth))).relu())
        return smoothed


class SmallDepthNet(nn.Module):
    """Depth, geometry logits and context of each cell, from image features and the cell's ray."""

    def __init__(self, inputs: int, bins: int, context_channels: int, geometry: bool) -> None:
        super().__init__()
        self.mix = ConvNorm(inputs + RAY_VALUES, inputs, 3, dims=2)
        self.depth_head = nn.Conv2d(inputs, bins, 1)
        self.geometry_head = nn.Conv2d(inputs, bins, 1) if geometry else None
        self.context_head = nn.Conv2d(inputs, context_channels, 1)

    def forward(self, features: Tensor, rays: Tensor) -> DepthOutput:
        """From features (B * N, C, h, w) and what ``ray_values`` gives."""
        x = self.mix(joined(features, rays))
        # Channels last, as images lie in memory on a CPU, the softmax is over neighbours.
        probabilities = self.depth_head(x).movedim(1, -1).softmax(dim=-1).movedim(-1, 1)
        geometry = None if self.geometry_head is None else self.geometry_head(x)
        # Lifted features are sums over pixels: they begin at zero, where nothing was seen, and only grow.
        return DepthOutput(probabilities, probabilities, self.context_head(x).relu(), geometry, None)


def cell_pixels(size: tuple[int, int], device: torch.device) -> Tensor:
    """(h, w, 2) network pixels (x, y) of the middles of the image features' cells."""
    y, x = (STRIDE * torch.arange(n, dtype=torch.float32, device=device) + (STRIDE - 1) / 2 for n in size)
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


def ray_values(pixels: Tensor, rig: CameraRig) -> Tensor:
    """(B * N, 6, h, w): where each cell's ray goes and where it would meet a flat ground.

    The direction per metre of depth in the grid's frame (3), the inverse of the ground's depth in 1/m, times ten,
    that depth itself over 50 m, and the focal length in network pixels over 256.
    """
    batch, cameras, h, w = pixels.shape[:4]
    rays = grid_points(pixels, pixels.new_ones(pixels.shape[:-1]), rig) - rig.translation[:, :, None, None]
    height = rig.translation[..., 2, None, None].clamp_min(0.3)
    inverse = (-rays[..., 2] / height).clamp(0.0, 1.0)
    focal = (rig.intrinsics[..., 0, 0] * rig.image_rotation[..., 0, 0] / 256.0)[..., None, None].expand(
        inverse.shape
    )
    depth = (1.0 / inverse.clamp_min(0.02)) / 50.0
    values = torch.stack([*rays.unbind(-1), inverse * 10.0, depth, focal], dim=-1)
    return values.view(batch * cameras, h, w, RAY_VALUES).movedim(-1, 1)


class Flatten(ConvNorm):
    """A convolution of one cell over two volumes with their heights as channels.

    Its weights are ordered by height, at each first those of the one volume and then those of the other.
    """

    def __init__(self, inputs: int, outputs: int, heights: int) -> None:
        super().__init__(inputs, outputs, 1, dims=2)
        self.heights = heights

    def ordered(self) -> Tensor:
        """The weights in the order of the joined parts, for which nothing needs to be interleaved."""
        outputs, inputs = self.conv.weight.shape[:2]
        by_height = self.conv.weight.view(outputs, self.heights, 2, -1)
        return by_height.transpose(1, 2).reshape(outputs, inputs, 1, 1)

    def forward(self, *parts: Tensor) -> Tensor:
        """Two parts (B, inputs / 2, Y, X) to (B, outputs, Y, X)."""
        assert self.bn is not None
        # Channels last: without it, convolutions of one cell take a slow path on a CPU.
        x: Tensor = self.bn(nn.functional.conv2d(joined(*parts), self.ordered()))
        return x.relu()


class FlatEncoder(nn.Module):
    """A U-Net over the bird's-eye view: the heights of a voxel volume are channels here."""

    def __init__(self, inputs: int, channels: tuple[int, int, int], outputs: int, heights: int) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.flatten = Flatten(inputs, fine, heights)
        self.middle = nn.Sequential(
            ConvNorm(fine, middle, 3, dims=2, stride=2), ImageResidual(middle, middle)
        )
        self.coarse = nn.Sequential(
            ConvNorm(middle, coarse, 3, dims=2, stride=2),
            ImageResidual(coarse, coarse),
            ImageResidual(coarse, coarse),
        )
        self.from_coarse = ConvNorm(coarse, middle, 1, dims=2, relu=False)
        self.merge_middle = ConvNorm(middle, middle, 3, dims=2)
        self.from_middle = ConvNorm(middle, fine, 1, dims=2, relu=False)
        self.merge_fine = ConvNorm(fine, fine, 3, dims=2)
        self.out = nn.Conv2d(fine, outputs, 1)

    def forward(self, *parts: Tensor) -> Tensor:
        """Two parts (B, inputs / 2, Y, X), each with the channels of one height behind those of the other, to
        (B, outputs, Y, X)."""
        fine = self.flatten(*parts)
        middle = self.middle(fine)
        coarse = self.from_coarse(self.coarse(middle))
        middle = self.merge_middle((middle + _resize(coarse, middle)).relu())
        fine = self.merge_fine((fine + _resize(self.from_middle(middle), fine)).relu())
        out: Tensor = self.out(fine)
        return out


class VoxelClassifier(nn.Sequential):
    """Two layers on each voxel by itself; entries ``0`` and ``2``."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, outputs, 1))

    def forward(self, *parts: Tensor) -> Tensor:
        """Parts (B, ..., Y, X * Z) of the inputs to (B, outputs, Y, X * Z)."""
        x = joined(*parts)
        for layer in self:
            x = layer(x)
        return x


def joined(*parts: Tensor) -> Tensor:
    """Images (B, ..., h, w) with their channels behind each other, channels last in memory as they should be."""
    return torch.cat([part.movedim(1, -1) for part in parts], dim=-1).movedim(-1, 1)


def _doubled(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return nn.functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
