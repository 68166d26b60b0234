"""ALOcc: depth becomes occupancy along and between rays, then voxels or a bird's-eye view, then classes as vectors.

ALOcc-3D keeps volumes all the way; ALOcc-2D collapses the height when lifting and unfolds it behind its encoder; the
flow networks add velocities (gdfusion-spec.md 3 to 5, baselines-spec.md 2 and 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdfusion_ros.model.blocks.backbone import ImageEncoder
from gdfusion_ros.model.blocks.birdseye import BirdseyeNeck, BirdseyeStages, plain_shortcut
from gdfusion_ros.model.blocks.cameras import CameraRig, depth_values, grid_points, pixel_grid
from gdfusion_ros.model.blocks.depth import DepthNet, DepthNetConfig, Neighbourhood
from gdfusion_ros.model.blocks.encoders import EncoderConfig, VoxelNeck, VoxelStages
from gdfusion_ros.model.blocks.layers import ImageResidual, VoxelResidual
from gdfusion_ros.model.blocks.lifting import VoxelPlacement, splat
from gdfusion_ros.model.blocks.mask_head import FlowBranch, MaskHead
from gdfusion_ros.model.blocks.neighbours import neighbour_points
from gdfusion_ros.model.blocks.stereo import cost_volume
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.fusion.geometry import GeometryFusion
from gdfusion_ros.model.fusion.temporal import temporal_fusion
from gdfusion_ros.model.fusion.warp import is_flat
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks.carried import fuse_geometry, next_state, previous_quarter
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch


@dataclass(frozen=True)
class ALOccArchitecture:
    """Settings of this family."""

    voxel_channels: int = 32
    depth_net: DepthNetConfig = DepthNetConfig(occupancy_bins=22, inter_pixel=True)
    encoder: EncoderConfig = EncoderConfig(
        blocks=(1, 2, 4, 4), channels=(32, 64, 128, 256), strides=(1, 2, 2, 2), outputs=48
    )
    head_channels: int = 48
    refine: bool = True
    """Whether a residual block works on the lifted features before the fusion."""
    lidar_depth: bool = False
    """Whether a LiDAR's points replace the depth of the pixels they fall on (C+D)."""
    flow: bool = False
    """Whether the network gives velocities."""


