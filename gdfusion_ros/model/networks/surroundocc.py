"""SurroundOcc, alone and with GDFusion (surroundocc-spec.md 1 to 10): queries of three volumes look into the images.

Voxels lie in the LiDAR frame and have the layout (B, C, X, Y, Z). There is no depth distribution, so the geometry cue
does not apply; motion, voxel and scene cue sit where the three volumes have come together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from gdfusion_ros.errors import UserError
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.backbone import ResNet
from gdfusion_ros.model.blocks.camera_attention import (
    CameraAttention,
    FeedForward,
    Projection,
    image_from_grid,
    project,
)
from gdfusion_ros.model.blocks.layers import ConvNorm
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.fusion.temporal import temporal_fusion
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks.carried import next_state
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

_LEVELS = 3
_MAP_CHANNELS = (512, 1024, 2048)
_NECK_WIDTH = 512
_GROUPS = 16
"""Of the group norms behind 3D convolutions."""
_STORED_LEVELS = 4
"""Level embeddings in the checkpoint; only the first is ever used."""


@dataclass(frozen=True)
class SurroundOccArchitecture:
    """Settings of this family; one number for each of the three volumes, finest first."""

    channels: tuple[int, int, int] = (128, 256, 512)
    layers: tuple[int, int, int] = (1, 3, 6)
    points: tuple[int, int, int] = (2, 4, 8)
    heads: int = 8


class SurroundOcc(nn.Module):
    """Images to voxel logits, each frame for itself or, with a recurrent history, one after the other."""

    Architecture = SurroundOccArchitecture
    PUBLISHED = {
        "backbone.": "img_backbone.",
        "image_neck.": "img_neck.",
        **{
            f"volumes.{level}.{own}": f"pts_bbox_head.{published.format(level)}"
            for level in range(_LEVELS)
            for own, published in (
                ("", "transformer.{}."),
                ("layers.", "transformer.{}.encoder.layers."),
                ("embedding.", "volume_embedding.{}."),
                ("transfer.", "transfer_conv.{}.0."),
            )
        },
        "deblocks.": "pts_bbox_head.deblocks.",
        "heads.": "pts_bbox_head.occ.",
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a: SurroundOccArchitecture = config.architecture
        if config.temporal.uses_geometry:
            raise UserError(
                f"{config.name}: temporal.geometry must be false: SurroundOcc has no depth distribution to fuse"
            )
        # Oddity (surroundocc-spec.md 9.1): points are projected into the padded image, and its padding is looked at.
        self.image_size = config.image.network_size
        self.grid = config.grid.features
        self.backbone = ResNet((3, 4, 23, 3), stride_first=True, deformable_from=3)
        self.image_neck = FeaturePyramid()
        self.volumes = nn.ModuleList(
            CameraVolume(
                coarsened(self.grid, 2**level),
                a.channels[level],
                a.layers[level],
                a.points[level],
                a.heads,
                len(config.cameras),
            )
            for level in range(_LEVELS)
        )
        fine, middle, coarse = a.channels
        self.deblocks = nn.ModuleList(
            [
                smooth(coarse, middle),
                double(middle),
                smooth(middle, fine),
                double(fine),
                smooth(fine, fine // 2),
                double(fine // 2),
                smooth(fine // 2, fine // 4),
            ]
        )
        self.temporal = temporal_fusion(fine, self.grid, config.temporal)
        classes = len(config.labels.labels.labels)
        # Only the last is needed to predict; the others are for the loss on coarser grids.
        self.heads = nn.ModuleList(
            nn.Conv3d(channels, classes, 1, bias=False) for channels in (middle, fine, fine // 2, fine // 4)
        )

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, classes, Y, X, Z) of a batch of frames over the output grid, and the state for the next.

        ``state`` is None at a sequence's start.
        """
        watch = watch or Watch()
        cameras = frame.images.shape[1]
        with watch.stage("image_encoder"):
            maps = self.backbone.maps(frame.images.flatten(0, 1))[1:]
            levels = self.image_neck(maps)
        if watch.on_tensor is not None:
            watch.show(lidar2img=image_from_grid(frame.rig))
        watch.show(input=frame.images, **{f"backbone_{i}": x for i, x in enumerate(maps)})
        watch.show(**{f"fpn_{i}": x for i, x in enumerate(levels)})
        del maps

        volumes = []
        for i, (volume, level) in enumerate(zip(self.volumes, levels, strict=True)):
            with watch.stage(f"volume_{i}"):
                views = ImageLevel(level.unflatten(0, (-1, cameras)), frame, self.image_size)
                volumes.append(volume(views, _of_level(watch, i)))
        del levels
        fine, middle, coarse = volumes
        del volumes

        with watch.stage("decoder"):
            o0 = self.deblocks[0](coarse)
            risen = self.deblocks[1](o0)
            o1 = self.deblocks[2](risen + middle)
            risen_again = self.deblocks[3](o1)
            joined = risen_again + fine
        watch.show(deblock_0=o0, deblock_1=risen, deblock_2=o1, deblock_3=risen_again)
        del fine, middle, coarse, risen, risen_again
        rows_first = joined.transpose(2, 3)
        fused, voxel_state = self.temporal(rows_first, state, frame.motion.previous_from_current, watch)
        with watch.stage("decoder"):
            o2 = self.deblocks[4](fused.voxels.transpose(2, 3))
            doubled = self.deblocks[5](o2)
            o3 = self.deblocks[6](doubled)
            logits = [head(x) for head, x in zip(self.heads, (o0, o1, o2, o3), strict=True)]
        watch.show(deblock_4=o2, deblock_5=doubled, deblock_6=o3)
        watch.show(**{f"logits_{i}": x for i, x in enumerate(logits)})

        new_state = next_state(state, voxel_state, {}, None)
        return NetworkOutput(logits[-1].transpose(2, 3), None, fused.offsets, fused.inside), new_state


