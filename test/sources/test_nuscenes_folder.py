"""Real nuScenes frames from a folder come with their poses, times and untouched bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gdfusion_ros.errors import UserError
from gdfusion_ros.sources.nuscenes import FolderSource


def test_a_frames_time_and_pose_are_those_of_the_front_camera(shared_dir):
    frames = list(FolderSource(shared_dir / "data" / "nuscenes_scene0103"))
    assert len(frames) == 5
    first = frames[0]
    assert first.stamp_ns == 1533151603512404000
    assert np.array_equal(first.world_from_ego, first.view("CAM_FRONT").world_from_ego)
    assert first.world_from_ego[:3, 3] == pytest.approx([599.849775, 1647.641129, 0.0])
    assert first.world_from_ego_at_lidar[:3, 3] == pytest.approx([600.120214, 1647.490776, 0.0])
    assert first.view("CAM_BACK").image.shape == (900, 1600, 3)
    assert first.view("CAM_BACK").encoded[:2] == b"\xff\xd8"


def test_lidar_points_are_read_where_there_are_some(shared_dir):
    (frame,) = FolderSource(shared_dir / "data" / "nuscenes_n015")
    assert frame.lidar_points.shape == (34720, 3)
    assert frame.ego_from_lidar[:3, 3] == pytest.approx([0.943713, 0.0, 1.84023])


def test_a_folder_without_frames_says_so(tmp_path):
    with pytest.raises(UserError, match=r"frames\.json"):
        FolderSource(tmp_path)
    (tmp_path / "frames.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        FolderSource(tmp_path)


def folder(tmp_path, **changes):
    identity = {"translation": [0, 0, 0], "rotation": [1, 0, 0, 0]}
    camera = {
        "file": "a.jpg",
        "width": 160,
        "height": 96,
        "intrinsic": np.eye(3).tolist(),
        "sensor2ego": identity,
        "ego2global": identity,
        "timestamp_us": 1,
    }
    frame = {"cameras": {"CAM_FRONT": {**camera, **changes}}, "ego2global_lidar_time": identity}
    (tmp_path / "frames.json").write_text(json.dumps({"frames": [frame]}))
    return FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file": "../../etc/passwd"}, "outside"),
        ({"file": "missing.jpg"}, "missing.jpg"),
        ({"file": "frames.json"}, "decoded"),
        ({"sensor2ego": {"translation": [0, 0, 0], "rotation": [2, 0, 0, 0]}}, "unit quaternion"),
        ({"width": 17}, "frames.json says 17"),
    ],
)
def test_a_broken_entry_is_named(tmp_path, changes, words):
    from driving import jpeg, picture

    (tmp_path / "a.jpg").write_bytes(jpeg(picture(0)))
    with pytest.raises(UserError, match=words):
        list(folder(tmp_path, **changes))