class ALOcc(nn.Module):
    """Images to voxel logits, one frame after the other."""

    Architecture = ALOccArchitecture
    depths: Tensor
    PUBLISHED = {
        "head.queries.": "alocc_head.query_feat.",
        "head.norm.": "alocc_head.post_norm.",
        "head.class_vectors.": "alocc_head.mask_embed.",
        "head.image_class_vectors.": "alocc_head.mask_embed2.",
        "flow.cost_net.": "alocc_head.cost_volum_net.",
        "flow.post_conv.": "alocc_head.flow_post_conv.",
        "flow.predictor.": "alocc_head.flow_predicter.",
        "unfold.": "final_conv.",
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a: ALOccArchitecture = config.architecture
        self.grid = config.grid.features
        self.flat = is_flat(self.grid)
        self.layers = config.grid.output.shape[2]
        self.image_size = (config.image.height, config.image.width)
        bins, c = config.depth_bins, a.voxel_channels
        self.register_buffer("depths", depth_values(bins), persistent=False)

        self.image_encoder = ImageEncoder()
        self.depth_net = DepthNet(a.depth_net, 256, bins.count, c, config.temporal)
        self.stereo = a.depth_net.stereo
        self.geometry_fusion = (
            GeometryFusion(depth_values(bins), self.image_size, config.temporal.gains)
            if config.temporal.uses_geometry
            else None
        )
        self.lidar_depth = a.lidar_depth
        self.placement = VoxelPlacement(self.grid)
        self.refine = _refinement(c, self.flat) if a.refine else nn.Identity()
        self.temporal = temporal_fusion(c, self.grid, config.temporal)
        self.encoder = BirdseyeStages(c, a.encoder) if self.flat else VoxelStages(c, a.encoder)
        self.neck = BirdseyeNeck(a.encoder) if self.flat else VoxelNeck(a.encoder)
        self.unfold = (
            nn.Conv2d(a.encoder.outputs, a.head_channels * self.layers, 3, padding=1)
            if self.flat
            else nn.Identity()
        )
        self.head = MaskHead(a.head_channels, len(config.labels.labels.labels) + 1, c)
        self.flow = FlowBranch(a.head_channels, config.grid.output) if a.flow else None

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, 1 + classes, Y, X, Z) of a batch of frames and the state for the next.

        ``state`` is None at a sequence's start. Raises ValueError when the network needs LiDAR depth and has none.
        """
        watch = watch or Watch()
        batch = frame.images.shape[:2]
        rig, motion = frame.rig, frame.motion

        with watch.stage("image_encoder"):
            images = self.image_encoder(frame.images)
        watch.show(image_features=images.features)

        cost = None
        if self.stereo:
            with watch.stage("cost_volume"):
                previous = previous_quarter(images.quarter, state)
                cost = cost_volume(images.quarter, previous, self.depths, rig, motion, self.image_size)
            watch.show(cost_volume=cost)
        with watch.stage("depth_net"):
            depth = self.depth_net(images.features, rig, cost)
        watch.show(depth=depth.probabilities, context=depth.context)
        del cost
        with watch.stage("geometry_fusion"):
            measured = self._measured(frame)
            weights, geometry_state = fuse_geometry(self.geometry_fusion, depth, state, rig, motion, measured)
        watch.show(geometry=weights)

        with watch.stage("lifting"):
            context, geometry = depth.context.unflatten(0, batch), weights.unflatten(0, batch)
            voxels = self._lift(context, geometry, depth.neighbourhood, rig)
        watch.show(lifted=voxels)
        with watch.stage("refine"):
            voxels = self.refine(voxels)
        watch.show(voxel_before_fusion=voxels)

        fused, voxel_state = self.temporal(voxels, state, motion.previous_from_current, watch)
        del voxels

        with watch.stage("encoder"):
            encoded = self.neck(self.encoder(fused.voxels))
            if self.flat:
                # The channels of a column hold its layers: (B, C * Z, Y, X) to (B, C, Y, X, Z).
                encoded = self.unfold(encoded).unflatten(1, (-1, self.layers)).movedim(2, -1).contiguous()
        watch.show(encoded=encoded)
        with watch.stage("head"):
            logits = self.head(encoded)
        watch.show(logits=logits)

        velocity, flow_state = self._velocity(encoded, state, motion.previous_from_current, watch)
        new_state = next_state(
            state, {**voxel_state, **flow_state}, geometry_state, images.quarter if self.stereo else None
        )
        output = NetworkOutput(logits, depth.probabilities, fused.offsets, fused.inside, velocity)
        return output, new_state

    def _lift(
        self, context: Tensor, geometry: Tensor, neighbourhood: Neighbourhood | None, rig: CameraRig
    ) -> Tensor:
        """Voxels (B, C, Y, X, Z), or a bird's-eye view (B, C, Y, X) over a grid of one layer."""
        batch, cameras, _, h, w = context.shape
        cells = pixel_grid((h, w), self.image_size, context.device)
        pixels = cells.expand(batch, cameras, len(self.depths), h, w, 2)
        points = grid_points(pixels, self.depths[:, None, None].expand(pixels.shape[:-1]), rig)
        weights = geometry
        if neighbourhood is not None:
            extra, lent = neighbour_points(geometry, neighbourhood, cells, self.depths, rig)
            points, weights = torch.cat([points, extra], dim=2), torch.cat([weights, lent], dim=2)
        voxels = splat(context, points, weights, self.grid, trilinear=True)
        return voxels.squeeze(-1) if self.flat else voxels

    def _measured(self, frame: NetworkInput) -> Tensor | None:
        """(B * N, D, h, w) one-hot LiDAR depth, zero where no point fell; None in networks without."""
        if not self.lidar_depth:
            return None
        if frame.lidar_depth is None:
            raise ValueError("this network takes LiDAR depth, and the frame has no LiDAR points")
        lower, step = float(self.depths[0]), float(self.depths[1] - self.depths[0])
        metres = frame.lidar_depth.flatten(0, 1)
        bins = ((metres - (lower - step)) / step).floor() - 1
        numbers = torch.arange(len(self.depths), device=metres.device).view(1, -1, 1, 1)
        # A cell without a point has a bin below the first, and so no one.
        return (bins[:, None] == numbers).to(metres.dtype)

    def _velocity(
        self, encoded: Tensor, state: TemporalState | None, previous_from_current: Tensor, watch: Watch
    ) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        if self.flow is None:
            return None, {}
        with watch.stage("flow"):
            previous = None if state is None else state.tensors["flow_bev"]
            flow = self.flow(encoded, previous, previous_from_current, watch)
        watch.show(flow=flow.velocity.transpose(1, 2))
        return flow.velocity, {"flow_bev": flow.birdseye}


def _refinement(channels: int, flat: bool) -> nn.Module:
    if flat:
        return ImageResidual(channels, channels, downsample=plain_shortcut(channels, channels))
    return VoxelResidual(channels, channels, project=True)