class ImageLevel(NamedTuple):
    """One level of the image pyramid, and the frame that it is of."""

    maps: Tensor
    """(B, N, 512, h, w)"""
    frame: NetworkInput
    image_size: tuple[int, int]


class FeaturePyramid(nn.Module):
    """Three maps of the backbone at one width, the coarser added to the finer. No norm, no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            ConvNorm(channels, _NECK_WIDTH, 1, dims=2, bias=True, norm=False, relu=False)
            for channels in _MAP_CHANNELS
        )
        self.fpn_convs = nn.ModuleList(
            ConvNorm(_NECK_WIDTH, _NECK_WIDTH, 3, dims=2, bias=True, norm=False, relu=False)
            for _ in _MAP_CHANNELS
        )

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps at 1/8, 1/16 and 1/32 of the image to as many of 512 channels."""
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            size = merged[i - 1].shape[-2:]
            merged[i - 1] = merged[i - 1] + nn.functional.interpolate(merged[i], size=size, mode="nearest")
        return [smoother(x) for smoother, x in zip(self.fpn_convs, merged, strict=True)]


class CameraVolume(nn.Module):
    """A volume of learned queries, one a cell, that gather what one level of the images shows of them."""

    def __init__(
        self, grid: VoxelGrid, channels: int, layers: int, points: int, heads: int, cameras: int
    ) -> None:
        super().__init__()
        self.shape = grid.shape
        self.register_buffer("points", query_points(grid), persistent=False)
        self.embedding = nn.Embedding(grid.cells, channels)
        self.transfer = nn.Conv2d(_NECK_WIDTH, channels, 1)
        self.level_embeds = nn.Parameter(torch.zeros(_STORED_LEVELS, channels))
        self.cams_embeds = nn.Parameter(torch.zeros(cameras, channels))
        self.layers = nn.ModuleList(VolumeLayer(channels, points, heads) for _ in range(layers))
        # In the published checkpoint, and never used.
        self.reference_points = nn.Linear(channels, 3)

    points: Tensor

    def forward(self, views: ImageLevel, watch: Watch) -> Tensor:
        """(B, C, X, Y, Z)."""
        projection = project(self.points, views.frame.rig, views.image_size)
        size = cast(tuple[int, int], tuple(views.maps.shape[-2:]))
        features = self.transfer(views.maps.flatten(0, 1)).relu().unflatten(0, views.maps.shape[:2])
        tokens = features.flatten(3).transpose(2, 3) + self.cams_embeds[:, None] + self.level_embeds[0]
        x = self.embedding.weight.expand(len(tokens), -1, -1)
        watch.show(hits=projection.visible.sum(dim=1))
        for i, layer in enumerate(self.layers):
            x = layer(x, tokens, size, projection, self.shape, watch if i == 0 else Watch())
        watch.show(volume=x)
        return to_volume(x, self.shape)


