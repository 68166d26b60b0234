"""Training sequences from the made-up world, drawn on first use and kept on disk if a folder is given.

A sequence follows from its number alone, so whether it was just drawn or read back makes no difference.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.sources.world import GRID, NUSCENES, TRAINING_SEEDS, GroundTruth, Rig, WorldSource

VERSION = 2
"""Of the made-up world's looks and of what is stored: sequences kept under another one are drawn anew."""
DEPTH_STEP = 0.2
"""Metres of one step of the stored depth; 255 stands for nothing within reach."""


@dataclass(frozen=True)
class Sequence:
    """F consecutive frames with ground truth, as arrays over N cameras and an (X, Y, Z) grid."""

    images: npt.NDArray[np.uint8]
    """(F, N, H, W, 3) RGB."""
    depth: npt.NDArray[np.uint8]
    """(F, N, H, W) optical depth in steps of 0.2 m."""
    pixel_labels: npt.NDArray[np.uint8]
    """(F, N, H, W) what each pixel shows, free for the sky; 255 where nobody knows."""
    labels: npt.NDArray[np.uint8]
    """(F, X, Y, Z)."""
    visible: npt.NDArray[np.bool_]
    hidden: npt.NDArray[np.bool_]
    """(F, X, Y, Z): not visible now, seen in an earlier frame."""
    velocity: npt.NDArray[np.float32]
    """(F, X, Y, Z, 2) metres per second along the grid's x and y."""
    intrinsics: npt.NDArray[np.float64]
    """(N, 3, 3) of the calibrated image."""
    image_transform: npt.NDArray[np.float64]
    """(N, 3) scale, left, top."""
    ego_from_camera: npt.NDArray[np.float64]
    """(N, 4, 4)."""
    world_from_ego: npt.NDArray[np.float64]
    """(F, 4, 4) at the anchor's exposure."""
    world_from_ego_at_exposure: npt.NDArray[np.float64]
    """(F, N, 4, 4)."""

    def __len__(self) -> int:
        return len(self.images)


class WorldSequences:
    """Training sequences by number: ``count`` drawn ones, then the same in the mirror.

    One in four has drifting poses, in three of five the cameras sit a little elsewhere on the vehicle.
    """

    def __init__(
        self,
        count: int,
        frames: int,
        image_size: tuple[int, int],
        cache: Path | None = None,
        grid: VoxelGrid = GRID,
        first_seed: int = TRAINING_SEEDS,
        rig: Rig = NUSCENES,
    ) -> None:
        self.count = count
        self.frames = frames
        self.image_size = image_size
        self.grid = grid
        self.cache = cache
        self.first_seed = first_seed
        self.rig = rig

    def __len__(self) -> int:
        # A grid that reaches further to one side has no mirror image.
        return self.count * (2 if np.isclose(self.grid.minimum[1], -self.grid.maximum[1]) else 1)

    def __getitem__(self, number: int) -> Sequence:
        again, drawn = divmod(number, self.count)
        return mirrored(self._stored(drawn)) if again else self._stored(drawn)

    def _stored(self, number: int) -> Sequence:
        path = (
            None
            if self.cache is None
            else self.cache / f"{self.first_seed + number}_{self._form}.safetensors"
        )
        if path is not None and path.is_file():
            return _unpack(load_file(path))
        sequence = self._draw(self.first_seed + number)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
            save_file(_pack(sequence), temporary)
            temporary.replace(path)
        return sequence

    @cached_property
    def _form(self) -> str:
        """What a stored sequence depends on besides its seed, short enough for a file's name."""
        form = f"{VERSION} {self.frames} {self.image_size} {self.grid}"
        cameras = [camera.name for camera in self.rig.cameras]
        if cameras != [camera.name for camera in NUSCENES.cameras]:
            form += f" {cameras}"
        return hashlib.sha256(form.encode()).hexdigest()[:12]

    def _draw(self, seed: int) -> Sequence:
        rng = np.random.default_rng([seed, 100])
        rig = self.rig.jittered(rng) if rng.random() < 0.6 else self.rig
        noise = float(rng.uniform(0.02, 0.08)) if rng.random() < 0.25 else 0.0
        source = WorldSource(seed, self.frames, rig, self.image_size, self.grid, pose_noise=noise)
        return stack([*source.pairs()])


