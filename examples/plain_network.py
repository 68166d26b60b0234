"""An occupancy network in thirty lines, without any history: what the cue kit (docs/cue_kit.md) begins with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gdfusion_ros.model.blocks.cameras import depth_values
from gdfusion_ros.model.blocks.lifting import lift
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

FEATURES = 64


@dataclass(frozen=True)
class Architecture:
    """What the model file may set."""

    channels: int = 16


class PlainNetwork(nn.Module):
    """Images to depth and context, lifted into voxels, smoothed, and a class for each voxel."""

    Architecture = Architecture
    depth_stride = 8

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.architecture.channels
        self.grid, self.image_size = config.grid.features, config.image.network_size
        self.register_buffer("depths", depth_values(config.depth_bins), persistent=False)
        self.images = nn.Sequential(halved(3, 24), halved(24, 48), halved(48, FEATURES))
        self.depth_head = nn.Conv2d(FEATURES, len(self.depths), 1)
        self.context_head = nn.Conv2d(FEATURES, channels, 1)
        self.voxels = nn.Sequential(smoothed(channels), smoothed(channels))
        self.head = nn.Conv3d(channels, len(config.labels.labels.labels) + 1, 1)

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, classes, Y, X, Z) of a batch of frames, and a state with nothing in it."""
        cameras = frame.images.shape[:2]
        features = self.images(frame.images.flatten(0, 1))
        depth = self.depth_head(features).softmax(dim=1)
        context = self.context_head(features).unflatten(0, cameras)
        weights = depth.unflatten(0, cameras)
        lifted = lift(context, weights, self.depths, frame.rig, self.grid, self.image_size, trilinear=True)
        logits: Tensor = self.head(self.voxels(lifted))
        return NetworkOutput(logits, depth), TemporalState(0, {})


def halved(inputs: int, outputs: int) -> nn.Sequential:
    """A convolution to half the size."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def smoothed(channels: int) -> nn.Sequential:
    """A convolution over neighbouring voxels."""
    return nn.Sequential(nn.Conv3d(channels, channels, 3, 1, 1), nn.BatchNorm3d(channels), nn.ReLU())
