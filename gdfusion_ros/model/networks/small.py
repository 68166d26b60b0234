"""gdfusion-small: all four temporal cues in a network that a CPU runs in real time, with a supervised flow head.

The cues and their state are those of the large networks; everything else is narrow: one quarter of a small image,
voxels of 0.8 m, an encoder that works on the bird's-eye view. Trained on the made-up world (``gdfusion train``).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gdfusion_ros.model.blocks.cameras import depth_values
from gdfusion_ros.model.blocks.lifting import lift_logarithm
from gdfusion_ros.model.blocks.small import (
    STRIDE,
    FlatEncoder,
    SmallDepthNet,
    SmallImageEncoder,
    VoxelClassifier,
    cell_pixels,
    ray_values,
)
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.fusion.geometry import GeometryFusion
from gdfusion_ros.model.fusion.temporal import temporal_fusion
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks.carried import fuse_geometry, next_state
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

_SPREAD = 50.0


@dataclass(frozen=True)
class SmallArchitecture:
    """Settings of this family."""

    image_channels: tuple[int, int, int, int] = (32, 48, 96, 160)
    """At one half, quarter, eighth and sixteenth of the image."""
    feature_channels: int = 64
    voxel_channels: int = 24
    encoder_channels: tuple[int, int, int] = (64, 96, 144)
    """At the grid's cell size, and at two and four times it."""
    head_channels: int = 48


class Small(nn.Module):
    """Images to voxel logits and velocities, one frame after the other."""

    depths: Tensor
    Architecture = SmallArchitecture
    depth_stride = STRIDE

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a: SmallArchitecture = config.architecture
        self.grid = config.grid.features
        self.register_buffer("depths", depth_values(config.depth_bins), persistent=False)
        channels, layers = a.voxel_channels, self.grid.shape[2]
        self.classes = len(config.labels.labels.labels) + 1

        self.image_encoder = SmallImageEncoder(a.image_channels, a.feature_channels)
        self.depth_net = SmallDepthNet(
            a.feature_channels, config.depth_bins.count, channels, config.temporal.uses_geometry
        )
        self.geometry_fusion = (
            GeometryFusion(
                depth_values(config.depth_bins),
                (config.image.height, config.image.width),
                config.temporal.gains,
            )
            if config.temporal.uses_geometry
            else None
        )
        self.temporal = temporal_fusion(channels, self.grid, config.temporal)
        self.encoder = FlatEncoder(2 * channels * layers, a.encoder_channels, channels * layers, layers)
        # Class logits, then the velocity along x and y.
        self.classifier = VoxelClassifier(2 * channels, a.head_channels, self.classes + 2)

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, 1 + classes, Y, X, Z) and velocities of a batch of frames, and the state for the next.

        ``state`` is None at a sequence's start.
        """
        watch = watch or Watch()
        batch = frame.images.shape[:2]
        rig, motion = frame.rig, frame.motion

        height, width = frame.images.shape[-2:]
        size = (height // STRIDE, width // STRIDE)
        pixels = cell_pixels(size, frame.images.device)
        rays = ray_values(pixels.expand(*batch, *size, 2), rig)
        with watch.stage("image_encoder"):
            images = self.image_encoder(frame.images.flatten(0, 1), rays)
        watch.show(image_features=images)
        with watch.stage("depth_net"):
            depth = self.depth_net(images, rays)
        watch.show(depth=depth.probabilities, context=depth.context)
        with watch.stage("geometry_fusion"):
            geometry, geometry_state = fuse_geometry(self.geometry_fusion, depth, state, rig, motion)
        watch.show(geometry=geometry)

        with watch.stage("lifting"):
            context, weights = depth.context.unflatten(0, batch), geometry.unflatten(0, batch)
            # A near voxel sums hundreds of pixels, a far one a share of one: the logarithm brings them together.
            voxels = lift_logarithm(context, weights, pixels, self.depths, rig, self.grid, _SPREAD)
        watch.show(voxel_before_fusion=voxels)

        fused, voxel_state = self.temporal(voxels, state, motion.previous_from_current, watch)

        now, fused_rows = (v.permute(0, 2, 3, 4, 1) for v in (voxels, fused.voxels))  # (B, Y, X, Z, C)
        with watch.stage("encoder"):
            # What moves is where now and before differ, so the encoder sees this frame's voxels by themselves as well.
            encoded = self._encode(fused_rows, now)
        watch.show(encoded=encoded.permute(0, 4, 1, 2, 3))
        with watch.stage("head"):
            # The encoder knows the surroundings, the fused voxels the place itself.
            values = self._classify(encoded, fused_rows)
        logits, velocity = values[..., : self.classes].movedim(-1, 1), values[..., self.classes :]
        watch.show(logits=logits)

        new_state = next_state(state, voxel_state, geometry_state, None)
        output = NetworkOutput(
            logits, depth.probabilities, fused.offsets, fused.inside, velocity, context=depth.context
        )
        return output, new_state

    def _encode(self, *parts: Tensor) -> Tensor:
        """Parts (B, Y, X, Z, C) through the encoder with the heights as channels, to (B, Y, X, Z, C)."""
        b, y, x, z, _ = parts[0].shape
        flat: Tensor = self.encoder(*(rows.reshape(b, y, x, -1).permute(0, 3, 1, 2) for rows in parts))
        return flat.permute(0, 2, 3, 1).reshape(b, y, x, z, -1)

    def _classify(self, *parts: Tensor) -> Tensor:
        """Parts (B, Y, X, Z, C) to (B, Y, X, Z, classes + 2), voxel by voxel."""
        b, y, x, z, _ = parts[0].shape
        # As an image of voxels: a convolution of one pixel is faster on a CPU than the same product of matrices.
        values: Tensor = self.classifier(
            *(rows.reshape(b, y, x * z, -1).permute(0, 3, 1, 2) for rows in parts)
        )
        return values.permute(0, 2, 3, 1).reshape(b, y, x, z, -1)
