"""ALOcc's inter-pixel depth-to-occupancy: a pixel's context also goes to points of its 3x3 neighbours (spec 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from gdfusion_ros.model.blocks.cameras import CameraRig, grid_points
from gdfusion_ros.model.blocks.depth import Neighbourhood

CENTRE = 4
"""The slot of the 3x3 neighbourhood that is the pixel itself; it lends no points."""


def neighbour_points(
    geometry: Tensor, neighbourhood: Neighbourhood, pixels: Tensor, depths: Tensor, rig: CameraRig
) -> tuple[Tensor, Tensor]:
    """27 extra points for every pixel: metres (B, N, 27, h, w, 3) in the grid's frame and weights (B, N, 27, h, w).

    ``geometry`` (B, N, D, h, w) depth weights; ``pixels`` (h, w, 2) network pixels of the feature cells.
    """
    batch, cameras = geometry.shape[:2]
    likeliest = geometry.argmax(dim=2, keepdim=True)
    candidates = likeliest + torch.arange(-1, 2, device=geometry.device).view(1, 1, 3, 1, 1)
    # Oddity (spec 12.1): the bins are clamped to the number of cameras instead of that of the bins, so these points lie
    # within the first few bins. And of those outside, only bin -1 is thrown away.
    bins = candidates.clamp(0, min(cameras, len(depths)) - 1)
    shares = geometry.gather(2, bins) * (candidates != -1)
    weights = neighbourhood.weights.unflatten(0, (batch, cameras)).flatten(2, 3)  # (B, N, 9, 3, h, w)
    offsets = neighbourhood.offsets.unflatten(0, (batch, cameras)).flatten(2, 3)  # (B, N, 9, 2, h, w)

    lent = weights * shares[:, :, None]
    lent = torch.cat([lent[:, :, :CENTRE], torch.zeros_like(lent[:, :, :1]), lent[:, :, CENTRE + 1 :]], dim=2)
    places = pixels + offsets.movedim(3, -1)
    places = places[:, :, :, None].expand(-1, -1, -1, 3, -1, -1, -1)
    metres = depths[bins][:, :, None].expand_as(lent)
    points = grid_points(places.flatten(2, 3), metres.flatten(2, 3), rig)
    return points, lent.flatten(2, 3)
