"""3x3 and 3x3x3 convolutions of stride 1 by Winograd; twin: ``torch.nn.functional.conv2d`` and ``conv3d``."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gdfusion_ros.kernels.buffers import empty
from gdfusion_ros.kernels.library import call, cells_first, pack

_POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""Where F(4, 3) evaluates its polynomials, beside infinity; convolution.cpp says why there."""


def _weights_transform() -> Tensor:
    """(6, 3): what takes three weights to the points of F(4, 3)."""
    rows = [[1.0, p, p * p] for p in _POINTS]
    scales = [math.prod(p - other for other in _POINTS if other != p) for p in _POINTS]
    scaled = [[value / scale for value in row] for row, scale in zip(rows, scales)]
    return torch.tensor([*scaled, [0.0, 0.0, 1.0]], dtype=torch.float64)


class WinogradWeights(NamedTuple):
    """A convolution's weights in the transform's domain, for the instruction set that they were packed with."""

    points: Tensor
    """(36 or 216, panels, inputs, panel)."""
    bias: Tensor
    """(outputs,)."""
    inputs: int
    outputs: int
    dims: int


def transform(weight: Tensor, bias: Tensor) -> WinogradWeights:
    """Transform and pack weights (O, I, 3, 3) or (O, I, 3, 3, 3)."""
    outputs, inputs, *kernel = weight.shape
    points, each = weight.double(), _weights_transform().to(weight.device)
    for axis in range(2, weight.dim()):
        points = torch.tensordot(points, each, dims=([axis], [1])).movedim(-1, axis)
    points = points.flatten(2).permute(2, 1, 0).float()
    return WinogradWeights(pack(points), bias.contiguous(), inputs, outputs, len(kernel))


def convolve(
    x: Tensor,
    weights: WinogradWeights,
    relu: bool | int,
    residual: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    """The convolution of (B, I, ...) with zero padding of one cell, plus bias and residual (B, O, ...), then ReLU.

    ``relu``: True and False for all outputs and none, or the number of outputs, from the first, that have it. The
    result is channels last in memory, and so should be what comes in, or it is copied. ``in_place``: the result is
    written over the residual, where that lies in memory so.
    """
    cells = cells_first(x)
    added = None if residual is None else cells_first(residual)
    out = added if in_place and added is not None else empty(*cells.shape[:-1], weights.outputs)
    rectified = weights.outputs if relu is True else int(relu)
    size = cells.shape[1:4] if weights.dims == 3 else (*cells.shape[1:3], 1)
    call(
        "convolution",
        *(cells, weights.inputs, weights.inputs, weights.points, weights.bias, weights.outputs, rectified),
        *(added, weights.outputs, len(cells), *size, weights.dims, out),
    )
    return out.movedim(-1, 1)