def mirrored(sequence: Sequence) -> Sequence:
    """The sequence in a mirror that stands lengthwise in the vehicle: left becomes right, on a grid that reaches as
    far to both sides."""
    left_right, horizontal = np.diag([1.0, -1.0, 1.0, 1.0]), np.diag([-1.0, 1.0, 1.0, 1.0])
    scale, left, _ = sequence.image_transform.T
    intrinsics = sequence.intrinsics.copy()
    # Column i of the transformed image becomes column W - 1 - i.
    intrinsics[:, 0, 2] = (sequence.images.shape[3] - 1 + 2 * left) / scale - intrinsics[:, 0, 2]
    intrinsics[:, 0, 1] *= -1
    return Sequence(
        images=sequence.images[:, :, :, ::-1],
        depth=sequence.depth[..., ::-1],
        pixel_labels=sequence.pixel_labels[..., ::-1],
        labels=sequence.labels[:, :, ::-1],
        visible=sequence.visible[:, :, ::-1],
        hidden=sequence.hidden[:, :, ::-1],
        velocity=sequence.velocity[:, :, ::-1] * np.array([1, -1], dtype=np.float32),
        intrinsics=intrinsics,
        image_transform=sequence.image_transform,
        ego_from_camera=left_right @ sequence.ego_from_camera @ horizontal,
        world_from_ego=left_right @ sequence.world_from_ego @ left_right,
        world_from_ego_at_exposure=left_right @ sequence.world_from_ego_at_exposure @ left_right,
    )


def stack(pairs: list[tuple[CameraFrame, GroundTruth]]) -> Sequence:
    """Consecutive frames with their ground truth as one sequence."""
    first = pairs[0][0].views
    return Sequence(
        images=np.stack([np.stack([view.image for view in frame.views]) for frame, _ in pairs]),
        depth=np.stack([np.stack([_quantise(depth) for depth in truth.depth]) for _, truth in pairs]),
        pixel_labels=np.stack([np.stack(truth.pixel_labels) for _, truth in pairs]),
        labels=np.stack([truth.labels for _, truth in pairs]),
        visible=np.stack([truth.visible for _, truth in pairs]),
        hidden=np.stack([truth.hidden_seen_before for _, truth in pairs]),
        velocity=np.stack([truth.velocity[..., :2] for _, truth in pairs]),
        intrinsics=np.stack([view.intrinsics for view in first]),
        image_transform=np.array(
            [
                (view.image_transform.scale, view.image_transform.left, view.image_transform.top)
                for view in first
            ]
        ),
        ego_from_camera=np.stack([view.ego_from_camera for view in first]),
        world_from_ego=np.stack([frame.world_from_ego for frame, _ in pairs]),
        world_from_ego_at_exposure=np.stack(
            [np.stack([view.world_from_ego for view in frame.views]) for frame, _ in pairs]
        ),
    )


def _quantise(depth: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.minimum(np.where(np.isfinite(depth), depth, 1e6) / DEPTH_STEP, 255).astype(np.uint8)


def _pack(sequence: Sequence) -> dict[str, np.ndarray]:
    """The arrays to store: masks as bits, velocities only where something moves."""
    arrays = dict(vars(sequence))
    moving = np.flatnonzero(np.abs(sequence.velocity).max(-1).reshape(-1) > 0)
    arrays["velocity"] = sequence.velocity.reshape(-1, 2)[moving]
    arrays["moving"] = moving.astype(np.int32)
    for name in ("visible", "hidden"):
        arrays[name] = np.packbits(arrays[name].reshape(-1))
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _unpack(arrays: dict[str, np.ndarray]) -> Sequence:
    shape = arrays["labels"].shape
    velocity = np.zeros((int(np.prod(shape)), 2), dtype=np.float32)
    velocity[arrays.pop("moving")] = arrays["velocity"]
    arrays["velocity"] = velocity.reshape(*shape, 2)
    for name in ("visible", "hidden"):
        arrays[name] = np.unpackbits(arrays[name], count=int(np.prod(shape))).astype(bool).reshape(shape)
    return Sequence(**arrays)
