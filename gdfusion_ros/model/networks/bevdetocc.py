"""BEVDetOcc with GDFusion: stereo depth, lifting to voxels, temporal fusion, a 3D encoder (gdfusion-spec.md 3 to 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from gdfusion_ros.model.blocks.backbone import ImageEncoder
from gdfusion_ros.model.blocks.cameras import depth_values
from gdfusion_ros.model.blocks.depth import DepthNet, DepthNetConfig
from gdfusion_ros.model.blocks.encoders import EncoderConfig, VoxelNeck, VoxelStages
from gdfusion_ros.model.blocks.heads import VoxelHead
from gdfusion_ros.model.blocks.layers import VoxelResidual
from gdfusion_ros.model.blocks.lifting import VoxelPlacement, lift
from gdfusion_ros.model.blocks.stereo import cost_volume
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.fusion.geometry import GeometryFusion
from gdfusion_ros.model.fusion.temporal import FusedVoxels, temporal_fusion
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks.carried import fuse_geometry, next_state, previous_quarter
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch


@dataclass(frozen=True)
class BEVDetOccArchitecture:
    """Settings of this family."""

    voxel_channels: int = 32
    depth_net: DepthNetConfig = DepthNetConfig()
    encoder: EncoderConfig = EncoderConfig(
        blocks=(1, 2, 4), channels=(32, 64, 128), strides=(1, 2, 2), outputs=32
    )


class BEVDetOcc(nn.Module):
    """Images to voxel logits, one frame after the other."""

    Architecture = BEVDetOccArchitecture
    depths: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a: BEVDetOccArchitecture = config.architecture
        self.grid = config.grid.features
        self.image_size = (config.image.height, config.image.width)
        self.register_buffer("depths", depth_values(config.depth_bins), persistent=False)

        self.image_encoder = ImageEncoder()
        self.depth_net = DepthNet(
            a.depth_net, 256, config.depth_bins.count, a.voxel_channels, config.temporal
        )
        self.geometry_fusion = (
            GeometryFusion(depth_values(config.depth_bins), self.image_size, config.temporal.gains)
            if config.temporal.uses_geometry
            else None
        )
        self.placement = VoxelPlacement(self.grid)
        self.refine = VoxelResidual(a.voxel_channels, a.voxel_channels, project=True)
        self.temporal = temporal_fusion(a.voxel_channels, self.grid, config.temporal)
        self.encoder = VoxelStages(a.voxel_channels, a.encoder)
        self.neck = VoxelNeck(a.encoder)
        self.head = VoxelHead(a.encoder.outputs, len(config.labels.labels.labels) + 1)

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, 1 + classes, Y, X, Z) of a batch of frames and the state for the next.

        ``state`` is None at a sequence's start.
        """
        watch = watch or Watch()
        trunk = self.fused_voxels(frame, state, watch)
        with watch.stage("encoder"):
            encoded = self.neck(self.encoder(trunk.fused.voxels))
        watch.show(encoded=encoded)
        with watch.stage("head"):
            logits = self.head(encoded)
        watch.show(logits=logits)
        output = NetworkOutput(logits, trunk.depth, trunk.fused.offsets, trunk.fused.inside)
        return output, trunk.state

    def fused_voxels(self, frame: NetworkInput, state: TemporalState | None, watch: Watch) -> FusedFrame:
        """Everything before the 3D encoder; other networks put their own behind it."""
        batch = frame.images.shape[:2]
        rig, motion = frame.rig, frame.motion

        with watch.stage("image_encoder"):
            images = self.image_encoder(frame.images)
        watch.show(image_features=images.features)

        with watch.stage("cost_volume"):
            previous = previous_quarter(images.quarter, state)
            cost = cost_volume(images.quarter, previous, self.depths, rig, motion, self.image_size)
        with watch.stage("depth_net"):
            depth = self.depth_net(images.features, rig, cost)
        watch.show(cost_volume=cost, depth=depth.probabilities, context=depth.context)
        del cost
        with watch.stage("geometry_fusion"):
            geometry, geometry_state = fuse_geometry(self.geometry_fusion, depth, state, rig, motion)
        watch.show(geometry=geometry)

        with watch.stage("lifting"):
            context = depth.context.unflatten(0, batch)
            weights = geometry.unflatten(0, batch)
            voxels = lift(context, weights, self.depths, rig, self.grid, self.image_size, trilinear=False)
        watch.show(lifted=voxels)
        with watch.stage("refine"):
            voxels = self.refine(voxels)
        watch.show(voxel_before_fusion=voxels)

        fused, voxel_state = self.temporal(voxels, state, motion.previous_from_current, watch)
        new_state = next_state(state, voxel_state, geometry_state, images.quarter)
        return FusedFrame(fused, depth.probabilities, images.features, new_state)


class FusedFrame(NamedTuple):
    """A frame after the temporal fusion."""

    fused: FusedVoxels
    depth: Tensor
    """(B * N, D, h, w) depth distribution of the single frame."""
    features: Tensor
    """(B * N, 256, h, w) image features."""
    state: TemporalState
    """For the next frame."""
