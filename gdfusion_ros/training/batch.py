"""From training sequences to what a network takes and what its losses compare with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gdfusion_ros.geometry import inverse
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D, LabelSet
from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion
from gdfusion_ros.model.config import DepthBins, ImageConfig, ModelConfig
from gdfusion_ros.model.images import network_image
from gdfusion_ros.model.network import NetworkInput
from gdfusion_ros.training.data import DEPTH_STEP, Sequence
from gdfusion_ros.training.lidar import ego_from_grid, in_grid_order
from gdfusion_ros.training.losses import HIDDEN_WEIGHT


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch of frames, laid out as the network's output."""

    labels: Tensor
    """(B, Y, X, Z) int64 labels of the label set."""
    weight: Tensor
    """(B, Y, X, Z) weight of each voxel in the loss."""
    velocity: Tensor
    """(B, Y, X, Z, 2) metres per second."""
    depth: Tensor | None
    """(B * N, h, w, D) how the depths of a cell's pixels spread over the bins; zeros where none is in reach."""
    semantics: Tensor | None
    """(B * N, h, w, L) how the labels of a cell's pixels spread over the label set; zeros where nobody knows."""


def collate(
    samples: list[tuple[Sequence, int]],
    config: ModelConfig,
    stride: int,
    first: bool = True,
    unseen: float = 0.0,
    semantics: bool = False,
) -> tuple[NetworkInput, Targets]:
    """A batch from (sequence, frame) pairs for the network of a configuration.

    ``stride``: image pixels of a feature cell; ``first``: the frames begin sequences, so they have no ego motion;
    ``unseen``: the weight of voxels that no camera has seen yet; ``semantics``: whether what the pixels show is wanted.
    """
    images = np.stack([sequence.images[i] for sequence, i in samples])
    grid, bins = config.grid.output, config.depth
    rigs = [_rig(sequence, i, grid) for sequence, i in samples]
    # The published networks move their history by the ego's motion, whatever frame their grid lies in.
    moving = ego_from_grid(grid) if config.temporal.warp == "grid" else np.eye(4)
    motions = [_motion(sequence, i, first, moving) for sequence, i in samples]
    weights = [
        np.where(sequence.visible[i], 1.0, np.where(sequence.hidden[i], HIDDEN_WEIGHT, unseen))
        for sequence, i in samples
    ]
    known, label_of = _label_table(config.labels.labels)
    weights = [
        weight * known[sequence.labels[i]] for weight, (sequence, i) in zip(weights, samples, strict=True)
    ]
    frame = NetworkInput(
        images=torch.from_numpy(_network_images(images, config.image)),
        rig=CameraRig(*(torch.from_numpy(np.stack(column)).float() for column in zip(*rigs, strict=True))),
        motion=EgoMotion(
            *(torch.from_numpy(np.stack(column)).float() for column in zip(*motions, strict=True))
        ),
    )
    return frame, Targets(
        labels=_yxz([label_of[sequence.labels[i]] for sequence, i in samples], grid).long(),
        weight=_yxz(weights, grid).float(),
        velocity=_yxz([_turned(sequence.velocity[i], grid) for sequence, i in samples], grid),
        depth=None
        if bins is None
        else depth_target(np.concatenate([sequence.depth[i] for sequence, i in samples]), bins, stride),
        semantics=semantics_target(
            np.concatenate([sequence.pixel_labels[i] for sequence, i in samples]),
            config.labels.labels,
            stride,
        )
        if semantics
        else None,
    )


def _label_table(labels: LabelSet) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """For each of the world's labels whether a label set has it, and its id there."""
    ids = {label.name: label.id for label in labels.labels}
    known = np.array([label.name in ids for label in OCC3D.labels])
    return known, np.array([ids.get(label.name, labels.free) for label in OCC3D.labels], dtype=np.uint8)


