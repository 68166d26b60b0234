"""GDFusion's temporal cues, each for itself and the three on voxels together; docs/cue_kit.md plugs them in."""

from __future__ import annotations

from gdfusion_ros.model.fusion.geometry import GeometryFusion
from gdfusion_ros.model.fusion.motion import MotionFusion
from gdfusion_ros.model.fusion.scene import SceneFusion
from gdfusion_ros.model.fusion.temporal import FusedVoxels, RecurrentFusion, temporal_fusion
from gdfusion_ros.model.fusion.voxel import VoxelFusion

__all__ = [
    "FusedVoxels",
    "GeometryFusion",
    "MotionFusion",
    "RecurrentFusion",
    "SceneFusion",
    "VoxelFusion",
    "temporal_fusion",
]
