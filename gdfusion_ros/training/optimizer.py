"""How a step changes the weights: the optimiser of a stage and the curve of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from gdfusion_ros.training.recipe import Stage


def learning_rate(stage: Stage, progress: float) -> float:
    """The rate at a share of the stage: up in a line, down in half a cosine to a fiftieth."""
    if progress < stage.warmup:
        return stage.rate * (0.02 + 0.98 * progress / stage.warmup)
    if stage.constant:
        return stage.rate
    down = min((progress - stage.warmup) / (1 - stage.warmup), 1.0)
    return stage.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * down)))


def optimizer(parameters: Mapping[str, nn.Parameter], stage: Stage, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay of biases and norms, and with a rate of its own for the temporal gains."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    gains: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        group = gains if name.split(".")[-1] == "gain" else matrices if parameter.dim() > 1 else vectors
        group.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        {"params": gains, "weight_decay": 0.0, "scale": stage.gain_rate},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=stage.rate)
