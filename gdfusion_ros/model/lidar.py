"""A LiDAR sweep as depth of the image features' cells, for networks that take it (spec 4.6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.geometry import inverse, transformed
from gdfusion_ros.model.config import DepthBins, ImageConfig

CELL = 16
"""Network pixels along each side of a feature cell."""


def lidar_depth(
    frame: CameraFrame, views: Sequence[CameraView], image: ImageConfig, bins: DepthBins
) -> npt.NDArray[np.float32]:
    """(N, H / 16, W / 16) metres of the nearest point in each cell of the prepared views; 0 where there is none.

    Raises ValueError when the frame has no LiDAR points or does not say where the LiDAR is.
    """
    if frame.lidar_points is None or frame.ego_from_lidar is None:
        raise ValueError("this network takes LiDAR depth, and the frame has no LiDAR points with extrinsics")
    at_lidar = frame.world_from_ego_at_lidar
    world_from_lidar = (frame.world_from_ego if at_lidar is None else at_lidar) @ frame.ego_from_lidar
    points = frame.lidar_points[:, :3].astype(np.float64)
    world = transformed(world_from_lidar, points)
    return np.stack([_cells(world, view, image, bins) for view in views])


def _cells(
    world: npt.NDArray[np.float64], view: CameraView, image: ImageConfig, bins: DepthBins
) -> npt.NDArray[np.float32]:
    """(H / 16, W / 16) of one camera, from points (P, 3) in the world."""
    camera_from_world = inverse(view.world_from_ego @ view.ego_from_camera)
    points = transformed(camera_from_world, world)
    points = points[(points[:, 2] >= bins.lower) & (points[:, 2] < bins.upper)]
    depth = points[:, 2]
    calibrated = np.einsum("pj,ij->pi", points, view.intrinsics[:2]) / depth[:, None]
    transform = view.image_transform
    pixels = np.rint(transform.scale * calibrated - (transform.left, transform.top)).astype(np.int64)
    inside = ((pixels >= 0) & (pixels < (image.width, image.height))).all(axis=1)
    column, row = (pixels[inside] // CELL).T
    nearest = np.full((image.height // CELL, image.width // CELL), np.inf, np.float32)
    np.minimum.at(nearest, (row, column), depth[inside].astype(np.float32))
    return np.where(np.isfinite(nearest), nearest, np.float32(0))
