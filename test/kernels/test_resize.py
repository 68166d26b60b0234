"""Resizing of camera images against Pillow, in every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from gdfusion_ros.frame import CameraView
from gdfusion_ros.kernels import library
from gdfusion_ros.model.config import ImageConfig
from gdfusion_ros.model.images import prepare_view

pytestmark = pytest.mark.usefixtures("instructions")


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((900, 1600), (256, 704)),
        ((480, 640), (96, 256)),
        ((600, 641), (96, 96)),
        ((47, 33), (64, 96)),  # upright: Pillow's
        ((33, 47), (64, 96)),
        ((50, 50), (32, 64)),
        ((5, 7), (32, 96)),
        ((1, 3), (32, 32)),
        ((20, 900), (32, 128)),
    ],
)
@pytest.mark.parametrize("hard", [False, True], ids=["noise", "black and white"])
def test_an_image_is_resized_to_the_last_bit_as_pillow_does(
    size: tuple[int, int], wanted: tuple[int, int], hard: bool
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    if hard:  # what overshoots, on both sides
        image = np.where(image < 128, 0, 255).astype(np.uint8)
    view = CameraView("CAM", image, np.eye(3), np.eye(4), np.eye(4), 0)
    ours = prepare_view(view, ImageConfig(*wanted))
    with library.switched(False):
        plain = prepare_view(view, ImageConfig(*wanted))
    assert np.array_equal(ours.image, plain.image)
    assert ours.image_transform == plain.image_transform
