"""The stereo cost volume in one pass; twin: ``gdfusion_ros.model.blocks.stereo.cost_volume``."""

from __future__ import annotations

import torch
from torch import Tensor

from gdfusion_ros.kernels.buffers import empty
from gdfusion_ros.kernels.library import call, cells_first

DTYPES = (torch.float32, torch.bfloat16)
"""Of the features."""


def cost_volume(
    current: Tensor, previous: Tensor, projections: Tensor, x: Tensor, y: Tensor, depths: Tensor, witness: int
) -> Tensor:
    """(I, D, h, w), channels last in memory, from features (I, C, h, w) of this and the previous exposure, float32 or
    bfloat16.

    ``projections`` (I, 34): the fields of Projection in projection.h; ``x`` (w) and ``y`` (h): network pixels of the
    cells' columns and rows; ``witness``: the channel that is zero where nothing is seen.
    """
    images, channels, h, w = current.shape
    cost = empty(images, h, w, len(depths))
    places = [tensor.contiguous() for tensor in (x, y, depths)]
    for i in range(images):
        # Image by image, so that features in bfloat16 never are in float32 all at once.
        features = [cells_first(tensor[i : i + 1].float()) for tensor in (current, previous)]
        call(
            "cost_volume",
            *(*features, projections[i].contiguous(), *places),
            *(1, h, w, channels, len(depths), witness, cost[i]),
        )
    return cost.permute(0, 3, 1, 2)
