"""Intrinsics out of sensor_msgs/CameraInfo, checked once, here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdfusion_ros.assembly.messages import Message
from gdfusion_ros.geometry import Matrix

MAX_IMAGE_SIDE = 16_384
"""Pixels: a CameraInfo that speaks of larger images is broken."""
MAX_ASPECT_ERROR = 0.02
"""How far the aspect ratio of an image may be from that of its CameraInfo."""


class CalibrationError(ValueError):
    """A calibration that is refused. The message says what is wrong with it."""


@dataclass(frozen=True)
class Calibration:
    """A pinhole camera as it was calibrated."""

    width: int
    height: int
    intrinsics: Matrix
    """(3, 3), in pixels of an image of ``width`` x ``height``."""
    frame: str = ""
    """The camera's optical frame, from the CameraInfo's header."""
    distorted: bool = False
    """The CameraInfo names a lens distortion. The networks expect images from which it has been taken out."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Calibration):
            return NotImplemented
        mine = (self.width, self.height, self.frame, self.distorted)
        return mine == (other.width, other.height, other.frame, other.distorted) and bool(
            np.array_equal(self.intrinsics, other.intrinsics)
        )

    def fits(self, width: int, height: int) -> bool:
        """Whether an image of this size has the calibration's shape: it may have been resized, but not cropped."""
        return abs(width / self.width * self.height / height - 1.0) <= MAX_ASPECT_ERROR

    def for_image(self, width: int, height: int) -> Matrix:
        """Intrinsics of an image of another size: scaled with it, as a resized image's are.

        Raises CalibrationError when the image's shape contradicts the calibration's.
        """
        if (width, height) == (self.width, self.height):
            return self.intrinsics
        if not self.fits(width, height):
            raise CalibrationError(
                f"image of {width}x{height}, but the calibration is for {self.width}x{self.height}: "
                "another shape, so it was cropped and the calibration does not hold"
            )
        return np.diag((width / self.width, height / self.height, 1.0)) @ self.intrinsics


def read_camera_info(info: Message) -> Calibration:
    """The calibration of a CameraInfo: the projection matrix of the rectified image where there is one, else K.

    It is for images of the region of interest where the CameraInfo names one; binning makes images smaller, as
    resizing does. Raises CalibrationError when numbers are not finite, a focal length is not positive, the
    principal point lies outside the image, or the size is not one of an image.
    """
    k, p = _numbers(info, "k").reshape(3, 3), _numbers(info, "p").reshape(3, 4)
    if not (np.isfinite(k).all() and np.isfinite(p).all()):
        raise CalibrationError("CameraInfo holds numbers that are not finite")
    distortion = _numbers(info, "d")
    rectified = bool(p[0, 0] != 0.0)
    whole = checked(int(info.width), int(info.height), p[:, :3] if rectified else k)
    width, height, matrix = _region(info, whole)
    return checked(
        width,
        height,
        matrix,
        frame=str(info.header.frame_id),
        distorted=bool(not rectified and np.any(distortion != 0.0)),
    )


def _region(info: Message, whole: Calibration) -> tuple[int, int, Matrix]:
    """Size and intrinsics of the part of the sensor that images show: all of it unless a CameraInfo says less."""
    left, top, width, height = (
        int(getattr(info.roi, name)) for name in ("x_offset", "y_offset", "width", "height")
    )
    if not width or not height:  # that is how CameraInfo says "all"
        return whole.width, whole.height, whole.intrinsics
    if left + width > whole.width or top + height > whole.height:
        raise CalibrationError(
            f"region of interest {width}x{height} at ({left}, {top}) lies outside the image of "
            f"{whole.width}x{whole.height}"
        )
    return width, height, np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]]) @ whole.intrinsics


def _numbers(info: Message, name: str) -> npt.NDArray[np.float64]:
    """A matrix of a CameraInfo. ROS 1, whose recordings can be read too, writes its name in upper case."""
    return np.asarray(getattr(info, name if hasattr(info, name) else name.upper()), dtype=np.float64)


def checked(
    width: int, height: int, intrinsics: Matrix, frame: str = "", distorted: bool = False
) -> Calibration:
    """A Calibration whose numbers make sense; CalibrationError says which do not."""
    if not (0 < width <= MAX_IMAGE_SIDE and 0 < height <= MAX_IMAGE_SIDE):
        raise CalibrationError(f"calibration is for an image of {width}x{height} pixels")
    if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all():
        raise CalibrationError("intrinsics are not nine finite numbers")
    if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
        raise CalibrationError(f"focal length ({intrinsics[0, 0]:g}, {intrinsics[1, 1]:g}) is not positive")
    if not np.allclose(intrinsics[2], (0.0, 0.0, 1.0)):
        raise CalibrationError(f"last row of the intrinsics is {intrinsics[2].tolist()}, not 0 0 1")
    cx, cy = intrinsics[0, 2], intrinsics[1, 2]
    if not (0 <= cx <= width and 0 <= cy <= height):
        raise CalibrationError(f"principal point ({cx:g}, {cy:g}) lies outside the {width}x{height} image")
    matrix = np.array(intrinsics)
    matrix.setflags(write=False)
    return Calibration(width, height, matrix, frame, distorted)
