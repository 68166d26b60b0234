"""What training makes small."""

from __future__ import annotations

import torch
from torch import Tensor

from gdfusion_ros.labels import OCC3D, LabelSet

# Camera-visible voxels of each label in a frame, mean of 24 sequences of the made-up world.
_WORLD_COUNTS = {
    "barrier": 25.0, "bicycle": 43.0, "bus": 80.0, "car": 343.0, "motorcycle": 43.0, "pedestrian": 91.0,
    "traffic_cone": 37.0, "truck": 100.0, "driveable_surface": 1218.0, "sidewalk": 677.0, "terrain": 877.0,
    "manmade": 890.0, "vegetation": 802.0, "free": 21535.0,
}  # fmt: skip
HIDDEN_WEIGHT = 0.5
"""Of a voxel that is hidden now and was seen before; a visible one has 1, others less than this."""
MOVING = 0.5
"""Metres per second from which a voxel counts as moving."""


def world_class_weights(labels: LabelSet = OCC3D, rarity: float = 0.25) -> Tensor:
    """Cross-entropy weights by label: the ``rarity``-th power of how much rarer than free space a class is."""
    weights = torch.ones(len(labels.labels))
    for name, count in _WORLD_COUNTS.items():
        weights[labels.id(name)] = (_WORLD_COUNTS["free"] / count) ** rarity
    return weights


def occupancy_loss(
    logits: Tensor, labels: Tensor, weight: Tensor, class_weights: Tensor, free: int = OCC3D.free
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and soft Jaccard loss of logits (B, K, Y, X, Z).

    ``labels`` and ``weight`` are (B, Y, X, Z), ``class_weights`` one for each label. With a channel more than
    labels, the first stands for nothing and channel k for label k - 1. The Jaccard loss (Rahman and Wang 2016) is
    1 - intersection / union with probabilities for counts, a mean over the classes in ``labels`` that are not free:
    it asks for what mIoU counts, however rare a class is, and only of voxels that are or were seen.
    """
    chosen = weight > 0
    picked = logits.movedim(1, -1)[chosen].float()
    void = picked.shape[1] - len(class_weights)
    label, weight = labels[chosen], weight[chosen]
    target = label + void
    cross_entropy = torch.nn.functional.cross_entropy(picked, target, reduction="none")
    scale = weight * class_weights[label]
    cross_entropy = (cross_entropy * scale).sum() / scale.sum()

    weight = weight * (weight >= HIDDEN_WEIGHT)
    probabilities = picked.softmax(dim=-1) * weight[:, None]
    classes = picked.shape[1]
    own = probabilities.gather(1, target[:, None])[:, 0]
    intersection = probabilities.new_zeros(classes).index_add(0, target, own)
    truth = probabilities.new_zeros(classes).index_add(0, target, weight)
    union = probabilities.sum(dim=0) + truth - intersection
    present = truth > 0
    present[free + void] = False
    jaccard = 1 - (intersection[present] / union[present]).mean() if present.any() else picked.sum() * 0
    return cross_entropy, jaccard


def expected_logits(class_weights: Tensor, labels: LabelSet = OCC3D) -> Tensor:
    """(L,) logits of a network that knows only how often each label occurs in the world and what it weighs."""
    shares = torch.full((len(labels.labels),), 1e-3)
    for name, count in _WORLD_COUNTS.items():
        shares[labels.id(name)] = count
    return (shares * class_weights).log() - (shares * class_weights).sum().log()


def depth_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of depth (M, D, h, w) with the spread of depths (M, h, w, D) in each cell, a mean over cells."""
    inside = target.sum(dim=-1)
    entropy = -(target * probabilities.movedim(1, -1).float().clamp_min(1e-6).log()).sum(dim=-1)
    return entropy.sum() / inside.sum().clamp_min(1.0)


def semantics_loss(logits: Tensor, target: Tensor, class_weights: Tensor) -> Tensor:
    """Cross-entropy of logits (M, L, h, w) with the spread of labels (M, h, w, L) in each cell, a weighted mean."""
    target = target * class_weights
    entropy = -(target * logits.movedim(1, -1).log_softmax(dim=-1)).sum()
    return entropy / target.sum().clamp_min(1.0)


def flow_loss(velocity: Tensor, target: Tensor, labels: Tensor, weight: Tensor, free: int) -> Tensor:
    """Mean end-point distance in m/s of velocities (B, Y, X, Z, 2): of what moves, and half as much of what stands."""
    error = (velocity.float() - target).square().sum(dim=-1).add(1e-4).sqrt()
    counted = (weight > 0) & (labels != free)
    moving = counted & (target.abs().amax(dim=-1) > MOVING)
    still = counted & ~moving
    return (error * moving).sum() / moving.sum().clamp_min(1) + 0.5 * (
        error * still
    ).sum() / still.sum().clamp_min(1)
