"""FB-Occ: single-image depth, lifting and looking back, temporal fusion, a voxel pyramid (gdfusion-spec.md 3 to 5)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gdfusion_ros.model.blocks.backbone import ImageEncoder
from gdfusion_ros.model.blocks.backward_projection import BackwardProjection, BackwardProjectionConfig
from gdfusion_ros.model.blocks.cameras import depth_values
from gdfusion_ros.model.blocks.depth import DepthNet, DepthNetConfig
from gdfusion_ros.model.blocks.encoders import EncoderConfig
from gdfusion_ros.model.blocks.lifting import VoxelPlacement, lift
from gdfusion_ros.model.blocks.pyramid import MixingHead, VoxelFeaturePyramid, VoxelPyramidEncoder
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.fusion.geometry import GeometryFusion
from gdfusion_ros.model.fusion.temporal import temporal_fusion
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks.carried import fuse_geometry, next_state
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch


@dataclass(frozen=True)
class FBOccArchitecture:
    """Settings of this family."""

    voxel_channels: int = 80
    depth_net: DepthNetConfig = DepthNetConfig(channels=512, aspp_channels=512, stereo=False)
    backward_projection: BackwardProjectionConfig = BackwardProjectionConfig()
    encoder: EncoderConfig = EncoderConfig(
        blocks=(2, 2, 2), channels=(64, 128, 256), strides=(1, 2, 2), outputs=256
    )


class FBOcc(nn.Module):
    """Images to voxel logits at twice the features' resolution, one frame after the other."""

    Architecture = FBOccArchitecture
    depths: Tensor
    PUBLISHED = {
        "backward_projection.row_embedding.": "backward_projection.positional_encoding.row_embed.",
        "backward_projection.column_embedding.": "backward_projection.positional_encoding.col_embed.",
        "backward_projection.camera_embeddings": "backward_projection.transformer.cams_embeds",
        "backward_projection.self_attention.heads.": "backward_projection.transformer.encoder.layers.0.attentions.0.",
        "backward_projection.self_attention.": "backward_projection.transformer.encoder.layers.0.attentions.0.",
        "backward_projection.cross_attention.heads.": (
            "backward_projection.transformer.encoder.layers.0.attentions.1.deformable_attention."
        ),
        "backward_projection.cross_attention.": "backward_projection.transformer.encoder.layers.0.attentions.1.",
        "backward_projection.feed_forward.": "backward_projection.transformer.encoder.layers.0.ffns.0.",
        "backward_projection.norms.": "backward_projection.transformer.encoder.layers.0.norms.",
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a: FBOccArchitecture = config.architecture
        self.grid = config.grid.features
        self.image_size = (config.image.height, config.image.width)
        bins = config.depth_bins
        self.register_buffer("depths", depth_values(bins), persistent=False)

        self.image_encoder = ImageEncoder()
        self.depth_net = DepthNet(a.depth_net, 256, bins.count, a.voxel_channels, config.temporal)
        self.geometry_fusion = (
            GeometryFusion(depth_values(bins), self.image_size, config.temporal.gains)
            if config.temporal.uses_geometry
            else None
        )
        self.placement = VoxelPlacement(self.grid)
        self.backward_projection = BackwardProjection(
            a.backward_projection, a.voxel_channels, self.grid, bins
        )
        self.temporal = temporal_fusion(a.voxel_channels, self.grid, config.temporal)
        self.encoder = VoxelPyramidEncoder(a.voxel_channels, a.encoder, bias=True)
        self.neck = VoxelFeaturePyramid(a.encoder)
        self.head = MixingHead(
            a.encoder.outputs, len(a.encoder.channels), len(config.labels.labels.labels) + 1, doubled=True
        )

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, 1 + classes, 2Y, 2X, 2Z) of a batch of frames and the state for the next.

        ``state`` is None at a sequence's start.
        """
        watch = watch or Watch()
        batch = frame.images.shape[:2]
        rig, motion = frame.rig, frame.motion

        with watch.stage("image_encoder"):
            images = self.image_encoder(frame.images)
        watch.show(image_features=images.features)
        with watch.stage("depth_net"):
            depth = self.depth_net(images.features, rig, None)
        watch.show(depth=depth.probabilities, context=depth.context)
        with watch.stage("geometry_fusion"):
            weights, geometry_state = fuse_geometry(self.geometry_fusion, depth, state, rig, motion)
        watch.show(geometry=weights)
        context, geometry = depth.context.unflatten(0, batch), weights.unflatten(0, batch)

        with watch.stage("lifting"):
            voxels = lift(context, geometry, self.depths, rig, self.grid, self.image_size, trilinear=False)
        watch.show(lifted=voxels)
        with watch.stage("backward_projection"):
            refined = self.backward_projection(voxels, context, geometry, rig, self.image_size)
            voxels = voxels + refined[..., None]
        watch.show(bev_refined=refined, voxel_before_fusion=voxels)

        fused, voxel_state = self.temporal(voxels, state, motion.previous_from_current, watch)

        with watch.stage("encoder"):
            encoded = self.neck(self.encoder(fused.voxels))
        watch.show(encoded=encoded[0])
        with watch.stage("head"):
            logits = self.head(encoded)
        watch.show(logits=logits)

        output = NetworkOutput(logits, depth.probabilities, fused.offsets, fused.inside)
        return output, next_state(state, voxel_state, geometry_state, None)
