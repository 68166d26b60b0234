"""From a camera's image to the network's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gdfusion_ros.frame import CameraView, ImageTransform
from gdfusion_ros.model.config import ImageConfig
from gdfusion_ros.model.images import normalise_image, prepare_view

CONFIG = ImageConfig(64, 96)


def view(height: int, width: int, **changes: object) -> CameraView:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return replace(CameraView("CAM", image, np.eye(3), np.eye(4), np.eye(4), 0), **changes)


def test_the_upper_rows_are_cropped_and_the_transform_says_so() -> None:
    prepared = prepare_view(view(900, 1600), ImageConfig(256, 704))
    assert prepared.image.shape == (256, 704, 3)
    assert prepared.image_transform == ImageTransform(0.44, 0.0, 140.0)


def test_an_image_of_the_full_size_loses_four_rows_and_is_not_resized() -> None:
    raw = view(900, 1600)
    prepared = prepare_view(raw, ImageConfig(896, 1600))
    assert np.array_equal(prepared.image, raw.image[4:])
    assert prepared.image_transform == ImageTransform(1.0, 0.0, 4.0)


def test_preparing_twice_changes_nothing() -> None:
    once = prepare_view(view(100, 150), CONFIG)
    assert prepare_view(once, CONFIG) is once


@pytest.mark.parametrize("size", [(100, 150), (64, 300), (480, 640), (720, 1280), (40, 50)])
def test_a_pixel_keeps_its_place_in_the_world_for_any_camera(size: tuple[int, int]) -> None:
    raw = view(*size, image_transform=ImageTransform(0.5, 3.0, 7.0))
    prepared = prepare_view(raw, CONFIG)
    assert prepared.image.shape == (64, 96, 3)
    # A calibrated pixel lands where resizing and cropping put the raw one.
    scale = max(96 / size[1], 64 / size[0])
    calibrated = np.array([120.0, 80.0])
    in_raw = 0.5 * calibrated - (3.0, 7.0)
    cropped = ((int(size[1] * scale + 1e-6) - 96) // 2, int(size[0] * scale + 1e-6) - 64)
    transform = prepared.image_transform
    ours = transform.scale * calibrated - (transform.left, transform.top)
    assert ours == pytest.approx(scale * in_raw - np.array(cropped))


def test_a_missing_camera_is_black() -> None:
    prepared = prepare_view(view(0, 0, missing=True), CONFIG)
    assert prepared.image.shape == (64, 96, 3)
    assert not prepared.image.any()


def test_channels_are_turned_round_but_their_constants_are_not() -> None:
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 255
    normal = normalise_image(red)[:, 0, 0]
    assert normal == pytest.approx([-123.675 / 58.395, -116.28 / 57.12, (255 - 103.53) / 57.375])
