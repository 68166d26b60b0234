"""The camera-aware depth net (spec 3.2): what each pixel shows, and how far away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from gdfusion_ros.model.blocks.cameras import CameraRig
from gdfusion_ros.model.blocks.deformable import DeformableConv2d
from gdfusion_ros.model.blocks.layers import ImageResidual, upsample
from gdfusion_ros.model.config import TemporalConfig

CAMERA_VALUES = 27
"""Numbers that describe a camera to the depth net."""
CAMERA_GROUPS = 9
"""Of the group norm that stands for the batch norm of these numbers in OpenOccupancy."""
DEFORMABLE_GROUPS = 4
"""Groups of channels of its deformable convolution."""


@dataclass(frozen=True)
class DepthNetConfig:
    """Sizes of the depth net."""

    channels: int = 256
    aspp_channels: int = 96
    stereo: bool = True
    """Whether a cost volume from the previous image enters the depth branch."""
    occupancy_bins: int = 0
    """Bins behind the surface that depth is spread over (ALOcc's intra-pixel depth-to-occupancy); 0: none."""
    inter_pixel: bool = False
    """Whether the 3x3 neighbourhood gives extra points (ALOcc's inter-pixel depth-to-occupancy)."""
    deformable: bool = False
    """OpenOccupancy's form: a deformable convolution ends the depth branch, and the camera's numbers go through a
    group norm."""


class Neighbourhood(NamedTuple):
    """Learned weights and offsets of a pixel's 3x3 neighbours (spec 3.2, step 8)."""

    weights: Tensor
    """(B * N, 3, 3, 3, h, w): neighbour row, column, candidate bin; in 0..1."""
    offsets: Tensor
    """(B * N, 3, 3, 2, h, w): (x, y) in network pixels, within +-8."""


class DepthOutput(NamedTuple):
    """What the depth net says about every pixel."""

    probabilities: Tensor
    """(B * N, D, h, w) of each depth bin; what the depth loss supervises."""
    surface: Tensor
    """(B * N, D, h, w) lifting weights of a single frame: the probabilities, spread behind the surface in ALOcc."""
    context: Tensor
    """(B * N, C, h, w) features to be lifted."""
    geometry_logits: Tensor | None
    """(B * N, D, h, w) for the geometry fusion, where the network has it."""
    neighbourhood: Neighbourhood | None


class DepthNet(nn.Module):
    """Context features and depth distribution of each pixel, aware of the camera that sees it."""

    def __init__(
        self, config: DepthNetConfig, inputs: int, bins: int, context_channels: int, temporal: TemporalConfig
    ) -> None:
        super().__init__()
        mid = config.channels
        self.reduce_conv = nn.Sequential(nn.Conv2d(inputs, mid, 3, padding=1), nn.BatchNorm2d(mid), nn.ReLU())
        self.bn = (
            nn.GroupNorm(CAMERA_GROUPS, CAMERA_VALUES) if config.deformable else nn.BatchNorm1d(CAMERA_VALUES)
        )
        self.context_mlp = Mlp(CAMERA_VALUES, mid)
        self.context_se = SqueezeExcitation(mid)
        self.context_conv = nn.Conv2d(mid, context_channels, 1)
        self.depth_mlp = Mlp(CAMERA_VALUES, mid)
        self.depth_se = SqueezeExcitation(mid)
        self.cost_volume_net = _cost_volume_net(bins) if config.stereo else None
        width = mid + bins if config.stereo else mid
        shortcut = nn.Conv2d(width, mid, 1) if config.stereo else None
        trunk: list[nn.Module] = [
            ImageResidual(width, mid, downsample=shortcut),
            ImageResidual(mid, mid),
            ImageResidual(mid, mid),
            Aspp(mid, config.aspp_channels),
        ]
        if config.deformable:
            trunk.append(DeformableConv2d(mid, mid, groups=DEFORMABLE_GROUPS, masks=False))
        # In networks without GDFusion the one head is part of the trunk: so the published weights have it.
        head = nn.Conv2d(mid, bins, 1)
        apart = temporal.recurrent or config.deformable
        self.depth_conv = nn.Sequential(*trunk) if apart else nn.Sequential(*trunk, head)
        self.depth_head = head if apart else nn.Identity()
        self.geometry_head = nn.Conv2d(mid, bins, 1) if temporal.uses_geometry else None
        self.occ_conv = (
            nn.Sequential(
                # The published network shares this shortcut with the depth branch's: one module under two keys.
                ImageResidual(width, mid, downsample=shortcut),
                ImageResidual(mid, mid),
                ImageResidual(mid, mid),
                nn.Conv2d(mid, config.occupancy_bins, 1),
            )
            if config.occupancy_bins
            else None
        )
        self.neighbour_weights = nn.Conv2d(mid, 27, 1) if config.inter_pixel else None
        self.neighbour_offsets = nn.Conv2d(mid, 18, 1) if config.inter_pixel else None

    def forward(self, features: Tensor, rig: CameraRig, cost_volume: Tensor | None) -> DepthOutput:
        """Image features (B * N, inputs, h, w) and the cost volume (B * N, D, 4h, 4w) to a DepthOutput."""
        camera = self.bn(camera_values(rig).flatten(0, 1))
        x = self.reduce_conv(features)
        context = self.context_conv(self.context_se(x, self.context_mlp(camera)))
        depth_features = self.depth_se(x, self.depth_mlp(camera))

        x = depth_features
        if self.cost_volume_net is not None:
            assert cost_volume is not None
            x = torch.cat([x, self.cost_volume_net(cost_volume)], dim=1)
        trunk = self.depth_conv(x)
        probabilities = self.depth_head(trunk).softmax(dim=1)
        geometry_logits = None if self.geometry_head is None else self.geometry_head(trunk)
        surface = probabilities
        if self.occ_conv is not None:
            surface = spread_behind(probabilities, self.occ_conv(x).sigmoid())
        return DepthOutput(probabilities, surface, context, geometry_logits, self._neighbours(depth_features))

    def _neighbours(self, depth_features: Tensor) -> Neighbourhood | None:
        if self.neighbour_weights is None or self.neighbour_offsets is None:
            return None
        weights = self.neighbour_weights(depth_features).unflatten(1, (3, 3, 3)).sigmoid()
        offsets = (4.0 * self.neighbour_offsets(depth_features)).unflatten(1, (3, 3, 2)).clamp(-8.0, 8.0)
        return Neighbourhood(weights, offsets)


def spread_behind(probabilities: Tensor, presence: Tensor) -> Tensor:
    """Occupancy along each ray: the surface, and up to K bins behind it (ALOcc intra-pixel, spec 3.2, step 7).

    ``probabilities`` (B, D, h, w) of the surface; ``presence`` (B, K, h, w), how likely there still is something k
    bins behind it. Not normalised: the sum is what is occupied, not where the surface is.
    """
    bins = probabilities.shape[1]
    result = probabilities.clone()
    for k in range(1, min(presence.shape[1], bins - 1) + 1):
        result[:, k:] = result[:, k:] + presence[:, k - 1 : k] * probabilities[:, : bins - k]
    return result


def camera_values(rig: CameraRig) -> Tensor:
    """(B, N, 27): intrinsics, image transform, augmentation and extrinsics, in the order of the published weights."""
    k, image, shift = rig.intrinsics, rig.image_rotation, rig.image_translation
    bda = rig.augmentation[:, None].expand(-1, k.shape[1], -1, -1)
    values = [
        *(k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]),
        *(image[..., 0, 0], image[..., 0, 1], shift[..., 0]),
        *(image[..., 1, 0], image[..., 1, 1], shift[..., 1]),
        *(bda[..., 0, 0], bda[..., 0, 1], bda[..., 1, 0], bda[..., 1, 1], bda[..., 2, 2]),
    ]
    extrinsics = torch.cat([rig.rotation, rig.translation[..., None]], dim=-1).flatten(-2)
    return torch.cat([torch.stack(values, dim=-1), extrinsics], dim=-1)


