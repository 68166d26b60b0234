"""Frames to score, with what is known about them: from the made-up world, nuScenes, a recording, or a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gdfusion_ros import labels as label_sets
from gdfusion_ros.assembly.assembler import AssemblySettings
from gdfusion_ros.assembly.rig import Rig
from gdfusion_ros.evaluation.ground_truth import GroundTruth
from gdfusion_ros.evaluation.rayiou import ray_origins
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.geometry import Matrix
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.rays import Floats

ROOF_LIDAR = (0.94, 0.0, 1.84)
"""Where nuScenes' cars carry their LiDAR, in the ego frame: rays start there where a source has no LiDAR."""


@dataclass(frozen=True)
class Item:
    """A frame and what it is scored against."""

    frame: CameraFrame
    truth: GroundTruth | None = None
    origins: Floats | None = None
    """(N, 3) where RayIoU's rays start, in the grid's frame."""


def world_items(
    seeds: range,
    frames: int,
    grid: VoxelGrid,
    image_size: tuple[int, int],
    weather: str | None = None,
    pose_noise: float = 0.0,
) -> Iterator[Item]:
    """Sequences of the made-up world over ``grid``, one a seed, images at ``image_size`` (H, W)."""
    from gdfusion_ros.sources.world import WorldSource

    for seed in seeds:
        source = WorldSource(
            seed=seed, frames=frames, grid=grid, image_size=image_size, weather=weather, pose_noise=pose_noise
        )
        poses = [source.true_pose(source.time(k)) for k in range(frames)]
        for k, (frame, truth) in enumerate(source.pairs()):
            known = GroundTruth(
                labels=truth.labels,
                grid=truth.grid,
                label_set=label_sets.OCC3D,
                seen=truth.visible,
                hidden=truth.hidden_seen_before,
                velocity=truth.velocity,
            )
            yield Item(frame, known, ray_origins([_roof(pose) for pose in poses], poses[k]))


def folder_items(folder: Path) -> Iterator[Item]:
    """Key frames of a folder with a ``frames.json``; LiDAR where there is some, no labels."""
    from gdfusion_ros.sources.nuscenes import FolderSource

    for frame in FolderSource(folder):
        yield Item(frame)


def bag_items(bag: Path, rig: Rig, settings: AssemblySettings, lidar_topic: str | None) -> Iterator[Item]:
    """Frames of a recording with the sweeps of its point cloud topic (the first one unless named), if any."""
    from gdfusion_ros.sources.bag import BagSource
    from gdfusion_ros.sources.bag_lidar import lidar_topics, with_lidar

    topic = lidar_topic or next(iter(lidar_topics(bag)), None)
    source = BagSource(bag, rig, settings)
    for frame in source if topic is None else with_lidar(source, bag, rig, topic):
        yield Item(frame)


def _roof(world_from_ego: Matrix) -> Matrix:
    ego_from_lidar = np.eye(4)
    ego_from_lidar[:3, 3] = ROOF_LIDAR
    return world_from_ego @ ego_from_lidar
