"""The cues on voxels in their order: motion, voxel, scene (spec 4). Any network can put this between its stages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.config import TemporalConfig
from gdfusion_ros.model.fusion.beginning import begin_as_average
from gdfusion_ros.model.fusion.motion import MotionFusion
from gdfusion_ros.model.fusion.scene import SceneFusion, SceneState, blend
from gdfusion_ros.model.fusion.voxel import VoxelFusion, VoxelState
from gdfusion_ros.model.fusion.warp import history_positions
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

_SCENE = ("scene_weight", "scene_bias")


class FusedVoxels(NamedTuple):
    """What the temporal fusion gives."""

    voxels: Tensor
    """(B, C, Y, X, Z) or (B, C, Y, X), as they came in."""
    offsets: Tensor | None
    """(B, dims, ...) the motion cue's offsets in cells; None without that cue."""
    inside: Tensor | None
    """(B, ...) where the history that the offsets point to lies inside the grid."""


class RecurrentFusion(nn.Module):
    """GDFusion's three cues on voxel features, each on or off by the configuration."""

    def __init__(self, channels: int, grid: VoxelGrid, config: TemporalConfig) -> None:
        super().__init__()
        self.grid = grid
        self.centred = config.warp == "grid"
        self.motion = MotionFusion(channels, grid, config.motion_rate) if config.motion else None
        self.voxel = (
            VoxelFusion(channels, grid, config.frame_interval, config.max_time_steps)
            if config.voxel
            else None
        )
        self.scene = SceneFusion(channels, config.scene_rate) if config.scene else None
        self.gain = nn.Parameter(torch.zeros(channels)) if config.gains else None
        if config.gains:
            begin_as_average(self.voxel, self.motion, self.scene)

    def forward(
        self,
        voxels: Tensor,
        state: TemporalState | None,
        previous_from_current: Tensor,
        watch: Watch,
    ) -> tuple[FusedVoxels, dict[str, Tensor]]:
        """Fused features and the tensors to carry on.

        ``voxels`` (B, C, Y, X, Z) or (B, C, Y, X); ``state`` None at a sequence's start;
        ``previous_from_current`` (B, 4, 4) ego motion, the identity at a start.
        """
        x = layers_first(voxels)
        blended = None if self.gain is None else (x, self.gain)
        new_state: dict[str, Tensor] = {}
        offsets = inside = None
        with watch.stage("motion_fusion"):
            if self.motion is None:
                positions = history_positions(previous_from_current, self.grid, self.centred)
            else:
                previous = None if state is None else state.tensors["motion"]
                offsets, positions, inside = self.motion.move(
                    x, previous, previous_from_current, self.centred
                )
                new_state["motion"] = offsets.detach()
        if self.voxel is not None:
            with watch.stage("voxel_fusion"):
                voxel_state = None if state is None else VoxelState(state.tensors["voxel"], state.frames)
                x, voxel_state = self.voxel(x, voxel_state, positions, watch)
                new_state["voxel"] = voxel_state.voxels
        watch.show(voxel_fused=layers_last(x))
        if self.scene is not None:
            with watch.stage("scene_fusion"):
                learned = None if state is None else SceneState(*(state.tensors[name] for name in _SCENE))
                x, learned = self.scene(x, learned, blended)
                new_state |= zip(_SCENE, learned)
        elif blended is not None:
            x = blend(*blended, x)
        fused = layers_last(x)
        watch.show(scene_fused=fused)
        return FusedVoxels(fused, offsets, inside), new_state


class NoFusion(nn.Module):
    """Single frames: nothing comes from the past and nothing is carried on."""

    def forward(
        self, voxels: Tensor, state: TemporalState | None, previous_from_current: Tensor, watch: Watch
    ) -> tuple[FusedVoxels, dict[str, Tensor]]:
        """The voxels as they came in."""
        return FusedVoxels(voxels, None, None), {}


def temporal_fusion(channels: int, grid: VoxelGrid, config: TemporalConfig) -> nn.Module:
    """The fusion on voxel features that a configuration asks for."""
    if config.history == "recurrent":
        return RecurrentFusion(channels, grid, config)
    if config.history == "stacked":
        from gdfusion_ros.model.fusion.stacked import StackedFusion

        return StackedFusion(channels, grid, config)
    return NoFusion()


def layers_first(x: Tensor) -> Tensor:
    """(B, C, Y, X, Z) as (B, C, Z, Y, X), the layout of the history; a bird's-eye view (B, C, Y, X) stays."""
    return _arranged(x.permute(0, 1, 4, 2, 3)) if x.dim() == 5 else x


def layers_last(x: Tensor) -> Tensor:
    """The inverse of ``layers_first``."""
    return _arranged(x.permute(0, 1, 3, 4, 2)) if x.dim() == 5 else x


def _arranged(x: Tensor) -> Tensor:
    """Rows of channels, which the CPU kernels work on, stay as they are in memory; other volumes are put in order."""
    return x if x.stride(1) == 1 else x.contiguous()
