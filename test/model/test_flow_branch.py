"""ALOcc-Flow's matching and its bins."""

from __future__ import annotations

import torch

from gdfusion_ros.model.blocks.mask_head import BINS, DILATION, REACH, expected_velocity, matching_cost

WINDOW = 2 * REACH + 1


def test_the_window_finds_where_a_cell_came_from() -> None:
    torch.manual_seed(0)
    history = torch.randn(1, 16, 24, 26)
    rows, columns = 2, -3  # of the window, from its middle
    current = history.roll((-rows * DILATION, -columns * DILATION), dims=(2, 3))
    best = matching_cost(current, history).argmax(dim=1)[0, 8:-8, 8:-8]
    assert (best == (REACH + rows) * WINDOW + REACH + columns).all()


def test_what_lies_outside_the_map_costs_more_than_what_does_not_fit() -> None:
    torch.manual_seed(0)
    current = torch.randn(1, 16, 24, 26)
    cost = matching_cost(current, current)
    outside, orthogonal = cost[0, 0, 0, 0], cost[0, :, 0, 0].sort().values[WINDOW**2 // 2 + 60]
    assert outside < orthogonal


def test_a_velocity_is_the_mean_over_bins_of_half_a_metre_per_second() -> None:
    logits = torch.full((1, 2 * BINS, 1, 1, 1), -100.0)
    logits[0, 2 * 44], logits[0, 2 * 40 + 1] = 100.0, 100.0  # bin-major: channel 2 * bin + component
    assert expected_velocity(logits).view(2).tolist() == [0.0, -2.0]
    logits[0, 2 * 46] = 100.0
    assert expected_velocity(logits).view(2).tolist() == [0.5, -2.0]
