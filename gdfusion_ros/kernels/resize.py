"""Bicubic resizing of camera images, to the last bit what Pillow computes; twin: `prepare_view` in
``gdfusion_ros.model.images``."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gdfusion_ros.frame import Image
from gdfusion_ros.kernels.library import allowed, call, instruction_sets

_ONE = 1 << 22
"""What stands for one among the weights; SHIFT in resize.cpp."""
_REACH = 2.0
"""Pixels of the smaller one of the two images that the bicubic filter reaches to either side."""


def usable(image: Image) -> bool:
    """Whether the kernel may be called on an image, here and now.

    Upright ones are left to Pillow, which resizes some of them along the other axis first: the last digits differ.
    """
    return allowed() and image.shape[0] <= image.shape[1] and bool(instruction_sets())


def resize(image: Image, size: tuple[int, int], corner: tuple[int, int], part: tuple[int, int]) -> Image:
    """The ``part`` (width, height) from ``corner`` (left, top) on of an image (H, W, 3) resized to ``size``
    (width, height). What lies outside the part is not computed."""
    image = np.ascontiguousarray(image)
    rows, columns = image.shape[:2]
    first_column, weights_x = _taps(columns, size[0], corner[0], part[0])
    first_row, weights_y = _taps(rows, size[1], corner[1], part[1])
    begin, end = int(first_row[0]), int(first_row[-1]) + weights_y.shape[1]
    out = np.empty((part[1], part[0], 3), np.uint8)
    call(
        "resize",
        *(image[begin:end], end - begin, 3 * columns),
        *(first_column, weights_x, weights_x.shape[1]),
        *(first_row - begin, weights_y, weights_y.shape[1]),
        *(part[0], part[1], out),
    )
    return out


@lru_cache(maxsize=64)
def _taps(
    inputs: int, outputs: int, begin: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """For ``count`` of ``outputs`` pixels of a line, from ``begin`` on: the first of ``inputs`` pixels that each is
    made of (count,), never decreasing, and what that and the ones after it weigh (count, taps)."""
    scale = inputs / outputs
    spread = max(scale, 1.0)  # a smaller image is a mean over more pixels
    taps = min(2 * math.ceil(_REACH * spread) + 1, inputs)
    first, weights = np.zeros(count, np.int64), np.zeros((count, taps), np.int32)
    for i in range(count):
        center = (begin + i + 0.5) * scale
        low = max(int(center - _REACH * spread + 0.5), 0)
        high = min(int(center + _REACH * spread + 0.5), inputs)
        values = [_bicubic((x - center + 0.5) * (1.0 / spread)) for x in range(low, high)]
        total = sum(values)
        first[i] = min(low, inputs - taps)
        for x, value in zip(range(low, high), values, strict=True):
            share = value / total * _ONE
            weights[i, x - first[i]] = int(share - 0.5 if share < 0 else share + 0.5)
    return first, weights


def _bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * a if x < 2.0 else 0.0
