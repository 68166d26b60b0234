"""How cues begin that are plugged into a network: as the average of what is seen now and what was carried on.

A gain that begins at zero learns from the difference between fused and unfused features. With layers of random
numbers that difference is noise for a long time; so they begin with the simplest fusion that makes sense, and without
chance.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gdfusion_ros.model.fusion.motion import MotionFusion
from gdfusion_ros.model.fusion.scene import SceneFusion
from gdfusion_ros.model.fusion.voxel import VoxelFusion


@torch.no_grad()
def begin_as_average(
    voxel: VoxelFusion | None, motion: MotionFusion | None, scene: SceneFusion | None
) -> None:
    """Set the cues' layers: history where ego motion puts it, half of it and half of the present, nothing else."""
    if motion is not None:
        _zero(motion.offset)
    if voxel is not None:
        _zero(voxel.time_embedding[-1])
        for sequence, share in ((voxel.each, 1.0), (voxel.merge, 0.5)):
            convolution = sequence[0]
            _zero(convolution)
            weight = cast(Tensor, convolution.weight)
            outputs = weight.shape[0]
            for part in weight.split(outputs, dim=1):
                part.view(outputs, outputs).copy_(share * torch.eye(outputs))
    if scene is not None:
        for name, parameter in scene.named_parameters():
            if name.split(".")[0] in ("query", "key", "value"):
                parameter.copy_(torch.eye(len(parameter)))
            else:
                parameter.zero_()


@torch.no_grad()
def begin_halfway(gate: nn.Sequential) -> None:
    """Let a gate say one half everywhere; its first layer stays as it is."""
    _zero(gate[-1])


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()
