"""FB-Occ's backward projection: a bird's-eye view that looks back into the images (spec 3.6).

One encoder layer: deformable attention within the view, then depth-aware attention into the cameras, then a small
feed-forward network, each with a residual and a layer norm behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.camera_attention import FeedForward, mean_over_cameras
from gdfusion_ros.model.blocks.cameras import CameraRig, to_image
from gdfusion_ros.model.blocks.deformable import DeformableHeads, deformable_attention
from gdfusion_ros.model.config import DepthBins

_NEAREST = 1e-5
"""Metres: what has less depth is not seen; and as a share of the image, what is nearer to its border."""


@dataclass(frozen=True)
class BackwardProjectionConfig:
    """Sizes of the backward projection."""

    heads: int = 8
    self_points: int = 4
    """Points that a query looks at within the bird's-eye view."""
    pillar_heights: tuple[float, ...] = (-0.2, 1.4, 3.0, 4.6)
    """Metres: where on its pillar a query looks into the cameras."""
    points_per_height: int = 2
    cameras: int = 6
    """Cameras of the published weights: they hold an embedding for each, which the network multiplies by zero."""


class BackwardProjection(nn.Module):
    """Refines the bird's-eye view of lifted voxels by what the images show at each of its cells."""

    def __init__(
        self, config: BackwardProjectionConfig, channels: int, grid: VoxelGrid, bins: DepthBins
    ) -> None:
        super().__init__()
        self.grid, self.bins = grid, bins
        columns, rows = grid.shape[:2]
        self.bev_embedding = nn.Embedding(rows * columns, channels)
        self.row_embedding = nn.Embedding(rows, channels // 2)
        self.column_embedding = nn.Embedding(columns, channels // 2)
        self.self_attention = SelfAttention(channels, config.heads, config.self_points)
        self.cross_attention = DepthAwareAttention(channels, config)
        self.feed_forward = FeedForward(channels, 4 * channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        # In the published weights, but multiplied by zero there (spec 12.16).
        self.camera_embeddings = nn.Parameter(torch.zeros(config.cameras, channels), requires_grad=False)

    def forward(
        self, voxels: Tensor, context: Tensor, geometry: Tensor, rig: CameraRig, image_size: tuple[int, int]
    ) -> Tensor:
        """The refined view (B, C, Y, X).

        ``voxels`` (B, C, Y, X, Z) lifted; ``context`` (B, N, C, h, w); ``geometry`` (B, N, D, h, w) depth weights.
        """
        columns, rows = self.grid.shape[:2]
        queries = voxels.mean(dim=-1).flatten(2).transpose(1, 2) + self.bev_embedding.weight
        position = torch.cat(
            [
                self.column_embedding.weight[None].expand(rows, -1, -1),
                self.row_embedding.weight[:, None].expand(-1, columns, -1),
            ],
            dim=-1,
        ).flatten(0, 1)
        queries = self.norms[0](self.self_attention(queries, position, (rows, columns)))
        anchors = project_pillars(self._pillars(voxels), rig, image_size)
        queries = self.norms[1](
            self.cross_attention(queries, position, context, geometry, anchors, self.bins)
        )
        queries = self.norms[2](queries + self.feed_forward(queries))
        return queries.transpose(1, 2).unflatten(2, (rows, columns))

    def _pillars(self, like: Tensor) -> Tensor:
        """(Q, A, 3) metres of each query's anchors."""
        (columns, rows), cell, minimum = self.grid.shape[:2], self.grid.cell_size, self.grid.minimum
        x = minimum[0] + (torch.arange(columns, device=like.device) + 0.5) * cell[0]
        y = minimum[1] + (torch.arange(rows, device=like.device) + 0.5) * cell[1]
        heights = torch.tensor(self.cross_attention.pillar_heights, device=like.device)
        points = torch.meshgrid(y, x, heights, indexing="ij")
        return torch.stack([points[1], points[0], points[2]], dim=-1).view(-1, len(heights), 3)


@dataclass(frozen=True)
class Anchors:
    """Points of the queries' pillars in the images."""

    places: Tensor
    """(B, N, Q, A, 2): x and y in 0..1 from border to border of the network's image."""
    depths: Tensor
    """(B, N, Q, A) metres along the optical axis."""
    visible: Tensor
    """(B, N, Q) whether the camera sees any of a query's anchors."""


def project_pillars(pillars: Tensor, rig: CameraRig, image_size: tuple[int, int]) -> Anchors:
    """Pillars (Q, A, 3) in metres of the grid's frame, seen by all cameras."""
    points = pillars.flatten(0, 1) @ torch.inverse(rig.augmentation).transpose(1, 2)  # (B, Q * A, 3)
    moved = points[:, None] - rig.translation[:, :, None]
    pixels_from_ray = torch.inverse(rig.rotation @ torch.inverse(rig.intrinsics))
    projected = moved @ pixels_from_ray.transpose(-1, -2)
    depths = projected[..., 2]
    pixels = to_image(
        projected[..., :2] / depths.clamp(min=_NEAREST)[..., None], rig.image_rotation, rig.image_translation
    )
    height, width = image_size
    places = pixels / pixels.new_tensor([width, height])
    seen = (depths > _NEAREST) & ((places > _NEAREST) & (places < 1 - _NEAREST)).all(dim=-1)
    shape = (*depths.shape[:2], *pillars.shape[:2])
    return Anchors(places.view(*shape, 2), depths.view(shape), seen.view(shape).any(dim=-1))


class SelfAttention(nn.Module):
    """Deformable attention of the bird's-eye view's cells to each other."""

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads = DeformableHeads(channels, heads, points)
        self.output_proj = nn.Linear(channels, channels)

    def forward(self, queries: Tensor, position: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, Q, C) with the residual; ``queries`` (B, Q, C) row by row, ``position`` (Q, C), ``size`` (Y, X)."""
        rows, columns = size
        y = (torch.arange(rows, device=queries.device) + 0.5) / rows
        x = (torch.arange(columns, device=queries.device) + 0.5) / columns
        cells = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).view(1, -1, 1, 1, 1, 2)
        asking = queries + position
        places = cells + self.heads.offsets(asking) / queries.new_tensor([columns, rows])
        attended = deformable_attention(
            [self.heads.values(queries, size)], places, self.heads.weights(asking)
        )
        result: Tensor = queries + self.output_proj(attended)
        return result


class DepthAwareAttention(nn.Module):
    """Attention of each query into the cameras that see its pillar, weighted by whether the depth there fits.

    Every head looks at ``points_per_height`` places around each anchor; what it reads counts as much as the depth
    distribution of the pixel says that something is at the anchor's distance.
    """

    def __init__(self, channels: int, config: BackwardProjectionConfig) -> None:
        super().__init__()
        self.pillar_heights = config.pillar_heights
        self.repeats = config.points_per_height
        self.heads = DeformableHeads(channels, config.heads, self.repeats * len(config.pillar_heights))
        self.output_proj = nn.Linear(channels, channels)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        context: Tensor,
        geometry: Tensor,
        anchors: Anchors,
        bins: DepthBins,
    ) -> Tensor:
        """(B, Q, C) with the residual.

        ``queries`` (B, Q, C); ``position`` (Q, C); ``context`` (B, N, C, h, w); ``geometry`` (B, N, D, h, w).
        """
        size = (context.shape[-2], context.shape[-1])
        asking = queries + position
        offsets = self.heads.offsets(asking) / queries.new_tensor([size[1], size[0]])
        weights = self.heads.weights(asking)
        tokens = context.flatten(3).transpose(2, 3)

        def look(b: int, n: int, index: Tensor) -> Tensor:
            places, depths = anchors.places[b, n, index], anchors.depths[b, n, index]
            likely = depth_weights(geometry[b, n], places, depths, bins)
            # The points of a head repeat the anchors, anchor by anchor: 0 1 2 3 0 1 2 3.
            # Anchors that the camera does not see are looked at too, where it sees another of the same pillar.
            around = places.repeat(1, self.repeats, 1)[:, None, None] + offsets[b, index]
            counting = weights[b, index] * likely.repeat(1, self.repeats)[:, None, None]
            value = self.heads.values(tokens[b, n : n + 1], size)
            return deformable_attention([value], around[None], counting[None])[0]

        result: Tensor = queries + self.output_proj(mean_over_cameras(anchors.visible, look))
        return result


def depth_weights(geometry: Tensor, places: Tensor, depths: Tensor, bins: DepthBins) -> Tensor:
    """(Q, A): how likely something is at each anchor's depth, read bilinearly off the depth weights (D, h, w).

    ``places`` (Q, A, 2) in 0..1 of the image; ``depths`` (Q, A) metres.
    """
    # The reference's attention without CUDA leaves this weighting out (spec 12.9); its published numbers have it.
    channel = ((depths - bins.lower) / bins.step).floor().clamp(0, bins.count - 1).long()
    sampled = torch.nn.functional.grid_sample(
        geometry[None], 2 * places[None] - 1, mode="bilinear", padding_mode="zeros", align_corners=False
    )[0]
    return sampled.gather(0, channel[None])[0]
