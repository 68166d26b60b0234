"""COTR's transformer on the compact grid: cells look at each other and into the cameras (cotr-spec.md 5)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.camera_attention import CameraAttention, FeedForward, Projection, project
from gdfusion_ros.model.blocks.cameras import CameraRig
from gdfusion_ros.model.blocks.deformable import DeformableHeads, deformable_attention
from gdfusion_ros.model.watch import Watch

HEADS = 8
VOLUME_POINTS = 4
CAMERA_POINTS = 8


class VolumeAttention(DeformableHeads):
    """Deformable attention of queries into a volume."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, HEADS, VOLUME_POINTS, dims=3)
        self.output_proj = nn.Linear(channels, channels)

    def forward(
        self, queries: Tensor, tokens: Tensor, references: Tensor, spatial: tuple[int, int, int]
    ) -> Tensor:
        """(B, Q, C), to be added to the queries.

        ``queries`` (B, Q, C) with their positions; ``tokens`` (B, n, C) of a volume of n = prod(``spatial``) cells,
        the last axis fastest; ``references`` (Q, 3) places whose components go with the axes from the last to the
        first.
        """
        sizes = references.new_tensor(list(reversed(spatial)))
        places = references[:, None, None, None] + self.offsets(queries) / sizes
        seen = deformable_attention([self.values(tokens, spatial)], places, self.weights(queries))
        result: Tensor = self.output_proj(seen)
        return result


class OccEncoderLayer(nn.Module):
    """Attention among the cells, attention into the cameras, a feed-forward network; a norm behind each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                VolumeAttention(channels),
                CameraAttention(channels, HEADS, CAMERA_POINTS),
            ]
        )
        self.ffns = nn.ModuleList([FeedForward(channels, 2 * channels)])
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        spatial: tuple[int, int, int],
        tokens: Tensor,
        size: tuple[int, int],
        projection: Projection,
        watch: Watch,
    ) -> Tensor:
        """Queries (B, n, C) of the cells of a volume of ``spatial`` (Y, X, Z), unchanged in shape.

        ``positions`` (n, C); ``references`` (n, 3) where each cell looks around, see ``VolumeAttention``; ``tokens``
        (B, N, h * w, C) of the cameras' maps of ``size`` (h, w).
        """
        x = queries + self.attentions[0](queries + positions, queries, references, spatial)
        watch.show(encoder_self=x)
        x = self.norms[0](x)
        x = x + self.attentions[1](x, tokens, size, projection)
        watch.show(encoder_cross=x)
        x = self.norms[1](x)
        return cast(Tensor, self.norms[2](x + self.ffns[0](x)))


class OccEncoder(nn.Module):
    """One layer on the queries of the compact grid, with the positions and references that belong to it."""

    def __init__(
        self, grid: VoxelGrid, compact: VoxelGrid, channels: int, cameras: int, corrected: bool
    ) -> None:
        """``grid``: the full one, which sizes the stored position tables; ``corrected``: see ``_references``."""
        super().__init__()
        columns, rows, layers = grid.shape
        wide = 3 * channels // 8
        self.spatial = (compact.shape[1], compact.shape[0], compact.shape[2])
        self.row_embed = nn.Embedding(rows, wide)
        self.col_embed = nn.Embedding(columns, wide)
        self.tub_embed = nn.Embedding(layers, channels - 2 * wide)
        self.level_embeds = nn.Parameter(torch.zeros(1, channels))
        self.cams_embeds = nn.Parameter(torch.zeros(cameras, channels))
        self.layer = OccEncoderLayer(channels)
        metric, places = _references(compact, corrected)
        self.register_buffer("metric", metric, persistent=False)
        self.register_buffer("places", places, persistent=False)

    metric: Tensor
    places: Tensor

    def forward(
        self, volume: Tensor, features: Tensor, rig: CameraRig, image_size: tuple[int, int], watch: Watch
    ) -> Tensor:
        """Volume (B, C, Z, Y, X) on the compact grid and image features (B, N, C, h, w) to (B, C, Z, Y, X)."""
        queries = volume.permute(0, 3, 4, 2, 1).flatten(1, 3)
        projection = project(self.metric, rig, image_size)
        embeddings = self.cams_embeds[:, None] + self.level_embeds
        tokens = features.flatten(3).transpose(2, 3) + embeddings
        watch.show(
            query=queries,
            reference_2d=projection.places.transpose(0, 1)[..., None, :],
            reference_mask=projection.visible.transpose(0, 1)[..., None].float(),
        )
        size = cast(tuple[int, int], tuple(features.shape[-2:]))
        positions = self._positions()
        encoded: Tensor = self.layer(
            queries, positions, self.places, self.spatial, tokens, size, projection, watch
        )
        watch.show(encoder_out=encoded)
        return encoded.unflatten(1, self.spatial).permute(0, 4, 3, 1, 2)

    def _positions(self) -> Tensor:
        """(n, C): codes of row, column and layer of each query, side by side."""
        y, x, z = self.spatial
        parts = [
            self.row_embed.weight[:y, None, None].expand(-1, x, z, -1),
            self.col_embed.weight[None, :x, None].expand(y, -1, z, -1),
            self.tub_embed.weight[None, None, :z].expand(y, x, -1, -1),
        ]
        return torch.cat(parts, dim=-1).flatten(0, 2)


def _references(grid: VoxelGrid, corrected: bool) -> tuple[Tensor, Tensor]:
    """For each query its point in metres (n, 3), and its place (n, 3) in the volume (z, x, y in 0..1).

    Published (cotr-spec.md 12.1 to 12.3): the points are enumerated z, x, y while the queries are y, x, z, so a cell
    is given another cell's point; and the metres themselves, unordered, are taken for the place. ``corrected`` gives
    each cell its own point and place.
    """
    x, y, z = (
        torch.arange(n, dtype=torch.float32) * step + (lower + step / 2)
        for n, step, lower in zip(grid.shape, grid.cell_size, grid.minimum, strict=True)
    )
    if corrected:
        rows, columns, layers = torch.meshgrid(y, x, z, indexing="ij")
        metric = torch.stack([columns, rows, layers], dim=-1).view(-1, 3)
        share = (metric - torch.tensor(grid.minimum)) / (
            torch.tensor(grid.maximum) - torch.tensor(grid.minimum)
        )
        return metric, share[:, [2, 0, 1]]
    layers, columns, rows = torch.meshgrid(z, x, y, indexing="ij")
    metric = torch.stack([columns, rows, layers], dim=-1).view(-1, 3)
    return metric, metric.clone()
