"""An input recording holds what sensors would have published, at the data's own times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from driving import NUSCENES, SECOND, START, drive, ego_pose
from rosbags.highlevel import AnyReader

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, ImageTransform
from gdfusion_ros.sinks.bag import record_frames


def messages(path: Path) -> dict[str, list]:
    """Topic -> (time, message) of a recording."""
    found: dict[str, list] = {}
    with AnyReader([path]) as reader:
        for connection, stamp, data in reader.messages():
            found.setdefault(connection.topic, []).append(
                (stamp, reader.deserialize(data, connection.msgtype))
            )
    return found


def stamp_of(message) -> int:
    return message.header.stamp.sec * SECOND + message.header.stamp.nanosec


def test_every_message_is_recorded_at_its_own_stamp_and_in_order(tmp_path):
    record_frames(drive([0.0, 0.5]), tmp_path / "bag")
    found = messages(tmp_path / "bag")
    for name in NUSCENES:
        for topic in (f"/{name}/image_rect_compressed", f"/{name}/camera_info"):
            assert len(found[topic]) == 2
            assert all(stamp == stamp_of(message) for stamp, message in found[topic])
            assert all(message.header.frame_id == name for _, message in found[topic])
    assert len(found["/tf"]) == len(found["/odom"]) == len(found["/clock"]) == 12
    for topic in ("/tf", "/clock", "/odom"):
        stamps = [stamp for stamp, _ in found[topic]]
        assert stamps == sorted(stamps)


def test_the_ego_pose_is_there_at_every_exposure(tmp_path):
    record_frames(drive([0.0]), tmp_path / "bag")
    for stamp, message in messages(tmp_path / "bag")["/tf"]:
        (one,) = message.transforms
        assert (one.header.frame_id, one.child_frame_id) == ("odom", "base_link")
        expected = ego_pose((stamp - START) / SECOND)
        assert one.transform.translation.x == pytest.approx(expected[0, 3])


def test_static_transforms_connect_the_map_with_every_sensor(tmp_path):
    record_frames(drive([0.0, 0.5]), tmp_path / "bag")
    ((_, message),) = messages(tmp_path / "bag")["/tf_static"]
    edges = {(one.header.frame_id, one.child_frame_id) for one in message.transforms}
    assert edges == {("map", "odom"), *(("base_link", name) for name in NUSCENES)}


def test_the_velocity_is_that_of_the_drive(tmp_path):
    record_frames(drive([0.0, 0.5, 1.0]), tmp_path / "bag")
    _, odometry = messages(tmp_path / "bag")["/odom"][-1]
    assert odometry.twist.twist.linear.x == pytest.approx(5.0, abs=0.1)
    assert odometry.twist.twist.angular.z == pytest.approx(0.05, abs=0.001)
    assert odometry.child_frame_id == "base_link"


def test_images_that_a_source_resized_are_recorded_with_the_intrinsics_they_have_now(tmp_path):
    (frame,) = drive([0.0], cameras=("CAM_FRONT",))
    view = frame.views[0]
    from dataclasses import replace

    moved = replace(view, image_transform=ImageTransform(0.5, 10.0, 20.0), encoded=None)
    record_frames([CameraFrame(frame.stamp_ns, (moved,), frame.world_from_ego)], tmp_path / "bag")
    found = messages(tmp_path / "bag")
    ((_, info),) = found["/CAM_FRONT/camera_info"]
    k = info.k.reshape(3, 3)
    assert k[0, 0] == view.intrinsics[0, 0] / 2
    assert k[0, 2] == view.intrinsics[0, 2] / 2 - 10
    assert k[1, 2] == view.intrinsics[1, 2] / 2 - 20
    ((_, image),) = found["/CAM_FRONT/image_rect_compressed"]
    assert image.format == "png"


def test_what_exists_is_not_overwritten(tmp_path):
    with pytest.raises(UserError, match="exists"):
        record_frames(drive([0.0]), tmp_path)


def test_the_metadata_is_what_ros2_bag_reads(tmp_path):
    record_frames(drive([0.0]), tmp_path / "bag")
    info = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert info["storage_identifier"] == "mcap"
    assert info["relative_file_paths"] == ["bag.mcap"]
    topics = {
        entry["topic_metadata"]["name"]: entry["topic_metadata"]
        for entry in info["topics_with_message_count"]
    }
    assert topics["/CAM_FRONT/camera_info"]["type"] == "sensor_msgs/msg/CameraInfo"
    # 1 is reliable and transient local, 2 volatile.
    assert yaml.safe_load(topics["/tf_static"]["offered_qos_profiles"])[0]["durability"] == 1
    assert yaml.safe_load(topics["/tf"]["offered_qos_profiles"])[0]["durability"] == 2
    assert topics["/tf"]["type_description_hash"].startswith("RIHS01_")


def test_the_velocity_stays_zero_when_there_is_but_one_pose(tmp_path):
    record_frames(drive([0.0], cameras=("CAM_FRONT",)), tmp_path / "bag")
    ((_, odometry),) = messages(tmp_path / "bag")["/odom"]
    assert np.allclose([odometry.twist.twist.linear.x, odometry.twist.twist.angular.z], 0.0)
