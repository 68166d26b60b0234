"""What a training begins with beyond chance, and the parts that it adds to a network or leaves away."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from gdfusion_ros.model.config import ModelConfig, TemporalConfig
from gdfusion_ros.model.fusion.temporal import RecurrentFusion
from gdfusion_ros.model.model import build_network
from gdfusion_ros.training.losses import expected_logits


def semantics_layer(network: nn.Module, labels: int) -> nn.Conv2d | None:
    """A layer from what a network lifts of its images to the logits of ``labels`` labels; None where nothing is."""
    context = getattr(getattr(network, "depth_net", None), "context_head", None)
    return nn.Conv2d(context.out_channels, labels, 1) if isinstance(context, nn.Conv2d) else None


@torch.no_grad()
def begin_with_shares(network: nn.Module, config: ModelConfig, class_weights: Tensor) -> None:
    """Let a classifier begin with how often each label occurs, which would take it its first hundred steps to learn."""
    classifier = getattr(network, "classifier", None)
    last = classifier[-1] if isinstance(classifier, nn.Sequential) else None
    if isinstance(last, nn.Conv2d) and last.bias is not None:
        logits = expected_logits(class_weights, config.labels.labels)
        first = int(config.labels.void_channel)
        last.bias[:first] = logits.min()
        last.bias[first : first + len(logits)] = logits


def without_history(network: nn.Module, config: ModelConfig) -> nn.Module:
    """The same network, its parameters shared, without its temporal cues."""
    temporal = TemporalConfig(history="none", frame_interval=config.temporal.frame_interval)
    single = build_network(dataclasses.replace(config, temporal=temporal))
    for name, child in network.named_children():
        if name not in ("temporal", "geometry_fusion"):
            setattr(single, name, child)
    return single


@torch.no_grad()
def begin_history(network: nn.Module) -> None:
    """Let the cues begin with something that makes sense, so that their gains know at once which way to go.

    The geometry cue takes over the depth head of single frames; the voxel cue is the mean of now and before; the
    motion and scene cues change nothing. Random fusion behind a gain of zero would be a saddle: neither would
    teach the other.
    """
    depth_net = getattr(network, "depth_net", None)
    geometry_head = getattr(depth_net, "geometry_head", None)
    depth_head = getattr(depth_net, "depth_head", None)
    if isinstance(geometry_head, nn.Conv2d) and isinstance(depth_head, nn.Conv2d):
        geometry_head.load_state_dict(depth_head.state_dict())
    temporal = getattr(network, "temporal", None)
    if not isinstance(temporal, RecurrentFusion) or temporal.gain is None or temporal.gain.any():
        return  # cues that have no gains, or have learned already, stay as they are
    if temporal.voxel is not None:
        identity = torch.eye(temporal.voxel.channels)
        _set_pointwise(temporal.voxel.each, identity)
        _set_pointwise(temporal.voxel.merge, torch.cat([identity, identity], dim=1) / 2)
        for parameter in temporal.voxel.time_embedding[-1].parameters():
            parameter.zero_()
    if temporal.motion is not None:
        for parameter in temporal.motion.offset.parameters():
            parameter.zero_()
    if temporal.scene is not None:
        temporal.scene.query.weight.copy_(torch.eye(len(temporal.scene.query.weight)))
        temporal.scene.value.weight.copy_(temporal.scene.key.weight)
        temporal.scene.scale.zero_()


def _set_pointwise(layer: nn.Sequential, weight: Tensor) -> None:
    """Make a convolution of one cell with its norm a product with ``weight``."""
    convolution, norm = layer[0], layer[1]
    assert isinstance(convolution, (nn.Conv2d, nn.Conv3d)), "this is what a pointwise layer begins with"
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert convolution.bias is not None
    convolution.weight.copy_(weight.view_as(convolution.weight))
    convolution.bias.zero_()
    norm.reset_parameters()
