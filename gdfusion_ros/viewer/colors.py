"""The colour of each voxel: by its label, its confidence, its motion, or whether it is right."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from gdfusion_ros.frame import Occupancy
from gdfusion_ros.labels import UNKNOWN

ColorBy = Literal["label", "confidence", "flow", "error"]
COLOR_BY: tuple[ColorBy, ...] = get_args(ColorBy)

GREY = (120, 120, 120)
RIGHT, WRONG_CLASS, FALSE_ALARM, MISSED = (90, 170, 90), (240, 200, 40), (220, 50, 50), (60, 90, 230)
"""Colours of ``error``: right, occupied but of another class, nothing there, and something there that was missed."""
FULL_SPEED = 10.0
"""Metres per second (or metres of history displacement) at which the colour of ``flow`` is saturated."""


def drawn(occupancy: Occupancy, truth: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.bool_]:
    """(X, Y, Z): the voxels to draw: occupied ones, and with ``truth`` also those that should have been."""
    mask = _occupied(occupancy, occupancy.labels)
    return mask if truth is None else mask | _occupied(occupancy, truth)


def voxel_colors(
    occupancy: Occupancy,
    cells: npt.NDArray[np.int64],
    by: ColorBy = "label",
    truth: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """(N, 3) RGB of the cells (N, 3). What is not known is grey: no confidence or flow in the grid, no truth there."""
    at = tuple(np.asarray(cells).T)
    labels = occupancy.labels[at]
    if by == "label":
        return occupancy.label_set.palette()[labels]
    colors = np.tile(np.array(GREY, dtype=np.uint8), (len(labels), 1))
    if by == "confidence" and occupancy.confidence is not None:
        return _ramp(occupancy.confidence[at] / 255.0)
    if by == "flow" and occupancy.flow is not None:
        valid = occupancy.flow.valid[at]
        colors[valid] = _wheel(occupancy.flow.vectors[at][valid])
    if by == "error" and truth is not None:
        true = truth[at]
        here, there = _occupied(occupancy, labels), _occupied(occupancy, true)
        known = true != UNKNOWN
        colors[known & here & there] = WRONG_CLASS
        colors[known & (labels == true)] = RIGHT
        colors[known & here & ~there] = FALSE_ALARM
        colors[known & ~here & there] = MISSED
    return colors


def _occupied(occupancy: Occupancy, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return (labels != occupancy.label_set.free) & (labels != UNKNOWN)


def _ramp(share: npt.NDArray) -> npt.NDArray[np.uint8]:
    """Red over yellow to green for 0 .. 1."""
    red = np.clip(2.0 - 2.0 * share, 0, 1)
    green = np.clip(2.0 * share, 0, 1)
    return (np.stack([red, green, np.full_like(share, 0.2)], axis=-1) * 255).astype(np.uint8)


def _wheel(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Hue by direction in the ground plane, saturation by length."""
    hue = (np.arctan2(vectors[:, 1], vectors[:, 0]) / (2 * np.pi)) % 1.0
    saturation = np.clip(np.linalg.norm(vectors[:, :2], axis=1) / FULL_SPEED, 0, 1)
    wave = np.abs(((hue[:, None] + np.array([0.0, 2 / 3, 1 / 3])) % 1.0) * 6.0 - 3.0) - 1.0
    full = np.clip(wave, 0.0, 1.0)
    return ((1.0 - saturation[:, None] * (1.0 - full)) * 235).astype(np.uint8)