class Mlp(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, outputs)
        self.fc2 = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        return cast(Tensor, self.fc2(self.fc1(x).relu()))


class SqueezeExcitation(nn.Module):
    """Scales every channel of an image by what the camera's numbers say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, camera: Tensor) -> Tensor:
        """Features (B, C, h, w) and camera code (B, C) to (B, C, h, w)."""
        scale = self.conv_expand(self.conv_reduce(camera[..., None, None]).relu())
        return cast(Tensor, x * scale.sigmoid())


class AsppBranch(nn.Module):
    """A dilated convolution with norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = 0 if kernel == 1 else dilation
        self.atrous_conv = nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        return cast(Tensor, self.bn(self.atrous_conv(x)).relu())


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: five receptive fields side by side."""

    def __init__(self, channels: int, mid: int) -> None:
        super().__init__()
        self.aspp1 = AsppBranch(channels, mid, 1, 1)
        self.aspp2 = AsppBranch(channels, mid, 3, 6)
        self.aspp3 = AsppBranch(channels, mid, 3, 12)
        self.aspp4 = AsppBranch(channels, mid, 3, 18)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU()
        )
        self.conv1 = nn.Conv2d(5 * mid, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w), unchanged in shape."""
        pooled = upsample(self.global_avg_pool(x), x.shape[-2:], align_corners=True)
        branches = [self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), pooled]
        return cast(Tensor, self.dropout(self.bn1(self.conv1(torch.cat(branches, dim=1))).relu()))


def _cost_volume_net(bins: int) -> nn.Sequential:
    """Brings the cost volume from 1/4 to 1/16 of the image; no activation, as published."""
    return nn.Sequential(
        nn.Conv2d(bins, bins, 3, 2, 1),
        nn.BatchNorm2d(bins),
        nn.Conv2d(bins, bins, 3, 2, 1),
        nn.BatchNorm2d(bins),
    )
