"""OpenOccupancy's camera baseline, alone and with GDFusion (surroundocc-spec.md 11).

Voxels lie in the LiDAR frame and have the layout (B, C, X, Y, Z) from the encoder on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.backbone import ResNet50
from gdfusion_ros.model.blocks.cameras import depth_values, pixel_grid
from gdfusion_ros.model.blocks.depth import DepthNet, DepthNetConfig
from gdfusion_ros.model.blocks.encoders import EncoderConfig
from gdfusion_ros.model.blocks.layers import upsample
from gdfusion_ros.model.blocks.lifting import VoxelPlacement, lift
from gdfusion_ros.model.blocks.pyramid import MixingHead, VoxelFeaturePyramid, VoxelPyramidEncoder
from gdfusion_ros.model.config import DepthBins, ModelConfig
from gdfusion_ros.model.fusion.geometry import GeometryFusion
from gdfusion_ros.model.fusion.temporal import temporal_fusion
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks.carried import fuse_geometry, next_state
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

_STAGE_CHANNELS = (256, 512, 1024, 2048)
_NECK_WIDTH = 128
_STRIDE = 16
"""Pixels of the image for one of the feature map that is lifted."""


@dataclass(frozen=True)
class OpenOccupancyArchitecture:
    """Settings of this family."""

    voxel_channels: int = 80
    depth_net: DepthNetConfig = DepthNetConfig(channels=512, aspp_channels=512, stereo=False, deformable=True)
    encoder: EncoderConfig = EncoderConfig(
        blocks=(2, 2, 2, 2), channels=(64, 128, 256, 512), strides=(1, 2, 2, 2), outputs=256
    )


class SecondFpn(nn.Module):
    """All four maps of the backbone at 1/16 of the image, side by side."""

    def __init__(self) -> None:
        super().__init__()
        resizers = (
            nn.Conv2d(_STAGE_CHANNELS[0], _NECK_WIDTH, 4, 4, bias=False),
            nn.Conv2d(_STAGE_CHANNELS[1], _NECK_WIDTH, 2, 2, bias=False),
            nn.ConvTranspose2d(_STAGE_CHANNELS[2], _NECK_WIDTH, 1, 1, bias=False),
            nn.ConvTranspose2d(_STAGE_CHANNELS[3], _NECK_WIDTH, 2, 2, bias=False),
        )
        self.deblocks = nn.ModuleList(
            nn.Sequential(resizer, nn.BatchNorm2d(_NECK_WIDTH, eps=1e-3), nn.ReLU(inplace=True))
            for resizer in resizers
        )

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Maps at 1/4, 1/8, 1/16 and 1/32 of the image to (B, 512, H / 16, W / 16)."""
        return torch.cat([deblock(x) for deblock, x in zip(self.deblocks, maps, strict=True)], dim=1)


class FrustumPlacement(VoxelPlacement):
    """The grid's constants and, as in the published checkpoint, the pixel and depth of every lifted point."""

    frustum: Tensor

    def __init__(self, grid: VoxelGrid, bins: DepthBins, image_size: tuple[int, int]) -> None:
        super().__init__(grid)
        size = (image_size[0] // _STRIDE, image_size[1] // _STRIDE)
        depths = depth_values(bins)[:, None, None, None].expand(-1, *size, 1)
        pixels = pixel_grid(size, image_size, depths.device).expand(bins.count, *size, 2)
        self.register_buffer("frustum", torch.cat([pixels, depths], dim=-1))


class OpenOccupancy(nn.Module):
    """Images to voxel logits, each frame for itself or, with a recurrent history, one after the other."""

    Architecture = OpenOccupancyArchitecture
    PUBLISHED = {
        "backbone.": "img_backbone.",
        "image_neck.": "img_neck.",
        "placement.": "img_view_transformer.",
        "depth_net.": "img_view_transformer.depth_net.",
        "depth_net.depth_head.": "img_view_transformer.depth_net.depth_conv.5.",
        "depth_net.geometry_head.": "img_view_transformer.depth_net.depth_head2.",
        "encoder.": "occ_encoder_backbone.",
        "neck.": "occ_encoder_neck.",
        "head.": "pts_bbox_head.",
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a: OpenOccupancyArchitecture = config.architecture
        self.grid = config.grid.features
        self.output_shape = config.grid.output.shape
        self.image_size = (config.image.height, config.image.width)
        depths = depth_values(config.depth_bins)
        self.register_buffer("depths", depths, persistent=False)

        self.backbone = ResNet50()
        self.image_neck = SecondFpn()
        inputs = _NECK_WIDTH * len(_STAGE_CHANNELS)
        self.depth_net = DepthNet(
            a.depth_net, inputs, config.depth_bins.count, a.voxel_channels, config.temporal
        )
        self.geometry_fusion = (
            GeometryFusion(depths, self.image_size, config.temporal.gains)
            if config.temporal.uses_geometry
            else None
        )
        self.placement = FrustumPlacement(self.grid, config.depth_bins, self.image_size)
        self.temporal = temporal_fusion(a.voxel_channels, self.grid, config.temporal)
        self.encoder = VoxelPyramidEncoder(a.voxel_channels, a.encoder)
        self.neck = VoxelFeaturePyramid(a.encoder)
        classes = len(config.labels.labels.labels)
        self.head = MixingHead(a.encoder.outputs, len(a.encoder.channels), classes)

    depths: Tensor

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, classes, Y, X, Z) of a batch of frames over the output grid, and the state for the next.

        ``state`` is None at a sequence's start.
        """
        watch = watch or Watch()
        batch = frame.images.shape[:2]
        rig, motion = frame.rig, frame.motion

        with watch.stage("image_encoder"):
            features = self.image_neck(self.backbone.maps(frame.images.flatten(0, 1)))
        watch.show(input=frame.images, image_features=features)
        with watch.stage("depth_net"):
            depth = self.depth_net(features, rig, None)
        watch.show(depth=depth.probabilities, context=depth.context)
        with watch.stage("geometry_fusion"):
            geometry, geometry_state = fuse_geometry(self.geometry_fusion, depth, state, rig, motion)

        with watch.stage("lifting"):
            context = depth.context.unflatten(0, batch)
            weights = geometry.unflatten(0, batch)
            voxels = lift(context, weights, self.depths, rig, self.grid, self.image_size, trilinear=False)
        fused, voxel_state = self.temporal(voxels, state, motion.previous_from_current, watch)
        watch.show(lifted=voxels.transpose(2, 3))
        del voxels

        with watch.stage("encoder"):
            stages = self.encoder(fused.voxels.transpose(2, 3).contiguous())
            levels = self.neck(stages)
        watch.show(**{f"encoder_{i}": x for i, x in enumerate(stages)})
        watch.show(**{f"fpn3d_{i}": x for i, x in enumerate(levels)})
        with watch.stage("head"):
            logits = self.head(levels)
            watch.show(logits=logits)
            logits = upsample(logits, self.output_shape, align_corners=False)

        new_state = next_state(state, voxel_state, geometry_state, None)
        return NetworkOutput(
            logits.transpose(2, 3), depth.probabilities, fused.offsets, fused.inside
        ), new_state
