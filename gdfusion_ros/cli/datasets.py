"""Frames to score, with what is known about them: from the made-up world, nuScenes, a recording, or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from gdfusion_ros import labels as label_sets
from gdfusion_ros.assembly.assembler import AssemblySettings
from gdfusion_ros.assembly.rig import Rig
from gdfusion_ros.evaluation.ground_truth import GroundTruth, read_occ3d, read_openoccupancy, read_surroundocc
from gdfusion_ros.evaluation.rayiou import ray_origins
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.geometry import Matrix
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import LabelSet
from gdfusion_ros.rays import Floats
from gdfusion_ros.sources.nuscenes_tables import KeyFrame

LabelForm = Literal["occ3d", "openocc", "surroundocc", "openoccupancy"]
LABEL_FORMS: tuple[LabelForm, ...] = get_args(LabelForm)

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


@dataclass(frozen=True)
class Labels:
    """Ground truth of nuScenes in one of the forms it is published in."""

    form: LabelForm
    folder: Path
    label_set: LabelSet
    """The label set of the network that is scored."""
    camera_mask: bool = True

    def path(self, names: KeyFrame) -> Path:
        """The file of a key frame."""
        if self.form in ("occ3d", "openocc"):
            return self.folder / names.scene / names.sample_token / "labels.npz"
        if self.form == "surroundocc":
            return self.folder / f"{names.lidar_file}.npy"
        return self.folder / f"scene_{names.scene_token}" / "occupancy" / f"{names.lidar_token}.npy"

    def read(self, names: KeyFrame) -> GroundTruth:
        """The ground truth of a key frame. Raises UserError when the file is missing or of another form."""
        path = self.path(names)
        if self.form in ("occ3d", "openocc"):
            truth = read_occ3d(path, label_sets.OPENOCC if self.form == "openocc" else label_sets.OCC3D)
            return truth if self.camera_mask else replace(truth, seen=None)
        # Networks of the SurroundOcc family leave noise out; the GDFusion ones, with Occ3D's ids, count it as free.
        own = self.label_set == label_sets.SURROUNDOCC
        read = read_surroundocc if self.form == "surroundocc" else read_openoccupancy
        return read(path) if own else read(path, label_sets.OCC3D, noise=label_sets.OCC3D.free)


def nuscenes_items(
    dataroot: Path, version: str | None, scenes: Sequence[str], labels: Labels | None
) -> Iterator[Item]:
    """Key frames of nuScenes through its devkit; rays start at the LiDARs of the scene's key frames."""
    from gdfusion_ros.sources.nuscenes_tables import NuScenesSource

    source = NuScenesSource(dataroot, version, scenes)
    lidars: tuple[str, list[Matrix]] = ("", [])
    for names, frame in source.pairs():
        if names.scene != lidars[0]:
            lidars = (names.scene, source.world_from_lidars(names.scene))
        truth = None if labels is None else labels.read(names)
        in_ego = truth is not None and truth.grid.frame == "ego"
        yield Item(frame, truth, ray_origins(lidars[1], frame.world_from_ego) if in_ego else None)


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
