"""ALOcc's head: every class is a vector, and a voxel's logit is its product with it (spec 5); and its flow branch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdfusion_ros.errors import UserError
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.layers import upsample
from gdfusion_ros.model.fusion.warp import flat_positions, sample_history
from gdfusion_ros.model.watch import Watch

LAYERS = slice(3, 9)
"""Layers of voxels, from 0.2 m to 2.6 m up, that the flow branch compares between frames."""
REACH, DILATION = 5, 2
"""Cells of half resolution that the matching window reaches to each side, and their spacing."""
TEMPERATURE = 0.1
UNSEEN_COST = 5.0
BINS, LOWEST, STEP = 88, -22.0, 0.5
"""Metres per second: bins of the flow's components."""


class MaskHead(nn.Module):
    """Class vectors made from learned queries, and the logits they give."""

    def __init__(self, channels: int, classes: int, context_channels: int) -> None:
        super().__init__()
        self.queries = nn.Embedding(classes, channels)
        self.norm = nn.LayerNorm(channels)
        self.class_vectors = _mlp(channels, channels)
        # For the training's auxiliary loss on the image plane; nothing at inference (spec 12.16).
        self.image_class_vectors = _mlp(channels, context_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, Y, X, Z) to logits (B, classes, Y, X, Z)."""
        vectors = self.class_vectors(self.norm(self.queries.weight))
        return (vectors @ x.flatten(2)).unflatten(2, x.shape[2:])

    def image_logits(self, context: Tensor) -> Tensor:
        """(B * N, context_channels, h, w) to logits (B * N, classes, h, w) of what the pixels show; for training."""
        vectors = self.image_class_vectors(self.norm(self.queries.weight))
        return (vectors @ context.flatten(2)).unflatten(2, context.shape[2:])


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs)
    )


@dataclass(frozen=True)
class FlowOutput:
    """What the flow branch says about a batch of frames."""

    velocity: Tensor
    """(B, Y, X, Z, 2) metres per second along x and y of the grid."""
    birdseye: Tensor
    """(B, channels, Y, X) to be carried on."""


class FlowBranch(nn.Module):
    """Velocities of voxels, from how the bird's-eye view moved since the frame before (baselines-spec.md 3.2)."""

    def __init__(self, channels: int, grid: VoxelGrid) -> None:
        super().__init__()
        if grid.shape[2] <= LAYERS.start:
            raise UserError(
                f"the flow head compares layers {LAYERS.start + 1} to {LAYERS.stop} of a grid; this has {grid.shape[2]}"
            )
        self.grid = grid
        window = (2 * REACH + 1) ** 2
        self.cost_net = nn.Sequential(
            nn.Conv2d(window, channels // 2, 3, padding=1), nn.BatchNorm2d(channels // 2)
        )
        self.post_conv = nn.Sequential(nn.Conv3d(channels + channels // 2, channels, 3, padding=1), nn.ReLU())
        self.predictor = nn.Sequential(
            nn.Conv3d(channels, 2 * channels, 1), nn.ReLU(), nn.Conv3d(2 * channels, 2 * BINS, 1)
        )

    def forward(
        self, x: Tensor, previous: Tensor | None, previous_from_current: Tensor, watch: Watch
    ) -> FlowOutput:
        """Velocities from the encoder's output (B, channels, Y, X, Z).

        ``previous`` (B, channels, Y, X) is the last frame's bird's-eye view, None at a sequence's start;
        ``previous_from_current`` (B, 4, 4) ego motion.
        """
        with torch.no_grad():
            birdseye = x[..., LAYERS].mean(dim=-1)
            history = birdseye if previous is None else previous
            moved = sample_history(history, flat_positions(previous_from_current, self.grid))
            half = (x.shape[2] // 2, x.shape[3] // 2)
            cost = matching_cost(upsample(birdseye, half, True), upsample(moved, half, True))
        feature = self.cost_net(cost)
        # Oddity: no activation here, as published.
        spread = upsample(feature, x.shape[2:4], align_corners=True)[..., None].expand(
            -1, -1, -1, -1, x.shape[4]
        )
        logits = self.predictor(self.post_conv(torch.cat([spread, x], dim=1)))
        components = expected_velocity(logits)
        watch.show(
            flow_bev=birdseye, flow_bev_history=moved, flow_cost_volume=cost, flow_cost_feature=feature
        )
        watch.show(flow_bin_logits=logits, flow_raw=components)
        # Oddity (baselines-spec 3.2): the network's first component is y, as its labels were in training.
        return FlowOutput(components.flip(-1), birdseye.detach())


def matching_cost(current: Tensor, history: Tensor) -> Tensor:
    """(B, window, h, w): softmax over where in the history's window each cell of ``current`` (B, C, h, w) fits best."""
    window = 2 * REACH + 1
    reach = REACH * DILATION
    padded = nn.functional.pad(history, (reach, reach, reach, reach))
    # A sum of exactly zero tells that there is nothing: outside the map, or where the warp found nothing.
    nothing = padded.sum(dim=1) == 0
    padded = nn.functional.normalize(padded, dim=1, eps=1e-12)
    own = nn.functional.normalize(current, dim=1, eps=1e-12)
    h, w = current.shape[-2:]
    logits = []
    for row in range(window):
        for column in range(window):
            y, x = row * DILATION, column * DILATION
            fit = (own * padded[:, :, y : y + h, x : x + w]).sum(dim=1) / TEMPERATURE
            logits.append(fit - UNSEEN_COST * nothing[:, y : y + h, x : x + w])
    return torch.stack(logits, dim=1).softmax(dim=1)


def expected_velocity(bin_logits: Tensor) -> Tensor:
    """(B, Y, X, Z, 2) the mean velocity (y, x) over the bins of (B, BINS * 2, Y, X, Z)."""
    shares = bin_logits.unflatten(1, (BINS, 2)).softmax(dim=1)
    centres = LOWEST + STEP * torch.arange(BINS, dtype=shares.dtype, device=shares.device)
    return torch.einsum("bnc...,n->b...c", shares, centres)
