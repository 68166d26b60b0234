"""Queries in space that look into the cameras which see them (surroundocc-spec.md 4, cotr-spec.md 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gdfusion_ros.model.blocks.cameras import CameraRig, to_image
from gdfusion_ros.model.blocks.deformable import DeformableHeads, deformable_attention
from gdfusion_ros.model.blocks.selection import selected

_NEAREST = 1e-5
"""Metres: what has less depth is not seen."""


class Projection(NamedTuple):
    """Where points in space lie in the images."""

    places: Tensor
    """(B, N, Q, 2): x and y in 0..1 from border to border of the network's image; anything where not visible."""
    visible: Tensor
    """(B, N, Q) bool."""


def project(points: Tensor, rig: CameraRig, image_size: tuple[int, int]) -> Projection:
    """Points (Q, 3) in metres in the grid's frame, projected into all cameras."""
    # The small matrices are worth float64: an error in them moves all points.
    pixels_from_grid = rig.intrinsics.double() @ _camera_from_grid(rig)  # (B, N, 3, 4)
    unmoved = points @ torch.inverse(rig.augmentation).transpose(-1, -2)  # (B, Q, 3)
    homogeneous = torch.cat([unmoved, torch.ones_like(unmoved[..., :1])], dim=-1)
    seen = homogeneous[:, None] @ pixels_from_grid.float().transpose(-1, -2)  # (B, N, Q, 3)
    depth = seen[..., 2]
    pixels = to_image(
        seen[..., :2] / depth.clamp(min=_NEAREST)[..., None], rig.image_rotation, rig.image_translation
    )
    height, width = image_size
    places = pixels / pixels.new_tensor([width, height])
    visible = (depth > _NEAREST) & ((places > 0) & (places < 1)).all(dim=-1)
    return Projection(places, visible)


def image_from_grid(rig: CameraRig) -> Tensor:
    """(B, N, 4, 4): homogeneous network pixels times depth of points in the grid's frame, as SurroundOcc has them."""
    moved = torch.zeros_like(rig.intrinsics, dtype=torch.float64)
    moved[..., 2] = rig.image_translation
    pixels = (rig.image_rotation.double() + moved) @ rig.intrinsics.double() @ _camera_from_grid(rig)
    last = pixels.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*pixels.shape[:2], 1, 4)
    return torch.cat([pixels, last], dim=-2).float()


def _camera_from_grid(rig: CameraRig) -> Tensor:
    """(B, N, 3, 4) float64."""
    rotation = rig.rotation.double().transpose(-1, -2)
    return torch.cat([rotation, -rotation @ rig.translation.double()[..., None]], dim=-1)


def mean_over_cameras(visible: Tensor, look: Callable[[int, int, Tensor], Tensor]) -> Tensor:
    """(B, Q, C): for each query the mean of what the cameras that see it show; zero where none does.

    ``visible`` (B, N, Q); ``look(b, n, index)`` gives (K, C), what camera n of sample b shows to the queries ``index``
    (K,). Cameras are dealt with one by one, and in each only the queries that ``selected`` names.
    """
    averages = []
    for b, sample in enumerate(visible):
        total: Tensor | None = None
        for n, sees in enumerate(sample):
            index = selected(sees)
            shown = look(b, n, index)
            shown = torch.where(sees[index][:, None], shown, torch.zeros_like(shown))
            if total is None:
                total = shown.new_zeros(len(sees), shown.shape[1])
            total = total.index_add(0, index, shown)
        assert total is not None, "a rig has cameras"
        averages.append(total / sample.sum(dim=0).clamp(min=1)[:, None])
    return torch.stack(averages)


class CameraAttention(nn.Module):
    """Deformable attention of queries into the images of the cameras that see them, averaged over these cameras."""

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.deformable_attention = DeformableHeads(channels, heads, points)
        self.output_proj = nn.Linear(channels, channels)

    def forward(
        self, queries: Tensor, tokens: Tensor, size: tuple[int, int], projection: Projection
    ) -> Tensor:
        """(B, Q, C), to be added to the queries.

        ``queries`` (B, Q, C); ``tokens`` (B, N, h * w, C) of the cameras' maps of ``size`` (h, w). The offsets and
        weights are a query's own, the same in all cameras.
        """
        heads = self.deformable_attention
        offsets = heads.offsets(queries) / queries.new_tensor([size[1], size[0]])
        weights = heads.weights(queries)

        def look(b: int, n: int, index: Tensor) -> Tensor:
            value = heads.values(tokens[b, n : n + 1], size)
            places = projection.places[b, n, index][:, None, None, None] + offsets[b, index]
            return deformable_attention([value], places[None], weights[b : b + 1, index])[0]

        # The output's layer comes after the average, so its bias reaches also what no camera sees.
        result: Tensor = self.output_proj(mean_over_cameras(projection.visible, look))
        return result


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them; entries ``layers.0.0`` and ``layers.1``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(channels, hidden), nn.ReLU()), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels), to be added to ``x``."""
        result: Tensor = self.layers(x)
        return result
