"""The stereo cost volume between this image and the camera's previous one (spec 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from gdfusion_ros.kernels import library
from gdfusion_ros.kernels import stereo as kernel
from gdfusion_ros.model.blocks.cameras import (
    NEAREST_VISIBLE,
    CameraRig,
    EgoMotion,
    normalised,
    pixel_grid,
    projection_steps,
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

    ``current`` and ``previous`` (B * N, C, h, w), float32 or bfloat16, are first-stage features of two exposures of the
    same cameras; ``depths`` (D,) metres; the result is (B * N, D, h, w). Carries no gradient, as in the reference.
    """
    images, channels, h, w = current.shape
    # Oddity (spec 12.6): whether the previous image shows anything is read off one channel of the last group.
    witness = channels - CHANNEL_GROUP
    pixels = pixel_grid((h, w), image_size, current.device)
    if library.usable(current, previous, dtypes=kernel.DTYPES):
        # Oddity (spec 12.6): the previous image is placed with the current image transform.
        steps = projection_steps(rig, motion, image_size, rig.image_rotation, rig.image_translation)
        return kernel.cost_volume(current, previous, steps, pixels[0, :, 0], pixels[:, 0, 1], depths, witness)
    current, previous = current.float(), previous.float()
    pixels = pixels.expand(*rig.intrinsics.shape[:2], h, w, 2)
    cost = current.new_empty(images, len(depths), h, w)
    # Rows of channels: a bilinear sample is a weighted sum of four rows, which embedding_bag does in one pass.
    current_rows = current.flatten(2).transpose(1, 2).contiguous()
    previous_rows = previous.flatten(2).transpose(1, 2).contiguous()
    # One hypothesis at a time: the warped features of all of them would take D times the memory of one map.
    for d, depth in enumerate(depths):
        uv, z = seen_from_previous(pixels, depth.expand(pixels.shape[:-1]), rig, motion)
        # Oddity (spec 12.6): the previous image is placed with the current image transform.
        where = normalised(to_image(uv, rig.image_rotation, rig.image_translation), image_size)
        where = torch.where((z < NEAREST_VISIBLE)[..., None], torch.full_like(where, -2.0), where).flatten(
            0, 1
        )
        rows, shares = bilinear_rows(where, (h, w))
        for i in range(images):
            warped = torch.nn.functional.embedding_bag(
                rows[i], previous_rows[i], mode="sum", per_sample_weights=shares[i]
            )
            unseen = warped[:, witness] == 0
            distance = warped.sub_(current_rows[i]).abs_().sum(dim=1)
            cost[i, d] = (distance + UNSEEN_COST * unseen).view(h, w)
    return cost.neg_().softmax(dim=1)


def bilinear_rows(where: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around each point and their bilinear weights, zero outside the map.

    ``where`` (B, ..., 2) as for ``grid_sample`` with ``align_corners=True``; gives flat indices and weights of a map
    of the given size, both (B, P, 4).
    """
    h, w = size
    x, y = (where[..., 0] + 1) / 2 * (w - 1), (where[..., 1] + 1) / 2 * (h - 1)
    left, top = x.floor(), y.floor()
    rows, shares = [], []
    for down in (0, 1):
        row = top + down
        share_y = (y - top if down else top + 1 - y) * ((row >= 0) & (row < h))
        for right in (0, 1):
            column = left + right
            share_x = (x - left if right else left + 1 - x) * ((column >= 0) & (column < w))
            rows.append(row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long())
            shares.append(share_x * share_y)
    return torch.stack(rows, dim=-1).flatten(1, -2), torch.stack(shares, dim=-1).flatten(1, -2)
