"""Deformable attention in the plane and in space, and deformable convolution, in plain torch.

Both read a feature map at learned, fractional places. What is read is interpolated linearly between the four
(eight) cells around a place, and counts as zero outside the map. Work is done in slices, so that the memory
besides inputs and outputs stays below ``SLICE_BYTES`` whatever the number of queries or pixels is (without
gradients; with them, torch keeps what it needs for the backward pass).

Sources: Deformable DETR (arXiv 2010.04159) for the attention, Deformable ConvNets v1 and v2 (arXiv
1703.06211, 1811.11168) for the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

SLICE_BYTES = 64 * 2**20
"""Upper bound on the intermediate tensors of one slice."""


def deformable_attention(
    values: Sequence[Tensor], locations: Tensor, weights: Tensor, slice_bytes: int = SLICE_BYTES
) -> Tensor:
    """For each query and head, the weighted sum of the values at the given places: (B, Q, heads * C).

    ``values``: one map (B, heads, C, H, W) or volume (B, heads, C, D, H, W) for each level. ``locations``
    (B, Q, heads, levels, P, 2 or 3): 0..1 from border to border of the map, the components in the order of
    ``grid_sample``, that is the map's last axis first. ``weights`` (B, Q, heads, levels, P).
    """
    batch, heads, channels = values[0].shape[:3]
    queries, points = locations.shape[1], locations.shape[4]
    output = []
    for part in _slices(queries, batch * heads * channels * points * values[0].element_size(), slice_bytes):
        place, weight = locations[:, part], weights[:, part]
        total: Tensor | None = None
        for level, value in enumerate(values):
            # (B * heads, C, q, P)
            sampled = _sample(value.flatten(0, 1), place[:, :, :, level].transpose(1, 2).flatten(0, 1))
            summed = (sampled * weight[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(dim=-1)
            total = summed if total is None else total + summed
        assert total is not None, "deformable attention needs at least one level"
        output.append(total.view(batch, heads * channels, -1).transpose(1, 2))
    return torch.cat(output, dim=1) if output else weights.new_zeros(batch, 0, heads * channels)


class DeformableHeads(nn.Module):
    """The learned part of deformable attention: the values, where a query looks, how much that counts."""

    def __init__(self, channels: int, heads: int, points: int, dims: int = 2, levels: int = 1) -> None:
        super().__init__()
        self.heads, self.points, self.dims, self.levels = heads, points, dims, levels
        self.value_proj = nn.Linear(channels, channels)
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * dims)
        self.attention_weights = nn.Linear(channels, heads * levels * points)

    def values(self, tokens: Tensor, spatial: tuple[int, ...]) -> Tensor:
        """Values (B, heads, C / heads, *spatial) of tokens (B, prod(spatial), C), the last axis fastest."""
        projected: Tensor = self.value_proj(tokens)
        return projected.transpose(1, 2).reshape(len(tokens), self.heads, -1, *spatial)

    def offsets(self, queries: Tensor) -> Tensor:
        """Offsets (B, Q, heads, levels, P, dims) of queries (B, Q, C), in cells of the level looked at."""
        shape = (self.heads, self.levels, self.points, self.dims)
        result: Tensor = self.sampling_offsets(queries)
        return result.view(*queries.shape[:2], *shape)

    def weights(self, queries: Tensor) -> Tensor:
        """Weights (B, Q, heads, levels, P) of queries (B, Q, C); those of one query and head sum to 1."""
        scores: Tensor = self.attention_weights(queries)
        shares = scores.view(*queries.shape[:2], self.heads, self.levels * self.points).softmax(dim=-1)
        return shares.view(*queries.shape[:2], self.heads, self.levels, self.points)


class DeformableConv2d(nn.Conv2d):
    """A k x k convolution of stride 1 whose taps move by learned offsets and, with ``masks`` (v2), fade.

    Offsets and masks come from an ordinary convolution of the same input, ``conv_offset``: 2 k k channels
    (y, x) by tap, taps row by row, then k k channels whose sigmoid is the mask.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, groups: int = 1, masks: bool = True
    ) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        learned = (3 if masks else 2) * kernel * kernel
        self.masks = masks
        self.conv_offset = nn.Conv2d(inputs, learned, kernel, padding=kernel // 2)
        # An untrained layer begins with its taps in place.
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        learned = self.conv_offset(x)
        taps = self.weight.shape[-1] ** 2
        mask = learned[:, 2 * taps :].sigmoid() if self.masks else None
        return deformable_conv2d(x, learned[:, : 2 * taps], mask, self.weight, self.groups)


def deformable_conv2d(
    x: Tensor,
    offsets: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    groups: int = 1,
    slice_bytes: int = SLICE_BYTES,
) -> Tensor:
    """A convolution of stride 1 and zero padding k // 2 with moved taps: (B, outputs, h, w).

    ``x`` (B, inputs, h, w); ``offsets`` (B, 2 k k, h, w) in pixels, (y, x) interleaved by tap; ``mask``
    (B, k k, h, w) or None for ones; ``weight`` (outputs, inputs / groups, k, k). No bias.
    """
    batch, inputs, height, width = x.shape
    outputs, kernel = weight.shape[0], weight.shape[-1]
    taps, pixels = kernel * kernel, height * width
    kernels = weight.view(groups, outputs // groups, -1)
    result = x.new_empty(batch, outputs, pixels) if not torch.is_grad_enabled() else None
    images = []
    for image in range(batch):
        places = _tap_places(offsets[image], height, width, kernel)
        factors = None if mask is None else mask[image].view(taps, pixels)
        columns = []
        for part in _slices(pixels, inputs * taps * x.element_size(), slice_bytes):
            sampled = _sample(x[image : image + 1], places[None, :, part])[0]  # (inputs, taps, p)
            if factors is not None:
                sampled = sampled * factors[:, part]
            convolved = (kernels @ sampled.view(groups, -1, sampled.shape[-1])).flatten(0, 1)
            if result is not None:
                result[image, :, part] = convolved
            else:
                columns.append(convolved)
        if result is None:
            images.append(torch.cat(columns, dim=1))
    result = torch.stack(images) if result is None else result
    return result.view(batch, outputs, height, width)


def _tap_places(offsets: Tensor, height: int, width: int, kernel: int) -> Tensor:
    """Places (taps, h * w, 2), (x, y) in 0..1 from border to border, of every tap of every pixel."""
    taps = kernel * kernel
    moved = offsets.view(taps, 2, height, width)
    reach = torch.arange(kernel, device=offsets.device, dtype=offsets.dtype) - kernel // 2
    rows = torch.arange(height, device=offsets.device, dtype=offsets.dtype)
    columns = torch.arange(width, device=offsets.device, dtype=offsets.dtype)
    y = moved[:, 0] + reach.repeat_interleave(kernel)[:, None, None] + rows[None, :, None]
    x = moved[:, 1] + reach.repeat(kernel)[:, None, None] + columns[None, None, :]
    return torch.stack([(x + 0.5) / width, (y + 0.5) / height], dim=-1).view(taps, height * width, 2)


def _sample(maps: Tensor, places: Tensor) -> Tensor:
    """Maps (N, C, ...) of 2 or 3 dimensions at places (N, Q, P, 2 or 3) in 0..1, as (N, C, Q, P)."""
    grid = 2.0 * places - 1.0
    if places.shape[-1] == 3:
        return nn.functional.grid_sample(
            maps, grid[:, :, :, None], mode="bilinear", padding_mode="zeros", align_corners=False
        ).squeeze(-1)
    return nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _slices(count: int, bytes_each: int, slice_bytes: int) -> Iterator[slice]:
    """Slices of ``range(count)`` whose intermediate tensors, ``bytes_each`` an item, stay within the bound."""
    # The sampled values and their product with the weights exist at the same time.
    step = max(1, slice_bytes // (2 * max(bytes_each, 1)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