def _turned(velocity: npt.NDArray[np.float32], grid: VoxelGrid) -> npt.NDArray[np.float32]:
    """Velocities (..., 2) along the ego's axes as ones along the grid's."""
    rotation = ego_from_grid(grid)[:2, :2].astype(np.float32)
    return velocity if grid.frame == "ego" else velocity @ rotation


def depth_target(depth: npt.NDArray[np.uint8], bins: DepthBins, stride: int) -> Tensor:
    """(M, h, w, D) share of a cell's pixels in each depth bin, from stored depth (M, H, W)."""
    # A bin stands for the depths around its value, to which lifting puts it.
    bin_of = np.round((np.arange(256) * DEPTH_STEP + DEPTH_STEP / 2 - bins.lower) / bins.step).astype(
        np.int64
    )
    bin_of[(bin_of < 0) | (bin_of >= bins.count)] = bins.count
    bin_of[255] = bins.count
    return _shares(bin_of[depth], bins.count, stride)


def semantics_target(pixels: npt.NDArray[np.uint8], labels: LabelSet, stride: int) -> Tensor:
    """(M, h, w, L) share of a cell's pixels that show each of L labels, from the world's labels (M, H, W)."""
    known, label_of = _label_table(labels)
    count = len(labels.labels)
    table = np.full(256, count, dtype=np.int64)
    table[: len(known)] = np.where(known, label_of, count)
    return _shares(table[pixels], count, stride)


def _shares(values: npt.NDArray[np.integer[Any]], count: int, stride: int) -> Tensor:
    """(M, h, w, count) share of each value below ``count`` among a cell's pixels, from values (M, H, W)."""
    m, height, width = values.shape
    h, w = height // stride, width // stride
    cells = values.reshape(m, h, stride, w, stride).transpose(0, 1, 3, 2, 4).reshape(m * h * w, -1)
    rows = np.arange(len(cells))[:, None] * (count + 1)
    counts = np.bincount((cells + rows).ravel(), minlength=len(cells) * (count + 1))
    shares = counts.reshape(m, h, w, count + 1)[..., :count] / (stride * stride)
    return torch.from_numpy(shares.astype(np.float32))


def _network_images(images: npt.NDArray[np.uint8], config: ImageConfig) -> npt.NDArray[np.float32]:
    """(B, N, 3, H, W) of images (B, N, height, width, 3)."""
    return np.stack([np.stack([network_image(image, config) for image in frame]) for frame in images])


def _yxz(arrays: Iterable[npt.NDArray[Any]], grid: VoxelGrid) -> Tensor:
    return torch.from_numpy(
        np.ascontiguousarray(np.stack([in_grid_order(a, grid) for a in arrays]).swapaxes(1, 2))
    )


def _world_from_camera(sequence: Sequence, i: int) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = sequence.world_from_ego_at_exposure[i] @ sequence.ego_from_camera
    return result


def _rig(sequence: Sequence, i: int, grid: VoxelGrid) -> tuple[npt.NDArray[np.float64], ...]:
    world_from_grid = sequence.world_from_ego[i] @ ego_from_grid(grid)
    grid_from_camera = inverse(world_from_grid) @ _world_from_camera(sequence, i)
    scale, left, top = sequence.image_transform.T
    zero, one = np.zeros_like(scale), np.ones_like(scale)
    image_rotation = np.stack([np.diag(row) for row in np.stack([scale, scale, one], 1)])
    return (
        sequence.intrinsics,
        grid_from_camera[:, :3, :3],
        grid_from_camera[:, :3, 3],
        image_rotation,
        np.stack([-left, -top, zero], 1),
        np.eye(3),
    )


def _motion(
    sequence: Sequence, i: int, first: bool, ego_from_moving: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    then = i if first else i - 1
    return (
        inverse(sequence.world_from_ego[then] @ ego_from_moving)
        @ sequence.world_from_ego[i]
        @ ego_from_moving,
        inverse(_world_from_camera(sequence, then)) @ _world_from_camera(sequence, i),
    )
