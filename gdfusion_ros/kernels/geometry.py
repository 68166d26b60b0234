"""The geometry cue in one pass; twin: ``gdfusion_ros.model.fusion.geometry.GeometryFusion``."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from gdfusion_ros.kernels.library import call, cells_first, pack, pad


class FusedGeometry(NamedTuple):
    """What the geometry cue gives, (I, D, h, w) each and channels last in memory."""

    weights: Tensor
    """For lifting."""
    kept: Tensor
    """The fused logits, for the next frame."""


def fuse(
    logits: Tensor,
    surface: Tensor,
    history: Tensor | None,
    projections: Tensor,
    x: Tensor,
    y: Tensor,
    depths: Tensor,
    gates: tuple[nn.Sequential, nn.Sequential],
    gain: float,
    rounded: bool,
) -> FusedGeometry:
    """From this frame's ``logits`` and ``surface`` (I, D, h, w), and the last one's ``history``.

    ``projections``, ``x``, ``y`` and ``depths`` as for ``stereo.cost_volume``; ``gates``: those between history and
    logits, and between both and the surface; ``gain``: of the result over the surface; ``rounded``: the gates' inputs
    and weights to bfloat16.
    """
    images, bins, h, w = logits.shape
    now, single = cells_first(logits), cells_first(surface)
    kept, out = torch.empty_like(now), torch.empty_like(now)
    call(
        "geometry_fusion",
        *(now, single, None if history is None else cells_first(history)),
        *(projections.contiguous(), x.contiguous(), y.contiguous(), depths.contiguous()),
        *(*_packed(gates[0]), *_packed(gates[1]), gain),
        *(images, h, w, bins, int(rounded), kept, out),
    )
    return FusedGeometry(out.movedim(-1, 1), kept.movedim(-1, 1))


def _packed(gate: nn.Sequential) -> tuple[Tensor, Tensor, Tensor, float]:
    """The first layer, its bias, the one row of the last layer, and its bias."""
    first, last = cast(nn.Conv2d, gate[0]), cast(nn.Conv2d, gate[2])
    assert first.bias is not None
    assert last.bias is not None
    return pack(first.weight.flatten(1).T), pad(first.bias), pad(last.weight.flatten()), float(last.bias)
