"""Recordings that other tools made of nuScenes are read with the presets in config/topics/."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from driving import (
    NUSCENES,
    SECOND,
    START,
    camera_info,
    compressed,
    drive,
    ego_from_camera,
    ego_pose,
    intrinsics,
    raw,
    stamped_transform,
    tf,
)
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from gdfusion_ros.assembly.rig import find_topics, read_rig
from gdfusion_ros.errors import UserError
from gdfusion_ros.geometry import quaternion
from gdfusion_ros.sinks.recording import Recording
from gdfusion_ros.sources.bag import BagSource

TIMES = [i / 12 for i in range(19)]
LIDAR = 0.036


def check(frames, expected) -> None:
    assert [frame.stamp_ns for frame in frames] == [frame.stamp_ns for frame in expected]
    for one, other in zip(frames, expected, strict=True):
        for view in other.views:
            twin = one.view(view.name)
            assert twin.stamp_ns == view.stamp_ns
            assert np.array_equal(twin.image, view.image)
            assert np.allclose(twin.intrinsics, view.intrinsics)
            assert np.allclose(twin.ego_from_camera, view.ego_from_camera, atol=1e-6)
            assert np.allclose(twin.world_from_ego, view.world_from_ego, atol=2e-3)


def test_recordings_of_nuscenes_to_ros2bag_are_placed_by_interpolation_between_its_key_frames(tmp_path):
    frames = drive(TIMES)
    with Recording(tmp_path / "bag") as bag:
        events = []
        for k in range(4):  # the ego pose and every sensor's place, at the LiDAR's key frames only
            stamp = START + round((k / 2 + LIDAR) * SECOND)
            transforms = [stamped_transform(stamp, "map", "base_link", ego_pose(k / 2 + LIDAR))]
            transforms += [stamped_transform(stamp, "base_link", n, ego_from_camera(n)) for n in NUSCENES]
            events.append((stamp, "/tf", "tf2_msgs/msg/TFMessage", tf(*transforms)))
        for view in (view for frame in frames for view in frame.views):
            stamp, name = view.stamp_ns, view.name
            image = compressed(stamp, view.encoded, name)
            info = camera_info(stamp, name)
            events.append((stamp, f"/{name}/image_rect_compressed", "sensor_msgs/msg/CompressedImage", image))
            events.append((stamp, f"/{name}/camera_info", "sensor_msgs/msg/CameraInfo", info))
        for stamp, topic, kind, message in sorted(events, key=lambda event: event[0]):
            bag.write(topic, kind, message, stamp)
    found = list(BagSource(tmp_path / "bag", read_rig(find_topics("nuscenes"))))
    check(found, [frames[6], frames[12], frames[18]])


def calibration_file(folder: Path) -> Path:
    cameras = {
        name: {
            "width": 160,
            "height": 96,
            "intrinsics": intrinsics().ravel().tolist(),
            "base_from_camera": {
                "translation": ego_from_camera(name)[:3, 3].tolist(),
                "rotation_wxyz": quaternion(ego_from_camera(name)).tolist(),
            },
        }
        for name in NUSCENES
    }
    path = folder / "calibration.yaml"
    path.write_text(yaml.safe_dump({"cameras": cameras}))
    return path


def bgr(view) -> np.ndarray:
    return np.ascontiguousarray(cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR))


def test_recordings_of_nuscenes2bag_get_their_intrinsics_from_a_file(tmp_path):
    frames = drive([0.0, 0.5])
    with Recording(tmp_path / "bag") as bag:
        for view in sorted((v for f in frames for v in f.views), key=lambda view: view.stamp_ns):
            stamp, frame = view.stamp_ns, view.name.lower()
            message = tf(
                stamped_transform(stamp, "odom", "base_link", view.world_from_ego),
                stamped_transform(stamp, "map", "odom", np.eye(4)),
                stamped_transform(stamp, "base_link", frame, view.ego_from_camera),
            )
            bag.write("/tf", "tf2_msgs/msg/TFMessage", message, stamp)
            image = raw(stamp, bgr(view), "bgr8")
            image.header.frame_id = frame
            bag.write(f"/{frame}/raw", "sensor_msgs/msg/Image", image, stamp)
    rig = read_rig(find_topics("nuscenes2bag"), calibration_file(tmp_path))
    check(list(BagSource(tmp_path / "bag", rig)), frames)


def test_without_a_calibration_file_the_preset_says_what_is_missing():
    with pytest.raises(UserError, match="calibration"):
        read_rig(find_topics("nuscenes2bag"))


def test_rosbag1_files_of_nuscenes2bag_are_read_as_they_are(tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf/msg/tfMessage"))
    kinds = store.types
    frames = drive([0.0, 0.5])
    path = tmp_path / "scene.bag"
    with Rosbag1Writer(path) as bag:
        connections = {}

        def write(topic, kind, message, stamp):
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=store)
            bag.write(connections[topic], stamp, store.serialize_ros1(message, kind))

        def ros1_header(stamp, frame):
            time = kinds["builtin_interfaces/msg/Time"](stamp // SECOND, stamp % SECOND)
            return kinds["std_msgs/msg/Header"](seq=0, stamp=time, frame_id=frame)

        for view in sorted((v for f in frames for v in f.views), key=lambda view: view.stamp_ns):
            stamp, frame = view.stamp_ns, view.name.lower()
            pose = stamped_transform(stamp, "odom", "base_link", view.world_from_ego)
            place = stamped_transform(stamp, "map", "odom", np.eye(4))
            transforms = []
            for one in (pose, place):
                made = kinds["geometry_msgs/msg/TransformStamped"](
                    ros1_header(stamp, one.header.frame_id), one.child_frame_id, one.transform
                )
                transforms.append(made)
            write("/tf", "tf/msg/tfMessage", kinds["tf/msg/tfMessage"](transforms), stamp)
            image = raw(stamp, bgr(view), "bgr8")
            image = kinds["sensor_msgs/msg/Image"](
                ros1_header(stamp, frame), image.height, image.width, "bgr8", 0, image.step, image.data
            )
            write(f"{frame}/raw", "sensor_msgs/msg/Image", image, stamp)
    rig = read_rig(find_topics("nuscenes2bag"), calibration_file(tmp_path))
    check(list(BagSource(path, rig)), frames)


def test_raw_images_with_camera_info_are_the_dataset_bridges_form(tmp_path):
    frames = drive([0.0, 0.5])
    with Recording(tmp_path / "bag") as bag:
        static = tf(*(stamped_transform(START, "base_link", n, ego_from_camera(n)) for n in NUSCENES))
        bag.write("/tf", "tf2_msgs/msg/TFMessage", static, START - SECOND)
        later = tf(*(stamped_transform(START + SECOND, "base_link", n, ego_from_camera(n)) for n in NUSCENES))
        for view in sorted((v for f in frames for v in f.views), key=lambda view: view.stamp_ns):
            stamp, name = view.stamp_ns, view.name
            message = tf(stamped_transform(stamp, "world", "base_link", view.world_from_ego))
            bag.write("/tf", "tf2_msgs/msg/TFMessage", message, stamp)
            bag.write(
                f"/nuscenes/{name}/camera_info", "sensor_msgs/msg/CameraInfo", camera_info(stamp, name), stamp
            )
            bag.write(
                f"/nuscenes/{name}/image", "sensor_msgs/msg/Image", raw(stamp, bgr(view), "bgr8"), stamp
            )
        bag.write("/tf", "tf2_msgs/msg/TFMessage", later, START + SECOND)
    found = list(BagSource(tmp_path / "bag", read_rig(find_topics("dataset_bridge"))))
    # The left camera's first image is older than the first transform, as in a stream that one joins.
    assert [frame.stamp_ns for frame in found] == [frames[1].stamp_ns]


@pytest.mark.parametrize("preset", ["nuscenes", "nuscenes2bag", "dataset_bridge", "autoware"])
def test_every_preset_is_a_rig_of_the_networks_six_cameras(preset, tmp_path):
    rig = read_rig(find_topics(preset), calibration_file(tmp_path))
    assert set(rig.names) == set(NUSCENES)
    assert rig.anchor == "CAM_FRONT"