class VolumeLayer(nn.Module):
    """Attention into the images, a feed-forward network, and two 3D convolutions that let cells see each other."""

    def __init__(self, channels: int, points: int, heads: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([CameraAttention(channels, heads, points)])
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.ffns = nn.ModuleList([FeedForward(channels, 2 * channels)])
        self.deblock = nn.ModuleList(smooth(channels, channels) for _ in range(2))

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        size: tuple[int, int],
        projection: Projection,
        shape: tuple[int, int, int],
        watch: Watch,
    ) -> Tensor:
        """Queries (B, Q, C) of a volume of ``shape`` (X, Y, Z), unchanged in shape."""
        x = self.attentions[0](x, tokens, size, projection) + x
        watch.show(attention=x)
        x = self.norms[0](x)
        x = self.norms[1](self.ffns[0](x) + x)
        volume = self.deblock[1](self.deblock[0](to_volume(x, shape)))
        x = x + volume.permute(0, 4, 3, 2, 1).flatten(1, 3)
        watch.show(layer=x)
        return x


def coarsened(grid: VoxelGrid, times: int) -> VoxelGrid:
    """The same box with cells that are so many times as large. Raises UserError where that does not come out even."""
    if any(n % times for n in grid.shape):
        raise UserError(f"a grid of {grid.shape} cells cannot be made {times} times coarser")
    x, y, z = (n // times for n in grid.shape)
    dx, dy, dz = (times * d for d in grid.cell_size)
    return VoxelGrid(grid.minimum, (dx, dy, dz), (x, y, z), grid.frame)


def query_points(grid: VoxelGrid) -> Tensor:
    """(Q, 3) cell centres in metres, in the order of the query tables: z slowest, x fastest."""
    # Oddity (spec 9.5): this order is stored in the tables, though volumes are (X, Y, Z).
    axes = [
        (torch.arange(n, dtype=torch.float32) + 0.5) * step + lower
        for n, step, lower in zip(grid.shape, grid.cell_size, grid.minimum, strict=True)
    ]
    z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    return torch.stack([x, y, z], dim=-1).view(-1, 3)


def to_volume(queries: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Queries (B, Q, C), z slowest, as a volume (B, C, X, Y, Z)."""
    x, y, z = shape
    return queries.unflatten(1, (z, y, x)).permute(0, 4, 3, 2, 1)


def smooth(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3x3 convolution with group norm and ReLU."""
    return _normed(nn.Conv3d(inputs, outputs, 3, padding=1, bias=False))


def double(channels: int) -> nn.Sequential:
    """A transposed convolution to twice the size, with group norm and ReLU."""
    return _normed(nn.ConvTranspose3d(channels, channels, 2, 2, bias=False))


def _normed(convolution: nn.Conv3d | nn.ConvTranspose3d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.GroupNorm(_GROUPS, convolution.out_channels), nn.ReLU(inplace=True))


def _of_level(watch: Watch, level: int) -> Watch:
    """A watch that shows tensors under names that end with the level's number."""
    listener = watch.on_tensor
    if listener is None:
        return Watch()
    return Watch(lambda name, tensor: listener(f"{name}_{level}", tensor))
