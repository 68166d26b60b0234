"""Training sequences from nuScenes with Occ3D's annotations, in the form that the made-up world's have."""

from __future__ import annotations

from collections.abc import Sequence as Names
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gdfusion_ros.errors import UserError
from gdfusion_ros.evaluation.ground_truth import GroundTruth, read_occ3d
from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.geometry import inverse
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.images import prepare_view
from gdfusion_ros.sources.nuscenes_tables import NuScenesSource
from gdfusion_ros.training.data import DEPTH_STEP, Sequence

UNKNOWN_DEPTH = 255
UNKNOWN_LABEL = 255
_NEAREST = 0.5
"""Metres: LiDAR points nearer to a camera than this are its own vehicle."""


class NuScenesSequences:
    """Sequence ``n`` is the beginning of scene ``n``: its first key frames, as many as a recipe asks for.

    Depth comes from the LiDAR, labels and camera mask from Occ3D's ``labels.npz``; there are no velocities.
    """

    def __init__(
        self,
        dataroot: Path,
        annotations: Path,
        config: ModelConfig,
        frames: int,
        version: str | None = None,
        scenes: Names[str] = (),
    ) -> None:
        self._source = NuScenesSource(dataroot, version, scenes)
        self._annotations = annotations
        self._config = config
        self._frames = frames

    def __len__(self) -> int:
        return len(self._source.scenes)

    def __getitem__(self, number: int) -> Sequence:
        """Raises UserError when the scene is shorter than a sequence, or lacks annotations or a LiDAR sweep."""
        scene = self._source.scenes[number]
        pairs = []
        for names, frame in islice(self._source.pairs(scene), self._frames):
            truth = read_occ3d(self._annotations / names.scene / names.sample_token / "labels.npz")
            if truth.grid != self._config.grid.output:
                raise UserError(
                    f"{self._config.name} predicts {self._config.grid.output.shape} cells, Occ3D's labels have "
                    f"{truth.grid.shape}: train it on the made-up world, or give the model Occ3D's grid"
                )
            pairs.append((frame, truth))
        if len(pairs) < self._frames:
            raise UserError(
                f"{scene} has {len(pairs)} key frames, the recipe wants {self._frames} in a row: lower `frames`"
            )
        return self._stack(pairs)

    def _stack(self, pairs: list[tuple[CameraFrame, GroundTruth]]) -> Sequence:
        views = [
            [prepare_view(frame.view(name), self._config.image) for name in self._config.cameras]
            for frame, _ in pairs
        ]
        first = views[0]
        shape = (len(pairs), *pairs[0][1].grid.shape)
        pixels = (len(pairs), len(first), *first[0].image.shape[:2])
        seen = [np.ones(truth.labels.shape, bool) if truth.seen is None else truth.seen for _, truth in pairs]
        return Sequence(
            images=np.stack([[view.image for view in row] for row in views]),
            depth=np.stack(
                [
                    [lidar_depth(frame, view) for view in row]
                    for (frame, _), row in zip(pairs, views, strict=True)
                ]
            ),
            labels=np.stack([truth.labels for _, truth in pairs]),
            visible=np.stack(seen),
            # Occ3D knows none of these: views of one number take no memory.
            pixel_labels=np.broadcast_to(np.full((), UNKNOWN_LABEL, np.uint8), pixels),
            hidden=np.broadcast_to(np.zeros((), bool), shape),
            velocity=np.broadcast_to(np.zeros((), np.float32), (*shape, 2)),
            intrinsics=np.stack([view.intrinsics for view in first]),
            image_transform=np.array(
                [
                    (view.image_transform.scale, view.image_transform.left, view.image_transform.top)
                    for view in first
                ]
            ),
            ego_from_camera=np.stack([view.ego_from_camera for view in first]),
            world_from_ego=np.stack([frame.world_from_ego for frame, _ in pairs]),
            world_from_ego_at_exposure=np.stack([[view.world_from_ego for view in row] for row in views]),
        )


def lidar_depth(frame: CameraFrame, view: CameraView) -> npt.NDArray[np.uint8]:
    """(H, W) depth of the nearest LiDAR point in each pixel of a prepared view, as ``Sequence.depth`` stores it.

    Raises UserError when the frame has no LiDAR sweep.
    """
    if frame.lidar_points is None or frame.ego_from_lidar is None or frame.world_from_ego_at_lidar is None:
        raise UserError(
            f"{frame.scene} at {frame.stamp_ns} ns has no LiDAR sweep, which the depth loss needs"
        )
    height, width = view.image.shape[:2]
    world_from_lidar = frame.world_from_ego_at_lidar @ frame.ego_from_lidar
    camera_from_lidar = inverse(view.world_from_ego @ view.ego_from_camera) @ world_from_lidar
    points = frame.lidar_points @ camera_from_lidar[:3, :3].T + camera_from_lidar[:3, 3]
    points = points[points[:, 2] > _NEAREST]
    pixels = points @ view.intrinsics.T
    pixels = pixels[:, :2] / pixels[:, 2:] * view.image_transform.scale
    u = np.round(pixels[:, 0] - view.image_transform.left).astype(np.int64)
    v = np.round(pixels[:, 1] - view.image_transform.top).astype(np.int64)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    steps = np.minimum(points[inside, 2] / DEPTH_STEP, UNKNOWN_DEPTH).astype(np.uint8)
    depth = np.full((height, width), UNKNOWN_DEPTH, dtype=np.uint8)
    np.minimum.at(depth, (v[inside], u[inside]), steps)
    return depth
