"""What the tests of several rooms share: a small rig that drives, its frames, and its messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml

from gdfusion_ros.assembly.rig import CameraTopics, Rig
from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.geometry import Matrix, quaternion, transform
from gdfusion_ros.sinks.bag import image_topic, info_topic
from gdfusion_ros.sinks.recording import message_types

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
NUSCENES = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
OFFSETS_MS = (-8, 0, 7, 35, 25, 15)
"""Exposures relative to CAM_FRONT's, as the rotating LiDAR triggers nuScenes' cameras."""
YAWS = (0.95, 0.0, -0.95, 1.9, 3.14, -1.9)
SIZE = (96, 160)
"""Height and width of the images."""

TYPES = message_types().types

TINY_MODEL = {
    "name": "tiny",
    "family": "bevdetocc",
    "labels": {"set": "occ3d"},
    "cameras": list(NUSCENES),
    "image": {"height": 32, "width": 64},
    "grid": {"x": [-16.0, 16.0, 1.0], "y": [-16.0, 16.0, 1.0], "z": [-1.0, 5.4, 1.6]},
    "depth": {"lower": 1.0, "upper": 17.0, "step": 2.0},
    "architecture": {
        "voxel_channels": 8,
        "depth_net": {"channels": 16, "aspp_channels": 8, "stereo": True},
        "encoder": {"blocks": [1, 1, 1], "channels": [8, 16, 32], "strides": [1, 2, 2], "outputs": 8},
    },
}
"""All of the network's parts, in a size that takes a fraction of a second."""


def tiny_model(folder: Path) -> Path:
    """The tiny network's YAML, written into a folder."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_MODEL))
    return path


def ego_pose(seconds: float, speed: float = 5.0) -> Matrix:
    """world_from_ego of a drive along a gentle bend."""
    yaw = 0.05 * seconds
    return transform(
        (600.0 + speed * seconds, 1600.0 + 0.3 * seconds, 0.0), (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
    )


def ego_from_camera(name: str) -> Matrix:
    """A camera on the roof, looking where its name says."""
    yaw = YAWS[NUSCENES.index(name)]
    matrix = np.eye(4)
    forward, left = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([-np.sin(yaw), np.cos(yaw), 0])
    matrix[:3, :3] = np.stack([-left, [0, 0, -1], forward], axis=1)
    matrix[:3, 3] = [1.5 * np.cos(yaw), 0.5 * np.sin(yaw), 1.5]
    return matrix


def intrinsics(size: tuple[int, int] = SIZE) -> Matrix:
    """A pinhole camera of 64 degrees."""
    height, width = size
    return np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]])


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth colourful image, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))


def jpeg(image: np.ndarray) -> bytes:
    """JPEG bytes of an RGB image."""
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def drive(
    seconds: Sequence[float], cameras: Sequence[str] = NUSCENES, size: tuple[int, int] = SIZE
) -> list[CameraFrame]:
    """Frames at these times, each camera a little earlier or later than CAM_FRONT."""
    frames = []
    for number, at in enumerate(seconds):
        views = []
        for name in cameras:
            exposure = at + OFFSETS_MS[NUSCENES.index(name)] * 1e-3
            encoded = jpeg(picture(1000 * number + NUSCENES.index(name), size))
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
            views.append(
                CameraView(
                    name,
                    np.ascontiguousarray(image),
                    intrinsics(size),
                    ego_from_camera(name),
                    ego_pose(exposure),
                    START + round(exposure * SECOND),
                    encoded=encoded,
                )
            )
        frames.append(CameraFrame(START + round(at * SECOND), tuple(views), ego_pose(at)))
    return frames


def rig(cameras: Sequence[str] = NUSCENES, **changes) -> Rig:
    """The rig of the frames above, with the topics of recordings."""
    topics = tuple(CameraTopics(name, image_topic(name), info_topic(name), name) for name in cameras)
    return Rig(topics, **{"anchor": "CAM_FRONT", "fixed_frame": "odom", **changes})


# Messages, as a recording's reader gives them.


def time(stamp: int):
    return TYPES["builtin_interfaces/msg/Time"](stamp // SECOND, stamp % SECOND)


def header(stamp: int, frame: str = ""):
    return TYPES["std_msgs/msg/Header"](time(stamp), frame)


def compressed(stamp: int, data: bytes, frame: str = "CAM_FRONT", kind: str = "jpeg"):
    return TYPES["sensor_msgs/msg/CompressedImage"](header(stamp, frame), kind, np.frombuffer(data, np.uint8))


def raw(stamp: int, data: np.ndarray, encoding: str, step: int | None = None, bigendian: bool = False):
    height, width = data.shape[:2]
    step = step or data.nbytes // height
    flat = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
    return TYPES["sensor_msgs/msg/Image"](
        header(stamp, "CAM_FRONT"), height, width, encoding, int(bigendian), step, flat
    )


def camera_info(stamp: int, frame: str, k: Matrix | None = None, size: tuple[int, int] = SIZE, p=None):
    k = intrinsics(size) if k is None else k
    p = np.hstack([k, np.zeros((3, 1))]) if p is None else p
    roi = TYPES["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return TYPES["sensor_msgs/msg/CameraInfo"](
        header(stamp, frame),
        size[0],
        size[1],
        "plumb_bob",
        np.zeros(5),
        k.ravel(),
        np.eye(3).ravel(),
        p.ravel(),
        0,
        0,
        roi,
    )


def stamped_transform(stamp: int, parent: str, child: str, matrix: Matrix):
    w, x, y, z = quaternion(matrix)
    return TYPES["geometry_msgs/msg/TransformStamped"](
        header(stamp, parent),
        child,
        TYPES["geometry_msgs/msg/Transform"](
            TYPES["geometry_msgs/msg/Vector3"](*matrix[:3, 3]),
            TYPES["geometry_msgs/msg/Quaternion"](x, y, z, w),
        ),
    )


def odometry(stamp: int, pose: Matrix, frame: str = "odom", child: str = "base_link"):
    w, x, y, z = quaternion(pose)
    place = TYPES["geometry_msgs/msg/Pose"](
        TYPES["geometry_msgs/msg/Point"](*pose[:3, 3]), TYPES["geometry_msgs/msg/Quaternion"](x, y, z, w)
    )
    zero = TYPES["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
    return TYPES["nav_msgs/msg/Odometry"](
        header(stamp, frame),
        child,
        TYPES["geometry_msgs/msg/PoseWithCovariance"](place, np.zeros(36)),
        TYPES["geometry_msgs/msg/TwistWithCovariance"](
            TYPES["geometry_msgs/msg/Twist"](zero, zero), np.zeros(36)
        ),
    )


def tf(*transforms):
    return TYPES["tf2_msgs/msg/TFMessage"](list(transforms))


TWO_CAMERAS = ("CAM_FRONT", "CAM_BACK")
