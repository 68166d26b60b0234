"""The neck of a voxel encoder in one pass; twin: ``gdfusion_ros.model.inference.FusedNeck``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gdfusion_ros.kernels.buffers import empty
from gdfusion_ros.kernels.library import call, cells_first, pack, pad

COARSER = 2
"""Maps beside the finest that the kernel takes."""


class NeckWeights(NamedTuple):
    """The finest map's 1x1x1 convolution, for the instruction set that it was packed with."""

    packed: Tensor
    bias: Tensor
    inputs: int
    outputs: int


def prepare(weight: Tensor, bias: Tensor) -> NeckWeights:
    """Pack weights (O, I, 1, 1, 1) and bias (O,)."""
    outputs, inputs = weight.shape[:2]
    return NeckWeights(pack(weight.flatten(1).t()), pad(bias), inputs, outputs)


def mix(finest: Tensor, weights: NeckWeights, coarser: Sequence[Tensor]) -> Tensor:
    """ReLU of the finest map (B, I, A, B, C) mixed, plus up to COARSER maps (B, O, ...) resized with corners aligned.

    Gives (B, O, A, B, C), channels last in memory.
    """
    cells, maps = cells_first(finest), [cells_first(m) for m in coarser]
    out = empty(*cells.shape[:-1], weights.outputs)
    for i in range(len(cells)):
        levels = [part for m in maps for part in (m[i], *m.shape[1:4])]
        levels += [None, 0, 0, 0] * (COARSER - len(maps))
        call(
            "neck",
            *(cells[i], weights.inputs, weights.packed, weights.bias, weights.outputs, *cells.shape[1:4]),
            *(*levels, out[i]),
        )
    return out.movedim(-1, 1)
