"""The scene cue in two passes; twin: ``gdfusion_ros.model.fusion.scene.SceneFusion``."""

from __future__ import annotations

import torch
from torch import Tensor

from gdfusion_ros.kernels.buffers import empty
from gdfusion_ros.kernels.library import call, pack, pad


def gradient(
    cells: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    rounded: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the weight (C, C), bias, scale and shift (C, 1) of one sample's reconstruction error.

    ``cells`` (N, C) contiguous; matrices (C, C); ``bias``, ``scale``, ``shift`` (C, 1); ``rounded``: cells and
    matrices to bfloat16 where they are multiplied.
    """
    count, channels = cells.shape
    stacked, start = _stack(weight @ key, bias, value - key)
    entries = len(pad(scale[:, 0]))
    sums = torch.empty(channels + 3, entries, dtype=torch.float64)
    call(
        "scene_gradient",
        *(cells, stacked, start, pad(scale[:, 0]), pad(shift[:, 0])),
        *(count, channels, int(rounded), sums),
    )
    mean = sums[:, :channels] / (count * channels)
    d_weight = mean[:channels] @ key.double().T
    d_bias, d_scale, d_shift = mean[channels], 2 * mean[channels + 1], 2 * mean[channels + 2]
    return d_weight.float(), d_bias[:, None].float(), d_scale[:, None].float(), d_shift[:, None].float()


def output(
    cells: Tensor,
    query: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    blended: tuple[Tensor, Tensor] | None,
    rounded: bool,
) -> Tensor:
    """``layer_norm(weight @ q + bias) * scale + shift + q`` with q = query @ u for every row u of ``cells`` (N, C).

    ``blended``: other cells (N, C), and the gain (C) with which the way from them to the result is gone.
    """
    count, channels = cells.shape
    stacked, start = _stack(weight @ query, bias, query)
    out = empty(*cells.shape)
    single, gain = (None, None) if blended is None else (blended[0], pad(blended[1]))
    call(
        "scene_output",
        *(cells, stacked, start, pad(scale[:, 0]), pad(shift[:, 0]), single, gain),
        *(count, channels, int(rounded), out),
    )
    return out


def _stack(normed: Tensor, bias: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The packed product of both matrices at once, the first without its mean over the outputs, and its start."""
    centred, start = normed - normed.mean(dim=0, keepdim=True), bias[:, 0] - bias.mean()
    both = torch.cat([pack(centred.T), pack(other.T)])
    padded = pad(start)
    return both.contiguous(), torch.cat([padded, torch.zeros_like(padded)])
