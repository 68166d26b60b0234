"""What goes into every network and what comes out: the interface between ``model.py``, training and the families."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion


@dataclass(frozen=True)
class NetworkInput:
    """A batch of frames as tensors, float32."""

    images: Tensor
    """(B, N, 3, H, W) normalised."""
    rig: CameraRig
    motion: EgoMotion
    """The identity at a sequence's start."""
    lidar_depth: Tensor | None = None
    """(B, N, H / 16, W / 16) metres of the nearest LiDAR point in each feature cell, 0 where there is none; for
    networks that take LiDAR depth."""


@dataclass(frozen=True)
class NetworkOutput:
    """What a network says about a batch of frames."""

    logits: Tensor
    """(B, K, Y, X, Z) of each class, over the output grid."""
    depth: Tensor | None = None
    """(B * N, D, h, w) depth distribution of the single frame, for the depth loss."""
    offsets: Tensor | None = None
    """(B, dims, Z, Y, X) or (B, dims, Y, X) history offsets in cells of the feature grid."""
    offsets_inside: Tensor | None = None
    """(B, Z, Y, X) or (B, Y, X) where the offsets point into the history."""
    velocity: Tensor | None = None
    """(B, Y, X, Z, 2) metres per second along x and y of the grid's frame, from a supervised flow head."""
    context: Tensor | None = None
    """(B * N, C, h, w) what is lifted of each image cell, for a loss on what the images show."""
    labels: Tensor | None = None
    """(B, Y, X, Z) uint8, of networks whose labels are not simply those of the largest logits."""
