"""Deformable attention and convolution against loops that follow the definition literally."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from gdfusion_ros.model.blocks.deformable import (
    DeformableConv2d,
    DeformableHeads,
    deformable_attention,
    deformable_conv2d,
)


def interpolate(volume: Tensor, place: list[float]) -> Tensor:
    """``volume`` (C, *sizes) at a place in cells (cell centres are whole numbers), zero outside."""
    total = torch.zeros(volume.shape[0], dtype=volume.dtype)
    low = [math.floor(p) for p in place]
    for corner in itertools.product((0, 1), repeat=len(place)):
        cell = [a + b for a, b in zip(low, corner, strict=True)]
        if all(0 <= c < n for c, n in zip(cell, volume.shape[1:], strict=True)):
            share = math.prod(1 - abs(p - c) for p, c in zip(place, cell, strict=True))
            total += share * volume[(slice(None), *cell)]
    return total


def attention_by_loops(values: list[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, levels, points, dims = locations.shape
    channels = values[0].shape[2]
    output = torch.zeros(batch, queries, heads, channels, dtype=values[0].dtype)
    for b, q, h, level, p in itertools.product(*map(range, (batch, queries, heads, levels, points))):
        value = values[level][b, h]
        # Components of a location go with the axes from the last to the first.
        place = [
            float(locations[b, q, h, level, p, dims - 1 - axis]) * value.shape[1 + axis] - 0.5
            for axis in range(dims)
        ]
        output[b, q, h] += weights[b, q, h, level, p] * interpolate(value, place)
    return output.flatten(2)


def convolution_by_loops(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, groups: int) -> Tensor:
    batch, _, height, width = x.shape
    outputs, each, kernel, _ = weight.shape
    result = torch.zeros(batch, outputs, height, width, dtype=x.dtype)
    for b, row, column, ky, kx in itertools.product(*map(range, (batch, height, width, kernel, kernel))):
        tap = ky * kernel + kx
        dy, dx = (float(offsets[b, 2 * tap + i, row, column]) for i in range(2))
        place = [row + ky - kernel // 2 + dy, column + kx - kernel // 2 + dx]
        sampled = interpolate(x[b], place) * mask[b, tap, row, column]
        for o in range(outputs):
            group = o // (outputs // groups)
            result[b, o, row, column] += weight[o, :, ky, kx] @ sampled[group * each : (group + 1) * each]
    return result


@pytest.mark.parametrize("sizes", [[(5, 7), (3, 4)], [(4, 3, 5), (2, 5, 3)]], ids=["maps", "volumes"])
def test_attention_over_two_levels_is_the_sum_of_its_definition(sizes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    values = [torch.randn(2, 3, 4, *size, dtype=torch.float64) for size in sizes]
    locations = torch.rand(2, 6, 3, 2, 2, len(sizes[0]), dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(2, 6, 3, 2, 2, dtype=torch.float64)

    output = deformable_attention(values, locations, weights)

    assert torch.allclose(output, attention_by_loops(values, locations, weights), atol=1e-12)


def test_attention_in_slices_of_one_query_is_the_attention_at_once() -> None:
    torch.manual_seed(1)
    values = [torch.randn(1, 2, 3, 6, 5)]
    locations, weights = torch.rand(1, 9, 2, 1, 4, 2), torch.rand(1, 9, 2, 1, 4)

    assert torch.equal(
        deformable_attention(values, locations, weights, slice_bytes=1),
        deformable_attention(values, locations, weights),
    )


def test_attention_without_queries_gives_nothing() -> None:
    output = deformable_attention(
        [torch.randn(1, 2, 3, 4, 4)], torch.rand(1, 0, 2, 1, 4, 2), torch.rand(1, 0, 2, 1, 4)
    )

    assert output.shape == (1, 0, 6)


def test_weights_of_one_query_and_head_sum_to_one_over_all_levels() -> None:
    heads = DeformableHeads(channels=8, heads=2, points=3, dims=3, levels=2)
    queries = torch.randn(1, 5, 8)

    assert torch.allclose(heads.weights(queries).sum(dim=(-1, -2)), torch.ones(1, 5, 2))
    assert heads.offsets(queries).shape == (1, 5, 2, 2, 3, 3)
    assert heads.values(torch.randn(1, 24, 8), (2, 3, 4)).shape == (1, 2, 4, 2, 3, 4)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_with_moved_taps_is_the_sum_of_its_definition(groups: int) -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    offsets = torch.randn(2, 18, 5, 6, dtype=torch.float64) * 2
    mask = torch.rand(2, 9, 5, 6, dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, 3, 3, dtype=torch.float64)

    output = deformable_conv2d(x, offsets, mask, weight, groups)

    assert torch.allclose(output, convolution_by_loops(x, offsets, mask, weight, groups), atol=1e-12)


def test_convolution_in_slices_of_one_pixel_is_the_convolution_at_once() -> None:
    torch.manual_seed(3)
    x, offsets, mask = torch.randn(2, 4, 5, 6), torch.randn(2, 18, 5, 6), torch.rand(2, 9, 5, 6)
    weight = torch.randn(3, 4, 3, 3)

    whole = deformable_conv2d(x, offsets, mask, weight)

    assert torch.allclose(deformable_conv2d(x, offsets, mask, weight, slice_bytes=1), whole, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(deformable_conv2d(x, offsets, mask, weight, slice_bytes=1), whole, atol=1e-5)


def test_convolution_with_taps_in_place_is_an_ordinary_convolution() -> None:
    torch.manual_seed(4)
    layer = DeformableConv2d(4, 6, groups=2, masks=False)
    x = torch.randn(1, 4, 1, 7)

    assert torch.allclose(layer(x), torch.conv2d(x, layer.weight, padding=1, groups=2), atol=1e-5)


def test_gradients_reach_values_places_and_weights() -> None:
    torch.manual_seed(5)
    layer = DeformableConv2d(2, 2)
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in layer.parameters())

    value = torch.randn(1, 1, 2, 4, 4, requires_grad=True)
    locations = torch.rand(1, 3, 1, 1, 2, 2, requires_grad=True)
    weights = torch.rand(1, 3, 1, 1, 2, requires_grad=True)
    deformable_attention([value], locations, weights).square().sum().backward()
    assert all(tensor.grad is not None for tensor in (value, locations, weights))
