"""A CameraInfo is believed only when its numbers make sense."""

from __future__ import annotations

import numpy as np
import pytest
from driving import SIZE, START, camera_info, intrinsics

from gdfusion_ros.assembly.calibration import CalibrationError, read_camera_info


def test_the_intrinsics_of_a_rectified_image_are_those_of_its_projection_matrix():
    p = np.hstack([intrinsics() * [[2], [2], [1]], np.zeros((3, 1))])
    p[:2, 2] = [80, 48]
    calibration = read_camera_info(camera_info(START, "CAM_FRONT", p=p))
    assert np.array_equal(calibration.intrinsics, p[:, :3])
    assert calibration.frame == "CAM_FRONT"


def test_without_a_projection_matrix_k_is_taken():
    calibration = read_camera_info(camera_info(START, "CAM_FRONT", p=np.zeros((3, 4))))
    assert np.array_equal(calibration.intrinsics, intrinsics())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda k: k.__setitem__((0, 0), np.nan), "finite"),
        (lambda k: k.__setitem__((1, 2), np.inf), "finite"),
        (lambda k: k.__setitem__((0, 0), 0.0), "focal length|finite"),
        (lambda k: k.__setitem__((1, 1), -5.0), "focal length"),
        (lambda k: k.__setitem__((0, 2), 1e6), "principal point"),
        (lambda k: k.__setitem__((2, 2), 0.0), "last row"),
    ],
)
def test_numbers_that_make_no_sense_are_named(change, words):
    k = intrinsics()
    change(k)
    with pytest.raises(CalibrationError, match=words):
        read_camera_info(camera_info(START, "CAM_FRONT", k=k))


@pytest.mark.parametrize("size", [(0, 160), (96, 0), (10**6, 10**6)])
def test_a_size_that_no_image_has_is_refused(size):
    with pytest.raises(CalibrationError):
        read_camera_info(camera_info(START, "CAM_FRONT", k=intrinsics(), size=size))


def test_intrinsics_are_scaled_with_a_resized_image():
    calibration = read_camera_info(camera_info(START, "CAM_FRONT"))
    half = calibration.for_image(SIZE[1] // 2, SIZE[0] // 2)
    assert np.allclose(half, np.diag([0.5, 0.5, 1.0]) @ intrinsics())
    assert calibration.for_image(SIZE[1], SIZE[0]) is calibration.intrinsics


def test_an_image_of_another_shape_is_refused():
    calibration = read_camera_info(camera_info(START, "CAM_FRONT"))
    with pytest.raises(CalibrationError, match="cropped"):
        calibration.for_image(SIZE[1], SIZE[0] // 2)


def test_the_region_of_interest_is_what_images_show():
    info = camera_info(START, "CAM_FRONT")
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 40, 8, 80, 48
    calibration = read_camera_info(info)
    assert (calibration.width, calibration.height) == (80, 48)
    assert np.allclose(calibration.intrinsics[:2, 2], intrinsics()[:2, 2] - [40, 8])
    assert np.allclose(calibration.intrinsics[0, 0], intrinsics()[0, 0])
    # Binned by two: images of half the region's size.
    assert np.allclose(calibration.for_image(40, 24), np.diag([0.5, 0.5, 1.0]) @ calibration.intrinsics)


def test_a_region_outside_the_image_is_refused():
    info = camera_info(START, "CAM_FRONT")
    info.roi.x_offset, info.roi.width, info.roi.height = 100, 80, 48
    with pytest.raises(CalibrationError, match="region of interest"):
        read_camera_info(info)
