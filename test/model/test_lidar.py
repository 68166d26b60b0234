"""LiDAR points as depth of feature cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_config, tiny_frame

from gdfusion_ros.model.images import prepare_view
from gdfusion_ros.model.lidar import lidar_depth

CONFIG = tiny_config()


def depth_of(points: list[tuple[float, float, float]]) -> np.ndarray:
    frame = tiny_frame()
    frame = replace(frame, ego_from_lidar=np.eye(4), lidar_points=np.array(points, np.float32))
    views = [prepare_view(view, CONFIG.image) for view in frame.views]
    return lidar_depth(frame, views, CONFIG.image, CONFIG.depth_bins)


def test_the_nearest_point_of_a_cell_counts() -> None:
    # Straight ahead of the front camera, which stands at (0.5, 0, 1.5): pixel (75, 60) of 150 x 100.
    depth = depth_of([(5.5, 0.0, 1.5), (3.5, 0.0, 1.5), (4.5, 0.0, 1.5)])
    assert depth.shape == (2, 4, 6)
    assert depth[0].max() == pytest.approx(3.0)
    assert (depth > 0).sum() == 1
    # 0.64 times (75, 60): (48, 38), with nothing cropped: row 38 // 16, column 48 // 16.
    assert depth[0, 2, 3] > 0


def test_points_behind_beyond_the_bins_or_beside_the_image_leave_no_depth() -> None:
    assert (depth_of([(0.6, 0.0, 1.5), (30.0, 0.0, 1.5), (3.5, 40.0, 1.5)]) == 0).all()


def test_a_frame_without_points_is_refused() -> None:
    frame = tiny_frame()
    with pytest.raises(ValueError, match="no LiDAR points"):
        lidar_depth(frame, frame.views, CONFIG.image, CONFIG.depth_bins)
