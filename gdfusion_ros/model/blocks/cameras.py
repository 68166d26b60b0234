"""Pixels, rays and points: the projective geometry that depth, stereo, lifting and attention share.

A network image pixel is ``image_rotation @ (u, v, 1) + image_translation`` of the calibrated pixel (u, v).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gdfusion_ros.model.config import DepthBins

NEAREST_VISIBLE = 1e-3
"""Points with less depth than this, in metres, count as behind the camera."""


@dataclass(frozen=True)
class CameraRig:
    """Where the cameras of a batch of frames look, float32."""

    intrinsics: Tensor
    """(B, N, 3, 3) of the calibrated image, in pixels."""
    rotation: Tensor
    """(B, N, 3, 3) camera to grid frame."""
    translation: Tensor
    """(B, N, 3) camera to grid frame, metres."""
    image_rotation: Tensor
    """(B, N, 3, 3) calibrated pixel to network pixel."""
    image_translation: Tensor
    """(B, N, 3)."""
    augmentation: Tensor
    """(B, 3, 3) applied to the grid frame in training; the identity otherwise."""


@dataclass(frozen=True)
class EgoMotion:
    """How the previous frame of a batch lies to the current one, float32."""

    previous_from_current: Tensor
    """(B, 4, 4) between the frames that the history is warped in, BEV augmentation of both frames included."""
    previous_camera_from_camera: Tensor
    """(B, N, 4, 4) each camera at its current exposure to the same camera at its previous one."""


def depth_values(bins: DepthBins) -> Tensor:
    """(D,) depths of the hypotheses in metres."""
    return bins.lower + bins.step * torch.arange(bins.count, dtype=torch.float32)


def pixel_grid(feature_size: tuple[int, int], image_size: tuple[int, int], device: torch.device) -> Tensor:
    """(h, w, 2) network pixels (x, y) of the cells of a feature map: both borders of the image included."""
    (h, w), (height, width) = feature_size, image_size
    y = torch.linspace(0, height - 1, h, device=device)
    x = torch.linspace(0, width - 1, w, device=device)
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


def calibrated_pixels(pixels: Tensor, rig: CameraRig) -> Tensor:
    """(B, N, ..., 3) homogeneous pixels (u, v, 1) of the calibrated image for network pixels (B, N, ..., 2)."""
    inverse = torch.inverse(rig.image_rotation)[..., :2, :2]
    shifted = pixels - _expand(rig.image_translation[..., :2], pixels)
    uv = _rotate(inverse, shifted)
    return torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1)


def camera_rays(pixels: Tensor, rig: CameraRig) -> Tensor:
    """(B, N, ..., 3) points at depth 1 in the camera's frame for network pixels (B, N, ..., 2)."""
    return _rotate(torch.inverse(rig.intrinsics), calibrated_pixels(pixels, rig))


def grid_points(pixels: Tensor, depths: Tensor, rig: CameraRig) -> Tensor:
    """(B, N, ..., 3) metres in the grid frame: network pixels (B, N, ..., 2) at depths (B, N, ...) or broadcastable."""
    scaled = calibrated_pixels(pixels, rig) * depths[..., None]
    points = _rotate(rig.rotation @ torch.inverse(rig.intrinsics), scaled)
    points = points + _expand(rig.translation, points)
    return _rotate(rig.augmentation[:, None].expand_as(rig.rotation), points)


def seen_from_previous(
    pixels: Tensor, depths: Tensor, rig: CameraRig, motion: EgoMotion
) -> tuple[Tensor, Tensor]:
    """Calibrated pixels (B, N, ..., 2) and depths (B, N, ...) in the previous exposure of points seen now.

    Points behind the previous camera get a depth below NEAREST_VISIBLE and meaningless pixels.
    """
    scaled = calibrated_pixels(pixels, rig) * depths[..., None]
    previous_from_current = motion.previous_camera_from_camera
    points = _rotate(previous_from_current[..., :3, :3] @ torch.inverse(rig.intrinsics), scaled)
    points = points + _expand(previous_from_current[..., :3, 3], points)
    # Oddity (spec 12.6): the previous image is projected with the current intrinsics.
    projected = _rotate(rig.intrinsics, points)
    z = points[..., 2]
    safe = torch.where(z < NEAREST_VISIBLE, torch.ones_like(z), z)
    return projected[..., :2] / safe[..., None], z


def projection_steps(
    rig: CameraRig, motion: EgoMotion, image_size: tuple[int, int], rotation: Tensor, translation: Tensor
) -> Tensor:
    """(B * N, 34): the numbers that ``seen_from_previous``, ``to_image`` and ``normalised`` multiply, divide and shift
    pixels by, in the order of their steps, for the kernels that repeat these steps to the last digit.

    ``rotation`` (B, N, 3, 3) and ``translation`` (B, N, 3): the previous image's transform.
    """
    height, width = image_size
    previous_from_current = motion.previous_camera_from_camera
    return torch.cat(
        [
            rig.image_translation[..., :2],
            torch.inverse(rig.image_rotation)[..., :2, :2].flatten(2),
            (previous_from_current[..., :3, :3] @ torch.inverse(rig.intrinsics)).flatten(2),
            previous_from_current[..., :3, 3],
            rig.intrinsics[..., :2, :].flatten(2),
            rotation[..., :2, :2].flatten(2),
            translation[..., :2],
            rig.intrinsics.new_tensor([width - 1, height - 1]).expand(*rig.intrinsics.shape[:2], 2),
        ],
        dim=-1,
    ).flatten(0, 1)


def ray_steps(rig: CameraRig) -> Tensor:
    """(B, N, 27): the numbers that ``grid_points`` multiplies and shifts by, in the order of its steps, for the kernel
    that repeats these steps to the last digit."""
    return torch.cat(
        [
            rig.image_translation[..., :2],
            torch.inverse(rig.image_rotation)[..., :2, :2].flatten(2),
            (rig.rotation @ torch.inverse(rig.intrinsics)).flatten(2),
            rig.translation,
            rig.augmentation[:, None].expand_as(rig.rotation).flatten(2),
        ],
        dim=-1,
    )


def normalised(pixels: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Pixels (..., 2) as coordinates of ``grid_sample`` with ``align_corners=True``."""
    height, width = image_size
    return pixels / pixels.new_tensor([width - 1, height - 1]) * 2 - 1


def to_image(pixels: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """Network pixels (B, N, ..., 2) of calibrated pixels, by an image transform (B, N, 3, 3) and (B, N, 3)."""
    return _rotate(rotation[..., :2, :2], pixels) + _expand(translation[..., :2], pixels)


def _rotate(matrices: Tensor, points: Tensor) -> Tensor:
    """(B, N, ..., m) products of matrices (B, N, m, m) with points (B, N, ..., m)."""
    flat = points.flatten(2, -2)
    return (flat @ matrices.transpose(-1, -2)).view(points.shape)


def _expand(vectors: Tensor, like: Tensor) -> Tensor:
    """Vectors (B, N, m) with as many dimensions as ``like`` (B, N, ..., m)."""
    return vectors.view(*vectors.shape[:2], *([1] * (like.dim() - 3)), vectors.shape[-1])
