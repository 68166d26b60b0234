"""From training sequences to what a network takes and what its losses compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion
from gdfusion_ros.model.config import DepthBins
from gdfusion_ros.model.images import MEAN, STD
from gdfusion_ros.model.network import NetworkInput
from gdfusion_ros.training.data import DEPTH_STEP, Sequence

HIDDEN_WEIGHT = 0.5
"""Of a voxel that is hidden now and was seen before, in the loss; a visible one has 1, all others 0."""


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


def collate(
    samples: list[tuple[Sequence, int]], bins: DepthBins, stride: int, first: bool = True
) -> tuple[NetworkInput, Targets]:
    """A batch from (sequence, frame) pairs.

    ``stride``: image pixels of a feature cell; ``first``: the frames begin sequences, so they have no ego motion.
    """
    images = np.stack([sequence.images[i] for sequence, i in samples])
    rigs = [_rig(sequence, i) for sequence, i in samples]
    motions = [_motion(sequence, i, first) for sequence, i in samples]
    frame = NetworkInput(
        images=_normalise(images),
        rig=CameraRig(*(torch.from_numpy(np.stack(column)).float() for column in zip(*rigs, strict=True))),
        motion=EgoMotion(*(torch.from_numpy(np.stack(column)).float() for column in zip(*motions, strict=True))),
    )
    return frame, Targets(
        labels=_yxz([sequence.labels[i] for sequence, i in samples]).long(),
        weight=_yxz([sequence.visible[i] + HIDDEN_WEIGHT * sequence.hidden[i] for sequence, i in samples]).float(),
        velocity=_yxz([sequence.velocity[i] for sequence, i in samples]),
        depth=depth_target(np.concatenate([sequence.depth[i] for sequence, i in samples]), bins, stride),
    )


def depth_target(depth: npt.NDArray[np.uint8], bins: DepthBins, stride: int) -> Tensor:
    """(M, h, w, D) share of a cell's pixels in each depth bin, from stored depth (M, H, W)."""
    m, height, width = depth.shape
    h, w = height // stride, width // stride
    # A bin stands for the depths around its value, to which lifting puts it.
    bin_of = np.round((np.arange(256) * DEPTH_STEP + DEPTH_STEP / 2 - bins.lower) / bins.step).astype(np.int64)
    bin_of[(bin_of < 0) | (bin_of >= bins.count)] = bins.count
    bin_of[255] = bins.count
    cells = depth.reshape(m, h, stride, w, stride).transpose(0, 1, 3, 2, 4).reshape(m * h * w, -1)
    rows = np.arange(len(cells))[:, None] * (bins.count + 1)
    counts = np.bincount((bin_of[cells] + rows).ravel(), minlength=len(cells) * (bins.count + 1))
    shares = counts.reshape(m, h, w, bins.count + 1)[..., : bins.count] / (stride * stride)
    return torch.from_numpy(shares.astype(np.float32))


def _normalise(images: npt.NDArray[np.uint8]) -> Tensor:
    """(B, N, 3, H, W) as ``model.images.normalise_image`` gives it."""
    mean, std = torch.tensor(MEAN, dtype=torch.float32), torch.tensor(STD, dtype=torch.float32)
    pixels = torch.from_numpy(np.ascontiguousarray(images[..., ::-1])).float()
    return ((pixels - mean) / std).movedim(-1, 2).contiguous()


def _yxz(arrays: list[npt.NDArray[np.generic]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.stack(arrays).swapaxes(1, 2)))


def _world_from_camera(sequence: Sequence, i: int) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = sequence.world_from_ego_at_exposure[i] @ sequence.ego_from_camera
    return result


def _rig(sequence: Sequence, i: int) -> tuple[npt.NDArray[np.float64], ...]:
    ego_from_camera = np.linalg.inv(sequence.world_from_ego[i]) @ _world_from_camera(sequence, i)
    scale, left, top = sequence.image_transform.T
    zero, one = np.zeros_like(scale), np.ones_like(scale)
    image_rotation = np.stack([np.diag(row) for row in np.stack([scale, scale, one], 1)])
    return (
        sequence.intrinsics,
        ego_from_camera[:, :3, :3],
        ego_from_camera[:, :3, 3],
        image_rotation,
        np.stack([-left, -top, zero], 1),
        np.eye(3),
    )


def _motion(sequence: Sequence, i: int, first: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    then = i if first else i - 1
    return (
        np.linalg.inv(sequence.world_from_ego[then]) @ sequence.world_from_ego[i],
        np.linalg.inv(_world_from_camera(sequence, then)) @ _world_from_camera(sequence, i),
    )
