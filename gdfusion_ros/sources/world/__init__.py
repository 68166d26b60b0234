"""A made-up city with exact ground truth: procedural streets, traffic, weather, and a ray-casting camera rig."""

from gdfusion_ros.sources.world.ground_truth import GroundTruth
from gdfusion_ros.sources.world.rig import NUSCENES, Rig, RigCamera, pinhole
from gdfusion_ros.sources.world.source import GRID, TRAINING_SEEDS, WorldSource

__all__ = ["GRID", "NUSCENES", "TRAINING_SEEDS", "GroundTruth", "Rig", "RigCamera", "WorldSource", "pinhole"]
