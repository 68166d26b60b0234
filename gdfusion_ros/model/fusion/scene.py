"""The scene cue (spec 4.4): a linear layer that is trained on every frame, while the sequence runs.

A small reconstruction problem is set up from the voxel features; one step of gradient descent on it changes the
layer's weights, and the change is carried on. The gradient is written out; it needs no autograd to run, and lets
training differentiate through the step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gdfusion_ros.kernels import history, library
from gdfusion_ros.kernels import scene as kernel

EPSILON = 1e-6
"""Of this module's layer norms."""


class SceneState(NamedTuple):
    """What has been learned from the sequence so far."""

    weight: Tensor
    """(B, C, C) sum of the steps of the weights."""
    bias: Tensor
    """(B, C, 1) sum of the steps of the bias."""


class SceneGradient(NamedTuple):
    """Gradients of the reconstruction error."""

    weight: Tensor
    """(B, C, C)"""
    bias: Tensor
    """(B, C, 1)"""
    scale: Tensor
    """(B, C, 1)"""
    shift: Tensor
    """(B, C, 1)"""


class SceneFusion(nn.Module):
    """Adapts voxel features to the scene at hand."""

    rounds = False
    """Whether the kernels may take their products in bfloat16; set in inference forms of that precision."""

    def __init__(self, channels: int, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(0.02 * torch.randn(1, channels, channels))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1))
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)

    def forward(
        self, voxels: Tensor, state: SceneState | None, blended: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, SceneState]:
        """Adapted features (B, C, ...) and the new state. Runs on a sequence's first frame too.

        ``blended``: other features (B, C, ...), and the gain (C) with which the way from them to the adapted ones is
        gone.
        """
        batch, channels = voxels.shape[:2]
        if state is None:
            state = SceneState(
                voxels.new_zeros(batch, channels, channels), voxels.new_zeros(batch, channels, 1)
            )
        if library.usable(voxels, *state):
            return self._by_kernels(voxels, state, blended)
        u = voxels.flatten(2)
        key = self.key.weight @ u
        target = self.value.weight @ u - key
        step = scene_gradient(
            key, target, self.weight - state.weight, self.bias - state.bias, self.scale, self.shift
        )
        weight = state.weight + self.rate * step.weight
        bias = state.bias + self.rate * step.bias
        # Oddity (spec 12.2): the steps of scale and shift act on this frame only; they are not carried on.
        scale, shift = self.scale - self.rate * step.scale, self.shift - self.rate * step.shift

        query = self.query.weight @ u
        normal, _ = _normalise((self.weight - weight) @ query + (self.bias - bias))
        fused = (scale * normal + shift + query).view(voxels.shape)
        if blended is not None:
            fused = blend(*blended, fused)
        return fused, SceneState(weight.detach(), bias.detach())

    def _by_kernels(
        self, voxels: Tensor, state: SceneState, blended: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, SceneState]:
        cells = history.rows(voxels)
        rows = cells.flatten(1, -2)
        single = None if blended is None else history.rows(blended[0]).flatten(1, -2)
        weights, biases, outputs = [], [], []
        for b, u in enumerate(rows):
            weight, bias = self.weight[0] - state.weight[b], self.bias[0] - state.bias[b]
            scale, shift = self.scale[0], self.shift[0]
            step = SceneGradient(
                *kernel.gradient(
                    u, self.key.weight, self.value.weight, weight, bias, scale, shift, self.rounds
                )
            )
            weights.append(state.weight[b] + self.rate * step.weight)
            biases.append(state.bias[b] + self.rate * step.bias)
            # Oddity (spec 12.2), as above.
            scale, shift = scale - self.rate * step.scale, shift - self.rate * step.shift
            weight, bias = self.weight[0] - weights[b], self.bias[0] - biases[b]
            other = None if blended is None or single is None else (single[b], blended[1])
            outputs.append(
                kernel.output(u, self.query.weight, weight, bias, scale, shift, other, self.rounds)
            )
        fused = outputs[0] if len(outputs) == 1 else torch.stack(outputs)
        fused = history.volume(fused.view(cells.shape), voxels.dim() == 4)
        return fused, SceneState(torch.stack(weights), torch.stack(biases))


def blend(single: Tensor, gain: Tensor, fused: Tensor) -> Tensor:
    """From features (B, C, ...) towards fused ones, as far as the gain (C) of each channel says."""
    return torch.lerp(single, fused, gain.view(-1, *([1] * (single.dim() - 2))))


def scene_gradient(
    key: Tensor, target: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> SceneGradient:
    """Gradient of ``mean((layer_norm(weight @ key + bias) * scale + shift - target) ** 2)`` in closed form.

    ``key`` and ``target`` are (B, C, N); the mean goes over C and N, for each sample of the batch by itself.
    """
    channels, count = key.shape[1], key.shape[1] * key.shape[2]
    normal, deviation = _normalise(weight @ key + bias)
    error = scale * normal + shift - target
    through_norm = error * scale
    summed = through_norm.sum(dim=1, keepdim=True)
    aligned = (through_norm * normal).sum(dim=1, keepdim=True)
    d_z = (2.0 / channels) * (channels * through_norm - summed - normal * aligned) / deviation
    return SceneGradient(
        weight=d_z @ key.transpose(1, 2) / count,
        bias=d_z.sum(dim=2, keepdim=True) / count,
        scale=2.0 * (error * normal).sum(dim=2, keepdim=True) / count,
        shift=2.0 * error.sum(dim=2, keepdim=True) / count,
    )


def _normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` (B, C, N) with mean 0 and variance 1 over the channels, and the standard deviation (B, 1, N)."""
    centred = x - x.mean(dim=1, keepdim=True)
    deviation = (centred.square().mean(dim=1, keepdim=True) + EPSILON).sqrt()
    return centred / deviation, deviation
