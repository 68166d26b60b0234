"""FB-Occ's look back into the images against a loop over queries, cameras, heads and points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks import camera_attention
from gdfusion_ros.model.blocks.backward_projection import (
    BackwardProjection,
    BackwardProjectionConfig,
    DepthAwareAttention,
    depth_weights,
    project_pillars,
)
from gdfusion_ros.model.blocks.cameras import CameraRig
from gdfusion_ros.model.config import DepthBins

BINS = DepthBins(2.0, 6.0, 0.5)
SIZE = (64, 96)
GRID = VoxelGrid((-4.0, -3.0, -1.0), (1.0, 1.0, 3.2), (8, 6, 2))


def bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """(C,) of an image (C, h, w) at a place in cells whose centres are whole numbers; zero outside."""
    total = torch.zeros(len(image))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * image[:, row, column]
    return total


def rig() -> CameraRig:
    """Two cameras that look along +x and -x from the middle of the grid."""
    forward = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    intrinsics = torch.tensor([[60.0, 0.0, 48.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]])
    eye = torch.eye(3)
    return CameraRig(
        intrinsics.expand(1, 2, 3, 3),
        torch.stack([forward, turn @ forward])[None],
        torch.tensor([0.1, 0.0, 1.5]).expand(1, 2, 3),
        torch.diag(torch.tensor([0.9, 0.9, 1.0])).expand(1, 2, 3, 3),
        torch.tensor([0.0, -4.0, 0.0]).expand(1, 2, 3),
        eye[None],
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def test_depth_aware_attention_equals_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BackwardProjectionConfig(heads=2, pillar_heights=(-0.2, 1.4, 3.0), points_per_height=2)
    attention = DepthAwareAttention(8, config)
    for parameter in attention.parameters():
        parameter.normal_()
    projection = BackwardProjection(config, 8, GRID, BINS)
    h, w = 4, 6
    queries, position = torch.randn(1, 48, 8), torch.randn(48, 8)
    context, geometry = torch.randn(1, 2, 8, h, w), torch.rand(1, 2, BINS.count, h, w)
    anchors = project_pillars(projection._pillars(context), rig(), SIZE)
    ours = attention(queries, position, context, geometry, anchors, BINS)[0]
    with monkeypatch.context() as patch:
        # As on an accelerator, which is not asked how many queries a camera sees.
        patch.setattr(camera_attention, "selected", lambda mask: torch.arange(len(mask)))
        everywhere = attention(queries, position, context, geometry, anchors, BINS)[0]
    assert torch.allclose(everywhere, ours, atol=1e-5)
    assert 5 < anchors.visible.sum() < anchors.visible.numel()

    heads = attention.heads
    for q in range(48):
        asking = queries[0, q] + position[q]
        offsets = (heads.sampling_offsets.weight @ asking + heads.sampling_offsets.bias).view(2, 6, 2)
        scores = (heads.attention_weights.weight @ asking + heads.attention_weights.bias).view(2, 6)
        total, cameras = torch.zeros(8), 0
        for n in range(2):
            if not anchors.visible[0, n, q]:
                continue
            cameras += 1
            value = torch.einsum("oc,chw->ohw", heads.value_proj.weight, context[0, n])
            value = value + heads.value_proj.bias[:, None, None]
            for head in range(2):
                weights = scores[head].softmax(dim=0)
                for p in range(6):
                    anchor = p % 3
                    u, v = anchors.places[0, n, q, anchor].tolist()
                    channel = math.floor((float(anchors.depths[0, n, q, anchor]) - 2.0) / 0.5)
                    channel = min(max(channel, 0), BINS.count - 1)
                    likely = bilinear(geometry[0, n, channel : channel + 1], u * w - 0.5, v * h - 0.5)
                    dx, dy = offsets[head, p].tolist()
                    seen = bilinear(value[head * 4 : head * 4 + 4], u * w - 0.5 + dx, v * h - 0.5 + dy)
                    total[head * 4 : head * 4 + 4] += weights[p] * likely * seen
        expected = queries[0, q] + attention.output_proj(total / max(cameras, 1))
        assert torch.allclose(ours[q], expected, atol=1e-4)


def test_pillars_are_projected_as_a_pinhole_camera_does() -> None:
    r = rig()
    point = torch.tensor([3.0, 0.5, 1.0])
    anchors = project_pillars(point.view(1, 1, 3), r, SIZE)
    in_camera = r.rotation[0, 0].T @ (point - r.translation[0, 0])
    u, v = ((r.intrinsics[0, 0] @ in_camera) / in_camera[2])[:2].tolist()
    expected = torch.tensor([0.9 * u / SIZE[1], (0.9 * v - 4) / SIZE[0]])
    assert torch.allclose(anchors.places[0, 0, 0, 0], expected, atol=1e-5)
    assert float(anchors.depths[0, 0, 0, 0]) == pytest.approx(2.9)
    assert anchors.visible[0, :, 0].tolist() == [True, False]


def test_depth_weights_beyond_the_bins_are_those_of_the_last() -> None:
    geometry = torch.rand(BINS.count, 3, 3)
    middle = torch.full((1, 3, 2), 0.5)
    found = depth_weights(geometry, middle, torch.tensor([[0.3, 3.1, 40.0]]), BINS)
    assert torch.allclose(found[0], geometry[[0, 2, BINS.count - 1], 1, 1])


def test_a_query_that_no_camera_sees_keeps_its_own_features() -> None:
    config = BackwardProjectionConfig(heads=2, pillar_heights=(50.0,), points_per_height=1)
    attention = DepthAwareAttention(8, config)
    projection = BackwardProjection(config, 8, GRID, BINS)
    context = torch.randn(1, 2, 8, 4, 6)
    anchors = project_pillars(projection._pillars(context), rig(), SIZE)
    queries = torch.randn(1, 48, 8)
    geometry = torch.rand(1, 2, BINS.count, 4, 6)
    out = attention(queries, torch.zeros(48, 8), context, geometry, anchors, BINS)
    assert not anchors.visible.any()
    assert torch.allclose(out, queries + attention.output_proj.bias)
