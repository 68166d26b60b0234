"""The stereo cost volume between this image and the camera's previous one (spec 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from gdfusion_ros.model.blocks.cameras import (
    NEAREST_VISIBLE,
    CameraRig,
    EgoMotion,
    normalised,
    pixel_grid,
    seen_from_previous,
    to_image,
)

UNSEEN_COST = 5.0
"""Added to the cost where the previous image shows nothing."""
CHANNEL_GROUP = 4
"""The reference matched channels in groups of this many; its test for "shows nothing" looks at the last group."""


@torch.no_grad()
def cost_volume(
    current: Tensor,
    previous: Tensor,
    depths: Tensor,
    rig: CameraRig,
    motion: EgoMotion,
    image_size: tuple[int, int],
) -> Tensor:
    """How well each depth hypothesis explains the previous image: softmax over depth of minus the feature distance.

    ``current`` and ``previous`` (B * N, C, h, w) are first-stage features of two exposures of the same cameras;
    ``depths`` (D,) metres; the result is (B * N, D, h, w). Carries no gradient, as in the reference.
    """
    images, channels, h, w = current.shape
    pixels = pixel_grid((h, w), image_size, current.device)
    pixels = pixels.expand(*rig.intrinsics.shape[:2], h, w, 2)
    # Oddity (spec 12.6): whether the previous image shows anything is read off one channel of the last group.
    witness = channels - CHANNEL_GROUP
    cost = current.new_empty(images, len(depths), h, w)
    # One hypothesis at a time: the warped features of all of them would take D times the memory of one map.
    for d, depth in enumerate(depths):
        uv, z = seen_from_previous(pixels, depth.expand(pixels.shape[:-1]), rig, motion)
        # Oddity (spec 12.6): the previous image is placed with the current image transform.
        where = normalised(to_image(uv, rig.image_rotation, rig.image_translation), image_size)
        where = torch.where((z < NEAREST_VISIBLE)[..., None], torch.full_like(where, -2.0), where).flatten(0, 1)
        for i in range(images):
            warped = torch.nn.functional.grid_sample(
                previous[i : i + 1], where[i : i + 1], mode="bilinear", padding_mode="zeros", align_corners=True
            )[0]
            unseen = warped[witness] == 0
            torch.sum(warped.sub_(current[i]).abs_(), dim=0, out=cost[i, d])
            cost[i, d] += UNSEEN_COST * unseen
    return (-cost).softmax(dim=1)
