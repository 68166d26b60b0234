"""The network of plain_network.py with GDFusion's four cues plugged in, as docs/cue_kit.md does it step by step."""

from __future__ import annotations

from plain_network import FEATURES, PlainNetwork
from torch import Tensor, nn

from gdfusion_ros.model.blocks.depth import DepthOutput
from gdfusion_ros.model.blocks.lifting import lift
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.fusion import GeometryFusion, temporal_fusion
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks import FAMILIES
from gdfusion_ros.model.networks.carried import fuse_geometry, next_state
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch


class PluggedNetwork(PlainNetwork):
    """PlainNetwork with a recurrent state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.geometry_head = self.geometry_fusion = None
        if config.temporal.uses_geometry:
            self.geometry_head = nn.Conv2d(FEATURES, len(self.depths), 1)
            self.geometry_fusion = GeometryFusion(self.depths, self.image_size, config.temporal.gains)
        self.temporal = temporal_fusion(config.architecture.channels, self.grid, config.temporal)

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, classes, Y, X, Z) of a batch of frames, and the state for the next."""
        watch = watch or Watch()
        cameras = frame.images.shape[:2]
        features = self.images(frame.images.flatten(0, 1))
        depth = self.depth_head(features).softmax(dim=1)
        geometry_logits = None if self.geometry_head is None else self.geometry_head(features)
        seen = DepthOutput(depth, depth, self.context_head(features), geometry_logits, None)
        geometry, geometry_state = fuse_geometry(self.geometry_fusion, seen, state, frame.rig, frame.motion)
        context, weights = seen.context.unflatten(0, cameras), geometry.unflatten(0, cameras)
        lifted = lift(context, weights, self.depths, frame.rig, self.grid, self.image_size, trilinear=True)
        fused, voxel_state = self.temporal(lifted, state, frame.motion.previous_from_current, watch)
        logits: Tensor = self.head(self.voxels(fused.voxels))
        output = NetworkOutput(logits, depth, fused.offsets, fused.inside)
        return output, next_state(state, voxel_state, geometry_state, None)


FAMILIES["plugged"] = PluggedNetwork
FAMILIES["plain"] = PlainNetwork
