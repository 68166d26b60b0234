"""The colour of each voxel: by its label, its confidence, its motion, or whether it is right."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from gdfusion_ros.labels import UNKNOWN, LabelSet
from gdfusion_ros.viewer.shot import Shot

ColorBy = Literal["label", "confidence", "flow", "error"]
COLOR_BY: tuple[ColorBy, ...] = get_args(ColorBy)

Colors = npt.NDArray[np.uint8]

GREY = (120, 120, 120)
RIGHT, WRONG_CLASS, FALSE_ALARM, MISSED = (90, 170, 90), (240, 200, 40), (220, 50, 50), (60, 90, 230)
"""Colours of ``error``: right, occupied but of another class, nothing there, and something there that was missed."""
ERRORS = {"right": RIGHT, "other class": WRONG_CLASS, "nothing there": FALSE_ALARM, "missed": MISSED}
"""The same by what a legend calls them."""
FULL_SPEED = 10.0
"""Metres per second (or metres of history displacement) at which the colour of ``flow`` is saturated."""


def voxel_colors(shot: Shot, by: ColorBy = "label") -> Colors:
    """(N, 3) RGB of the shot's voxels. What is not known is grey: no confidence or flow in the grid, no truth there.

    By ``error``, voxels that are missing from the prediction show in the colour of what was missed.
    """
    if by == "label":
        return shot.label_set.palette()[shot.labels]
    colors = np.tile(np.array(GREY, dtype=np.uint8), (len(shot.labels), 1))
    if by == "confidence" and shot.confidence is not None:
        return _ramp(shot.confidence / 255.0)
    if by == "flow" and shot.vectors is not None and shot.vectors_valid is not None:
        colors[shot.vectors_valid] = _wheel(shot.vectors[shot.vectors_valid].astype(np.float32))
    if by == "error" and shot.truth is not None:
        free = shot.label_set.free
        here, there = shot.predicted, (shot.truth != free) & (shot.truth != UNKNOWN)
        known = shot.truth != UNKNOWN
        colors[known & here & there] = WRONG_CLASS
        colors[known & here & (shot.labels == shot.truth)] = RIGHT
        colors[known & here & ~there] = FALSE_ALARM
        colors[known & ~here & there] = MISSED
    return colors


def legend(label_set: LabelSet, by: ColorBy = "label") -> dict[str, tuple[int, int, int]]:
    """What each colour means: RGB by name."""
    if by == "label":
        return {label.name: label.color for label in label_set.labels if label.id != label_set.free}
    unknown = {"not known": GREY}
    if by == "error":
        return ERRORS | unknown
    if by == "confidence":
        shares = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
        return {
            f"{share:.0%}": _rgb(color) for share, color in zip(shares, _ramp(shares), strict=True)
        } | unknown
    ways = {"ahead": (1, 0), "to the left": (0, 1), "back": (-1, 0), "to the right": (0, -1), "still": (0, 0)}
    wheel = _wheel(FULL_SPEED * np.array(list(ways.values()), dtype=np.float32))
    return {way: _rgb(color) for way, color in zip(ways, wheel, strict=True)} | unknown


def _rgb(color: Colors) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in color)
    return red, green, blue


def _ramp(share: npt.NDArray[np.floating]) -> Colors:
    """Red over yellow to green for 0 .. 1."""
    red = np.clip(2.0 - 2.0 * share, 0, 1)
    green = np.clip(2.0 * share, 0, 1)
    return (np.stack([red, green, np.full_like(share, 0.2)], axis=-1) * 255).astype(np.uint8)


def _wheel(vectors: npt.NDArray[np.float32]) -> Colors:
    """Hue by direction in the ground plane, saturation by length."""
    hue = (np.arctan2(vectors[:, 1], vectors[:, 0]) / (2 * np.pi)) % 1.0
    saturation = np.clip(np.linalg.norm(vectors[:, :2], axis=1) / FULL_SPEED, 0, 1)
    wave = np.abs(((hue[:, None] + np.array([0.0, 2 / 3, 1 / 3])) % 1.0) * 6.0 - 3.0) - 1.0
    full = np.clip(wave, 0.0, 1.0)
    return ((1.0 - saturation[:, None] * (1.0 - full)) * 235).astype(np.uint8)
