"""What a training begins with beyond chance, and the parts that it adds to a network or leaves away."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from gdfusion_ros.labels import LabelSet
from gdfusion_ros.model.blocks.small import RAY_VALUES
from gdfusion_ros.model.config import ModelConfig, TemporalConfig
from gdfusion_ros.model.fusion.temporal import RecurrentFusion
from gdfusion_ros.model.model import build_network
from gdfusion_ros.model.networks.small import Small
from gdfusion_ros.training.losses import expected_logits

# Share of the made-up world's pixels that show each label, mean of 24 sequences.
_PIXEL_SHARES = {
    "barrier": 0.007, "bicycle": 0.005, "bus": 0.029, "car": 0.129, "motorcycle": 0.012, "pedestrian": 0.022,
    "traffic_cone": 0.001, "truck": 0.031, "driveable_surface": 0.237, "sidewalk": 0.074, "terrain": 0.031,
    "manmade": 0.300, "vegetation": 0.096, "free": 0.027,
}  # fmt: skip
# Metres above the ground that each label reaches at most, on which all of them stand.
_TOPS = {
    "barrier": 1.0, "bicycle": 1.6, "bus": 3.2, "car": 1.6, "motorcycle": 1.6, "pedestrian": 1.8,
    "traffic_cone": 0.8, "truck": 3.2, "driveable_surface": 0.0, "sidewalk": 0.0, "terrain": 0.0,
    "manmade": 9.0, "vegetation": 9.0,
}  # fmt: skip
# Mean and spread over the cells of the world's cameras of the inverse ground depth as ``ray_values`` gives it.
_GROUND_MEAN, _GROUND_SPREAD = 0.79, 0.80
_GROUND_RAY = 3
"""Which of the ray's values that is."""
_ABOVE_ZERO = 2.0
"""Added to normalised values that a ReLU is to leave as they are."""
_STIFF = 50.0
"""Weight before a batch norm, which makes one of it: the first steps of a training cannot turn it into another."""
_ERROR, _ERROR_SHARE = 0.015, 0.3
"""In 1/m and as a share: how far the inverse depth of what a pixel shows is off the ground's."""
_FARTHER = 1.5
"""Power of depth by which far bins begin less likely."""
_CONTEXT = 0.25
"""What a channel of the context begins with, give or take as much."""
_PER_CONTEXT = 6.0
"""Logits of semantics for one of context."""
_PER_VOXEL = 1.2
"""Logits of a voxel's label for one of its lifted channel."""
_UNLIKELY = -3.0
"""Logits of a label at heights where it does not occur; so much is added before the classifier's ReLU."""


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


@torch.no_grad()
def begin_with_evidence(
    network: nn.Module, semantics: nn.Conv2d | None, config: ModelConfig, class_weights: Tensor
) -> None:
    """Let the small network's channels mean something from the first step on, where it has one for each label.

    Channel k of the context is evidence for label k: ``semantics`` reads it as that, and the classifier hands what is
    lifted of it on to the label's logit, together with channel k of the encoder, which begins with what a voxel's
    height says alone. Depths begin around where each ray meets the ground. Random channels would first have to find
    out about each other. Whatever the network learns, it is free to make something else of them.
    """
    if not isinstance(network, Small) or semantics is None:
        return
    labels = config.labels.labels
    hidden, _ = _parameters(network.classifier[0])
    if len(labels.labels) > min(semantics.in_channels, len(hidden)):
        return
    _begin_depth(network)
    _begin_semantics(network, semantics, labels, class_weights)
    _begin_classifier(network, labels, int(config.labels.void_channel))
    _begin_heights(network, labels)


def _begin_depth(network: Small) -> None:
    """Depths around the ground's: what is likeliest for a ray, and by how much, is linear in the ray's value.

    The logit ``i * w(v) - b(v)`` of the inverse depth v has its peak at the ground's inverse depth i, and the curvature
    there of a Gaussian of spread ``s(v) = _ERROR + _ERROR_SHARE * v``, where w' is 1 / s^2 and b' is v / s^2.
    """
    net, mix = network.depth_net, network.depth_net.mix
    weight, bias = _parameters(net.depth_head)
    assert mix.bn is not None
    mix.conv.weight[0] = 0.0
    mix.conv.weight[0, _GROUND_RAY - RAY_VALUES, 1, 1] = _STIFF
    mix.bn.bias[0] = _ABOVE_ZERO
    inverse = 1 / network.depths
    width = _ERROR + _ERROR_SHARE * inverse
    slope = inverse / (_ERROR * width)
    offset = ((width / _ERROR).log() - _ERROR_SHARE * inverse / width) / _ERROR_SHARE**2
    # The ray's value is ten times the inverse depth, and normalised now.
    weight[:, 0, 0, 0] = slope * _GROUND_SPREAD / 10
    bias.copy_(slope * (_GROUND_MEAN - _ABOVE_ZERO * _GROUND_SPREAD) / 10 - offset + _FARTHER * inverse.log())
    net.context_head.weight[:, 0] = 0.0  # to the context it would be one more random number


def _begin_semantics(network: Small, semantics: nn.Conv2d, labels: LabelSet, class_weights: Tensor) -> None:
    """Each label's logit from its own channel; channels begin small and alike, the bias says how often labels occur."""
    count = len(labels.labels)
    weight, bias = _parameters(network.depth_net.context_head)
    weight[:count] *= 0.6
    bias[:count] = _CONTEXT
    weight, bias = _parameters(semantics)
    weight[:, :, 0, 0] = _PER_CONTEXT * torch.eye(*weight.shape[:2])
    shares = torch.full((count,), 1e-4)
    for name, share in _PIXEL_SHARES.items():
        shares[labels.id(name)] = share
    bias.copy_((shares * class_weights).log() - _PER_CONTEXT * _CONTEXT)


def _begin_classifier(network: Small, labels: LabelSet, first: int) -> None:
    """Hidden unit k adds a voxel's evidence for label k and the encoder's, and is all that its logit begins with."""
    count = len(labels.labels)
    own = torch.eye(count)
    weight, bias = _parameters(network.classifier[0])
    lifted = weight.shape[1] // 2
    weight[:count] = 0.0
    weight[:count, :count, 0, 0] = own
    weight[:count, lifted : lifted + count, 0, 0] = _PER_VOXEL * own
    bias[:count] = -_UNLIKELY
    weight, bias = _parameters(network.classifier[2])
    weight[:, :count] = 0.0
    weight[first : first + count, :count, 0, 0] = own
    bias[first : first + count] += _UNLIKELY


def _begin_heights(network: Small, labels: LabelSet) -> None:
    """The encoder's channel of a label begins with whether there is such a thing at that height."""
    grid, count = network.grid, len(labels.labels)
    layers = grid.shape[2]
    weight, bias = _parameters(network.encoder.out)
    bias = bias.view(layers, -1)
    weight.view(layers, -1, weight.shape[1])[:, :count] = 0.0
    bias[:, :count] = 0.0
    bottoms = grid.minimum[2] + grid.cell_size[2] * torch.arange(layers)
    above = bottoms + grid.cell_size[2] > 0.0
    for name, top in _TOPS.items():
        bias[:, labels.id(name)] = torch.where(above & (bottoms <= top), 0.5, _UNLIKELY)
    # Whatever of the ground's layer is seen is ground or stands on it; nothing is seen below.
    bias[bottoms <= 0.0, labels.free] = _UNLIKELY


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that has both."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return layer.weight, layer.bias
