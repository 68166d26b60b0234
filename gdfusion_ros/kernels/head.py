"""A voxel classifier of two layers, and labels from logits.

Twins: ``VoxelHead.classifier`` in ``gdfusion_ros.model.blocks.heads`` and ``OccupancyModel`` in
``gdfusion_ros.model.model``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gdfusion_ros.kernels.buffers import empty
from gdfusion_ros.kernels.library import call, cells_first, pack, pad


def classifier(voxels: Tensor, first: nn.Linear, last: nn.Linear) -> Tensor:
    """``last(softplus(first(voxel)))`` for voxels (B, C, ...): logits (B, K, ...), channels last in memory."""
    cells = cells_first(voxels)
    channels, classes = cells.shape[-1], last.out_features
    hidden = pad(first.bias)
    # Rows for the hidden layer's padding: what softplus makes of a zero must not count.
    rows = torch.nn.functional.pad(last.weight.T, (0, 0, 0, len(hidden) - first.out_features))
    out = empty(*cells.shape[:-1], classes)
    call(
        "classifier",
        *(cells, pack(first.weight.T), hidden, pack(rows), pad(last.bias)),
        *(cells.numel() // channels, channels, len(hidden), classes, out),
    )
    return out.movedim(-1, 1)


def classify(
    logits: Tensor, skipped: int, excluded: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Labels and confidence (X, Y, Z), 255 = 1, from logits (K, Y, X, Z).

    The first ``skipped`` channels are never a label; neither are the labels in ``excluded``.
    """
    channels, y, x, z = logits.shape
    cells = logits.movedim(0, -1)
    step = cells.stride(2)
    # Logits may lie beside other outputs of a voxel.
    if cells.stride() != (x * z * step, z * step, step, 1):
        cells, step = cells.contiguous(), channels
    allowed = torch.ones(channels - skipped, dtype=torch.uint8)
    allowed[list(excluded)] = 0
    labels, confidence = (torch.empty(x, y, z, dtype=torch.uint8) for _ in range(2))
    call(
        "classify",
        cells[0, 0, 0],
        step,
        allowed,
        channels,
        skipped,
        x,
        y,
        z,
        labels,
        confidence,
    )
    return labels.numpy(), confidence.numpy()
