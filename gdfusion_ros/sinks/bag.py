"""Camera frames as an input recording: what a vehicle's sensors would have published.

Topics and frames are those of config/topics/nuscenes.yaml: images and CameraInfo under each camera's name,
/tf with the ego pose at every exposure (odom -> base_link), /tf_static with the cameras (and map -> odom, the
identity, as a recording's poses need no correction), /odom with velocities, /clock, and /LIDAR_TOP where frames have
points. Every stamp, and the time each message is recorded at, is the data's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gdfusion_ros.assembly.codec import encode_png
from gdfusion_ros.assembly.messages import SECOND
from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.geometry import Matrix, inverse, quaternion
from gdfusion_ros.sinks.recording import Recording, Storage, message_types

Twist = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Linear and angular velocity, (3,) each."""

MAP, ODOM, BASE, LIDAR = "map", "odom", "base_link", "LIDAR_TOP"
MAX_GAP_NS = 1_500_000_000
"""No velocity is made of two poses farther apart than this."""


FLOAT32 = 7
"""PointField's number for it."""


def image_topic(camera: str) -> str:
    """The topic of a camera's JPEGs."""
    return f"/{camera}/image_rect_compressed"


def info_topic(camera: str) -> str:
    """The topic of a camera's CameraInfo."""
    return f"/{camera}/camera_info"


def record_frames(
    frames: Iterable[CameraFrame],
    path: str | Path,
    storage: Storage = "mcap",
    on_frame: Callable[[CameraFrame], None] | None = None,
) -> int:
    """Write an input recording of the frames; gives their number.

    JPEGs and PNGs that a view was decoded from go in untouched; other images are encoded as PNG, without
    loss. Missing views are left out. ``on_frame`` is called after each frame. Raises UserError when ``path``
    exists.
    """
    count = 0
    with Recording(path, storage) as recording:
        writer = FrameRecorder(recording)
        for frame in frames:
            writer.write(frame)
            count += 1
            if on_frame is not None:
                on_frame(frame)
    return count


class SensorRecorder:
    """Writes what single sensors say into a recording."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._types = message_types().types
        self._places: dict[str, bytes] = {}

    def static(self, places: Mapping[str, Matrix], stamp: int) -> None:
        """Where the sensors sit (base_from_sensor, 4x4 by frame), once, and again when that changes."""
        known = {name: matrix.tobytes() for name, matrix in places.items()}
        if known == self._places:
            return
        self._places = known
        transforms = [self._transform(stamp, MAP, ODOM, np.eye(4))]
        transforms += [self._transform(stamp, BASE, name, matrix) for name, matrix in places.items()]
        self._write_tf("/tf_static", transforms, stamp)

    def ego(self, stamp: int, odom_from_base: Matrix, twist: Twist) -> None:
        """The ego pose at a time, on /tf and /odom, and the time itself on /clock."""
        types = self._types
        self._put(
            "/clock", "rosgraph_msgs/msg/Clock", types["rosgraph_msgs/msg/Clock"](self._time(stamp)), stamp
        )
        self._write_tf("/tf", [self._transform(stamp, ODOM, BASE, odom_from_base)], stamp)
        point, vector = types["geometry_msgs/msg/Point"], types["geometry_msgs/msg/Vector3"]
        x, y, z = (float(value) for value in odom_from_base[:3, 3])
        pose = types["geometry_msgs/msg/Pose"](point(x=x, y=y, z=z), self._quaternion(odom_from_base))
        linear, angular = (vector(*(float(value) for value in part)) for part in twist)
        unknown = np.zeros(36)
        odometry = types["nav_msgs/msg/Odometry"](
            header=self._header(stamp, ODOM),
            child_frame_id=BASE,
            pose=types["geometry_msgs/msg/PoseWithCovariance"](pose, unknown),
            twist=types["geometry_msgs/msg/TwistWithCovariance"](
                types["geometry_msgs/msg/Twist"](linear, angular), unknown
            ),
        )
        self._put("/odom", "nav_msgs/msg/Odometry", odometry, stamp)

    def camera(self, name: str, stamp: int, k: Matrix, size: tuple[int, int], encoded: bytes) -> None:
        """A rectified image (JPEG or PNG bytes) of ``size`` (height, width) with its intrinsics ``k`` (3, 3)."""
        info = self._types["sensor_msgs/msg/CameraInfo"](
            header=self._header(stamp, name),
            height=size[0],
            width=size[1],
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=np.asarray(k, dtype=np.float64).ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([k, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=self._types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )
        self._put(info_topic(name), "sensor_msgs/msg/CameraInfo", info, stamp)
        image = self._types["sensor_msgs/msg/CompressedImage"](
            header=self._header(stamp, name),
            format="png" if encoded[:4] == b"\x89PNG" else "jpeg",
            data=np.frombuffer(encoded, dtype=np.uint8),
        )
        self._put(image_topic(name), "sensor_msgs/msg/CompressedImage", image, stamp)

    def points(self, name: str, stamp: int, points: npt.NDArray[np.float32], fields: Sequence[str]) -> None:
        """A point cloud on ``/<name>``: (N, len(fields)) in the frame of that name."""
        field = self._types["sensor_msgs/msg/PointField"]
        cloud = self._types["sensor_msgs/msg/PointCloud2"](
            header=self._header(stamp, name),
            height=1,
            width=len(points),
            fields=[field(one, 4 * k, FLOAT32, 1) for k, one in enumerate(fields)],
            is_bigendian=False,
            point_step=4 * len(fields),
            row_step=4 * len(fields) * len(points),
            data=np.ascontiguousarray(points, dtype="<f4").view(np.uint8).ravel(),
            is_dense=True,
        )
        self._put(f"/{name}", "sensor_msgs/msg/PointCloud2", cloud, stamp)

    def _write_tf(self, topic: str, transforms: list[Any], stamp: int) -> None:
        message = self._types["tf2_msgs/msg/TFMessage"](transforms=transforms)
        self._put(topic, "tf2_msgs/msg/TFMessage", message, stamp)

    def _transform(self, stamp: int, parent: str, child: str, parent_from_child: Matrix) -> Any:
        x, y, z = (float(value) for value in parent_from_child[:3, 3])
        return self._types["geometry_msgs/msg/TransformStamped"](
            header=self._header(stamp, parent),
            child_frame_id=child,
            transform=self._types["geometry_msgs/msg/Transform"](
                translation=self._types["geometry_msgs/msg/Vector3"](x, y, z),
                rotation=self._quaternion(parent_from_child),
            ),
        )

    def _quaternion(self, matrix: Matrix) -> Any:
        w, x, y, z = (float(value) for value in quaternion(matrix))
        return self._types["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w)

    def _header(self, stamp: int, frame: str) -> Any:
        return self._types["std_msgs/msg/Header"](stamp=self._time(stamp), frame_id=frame)

    def _time(self, stamp: int) -> Any:
        return self._types["builtin_interfaces/msg/Time"](sec=stamp // SECOND, nanosec=stamp % SECOND)

    def _put(self, topic: str, kind: str, message: Any, stamp: int) -> None:
        self._recording.write(topic, kind, message, stamp)


class FrameRecorder:
    """Writes frames into a recording, one by one."""

    def __init__(self, recording: Recording) -> None:
        self._sensors = SensorRecorder(recording)
        self._previous: tuple[int, Matrix] | None = None

    def write(self, frame: CameraFrame) -> None:
        """Write the messages of one frame, in the order of its exposures."""
        views = sorted((v for v in frame.views if not v.missing), key=lambda view: view.stamp_ns)
        poses = {view.stamp_ns: view.world_from_ego for view in views}
        poses[frame.stamp_ns] = frame.world_from_ego
        places = {view.name: view.ego_from_camera for view in frame.views}
        if frame.ego_from_lidar is not None:
            places[LIDAR] = frame.ego_from_lidar
        self._sensors.static(places, min(poses))
        motion = self._twist(frame, poses)
        for stamp in sorted(poses):
            self._sensors.ego(stamp, poses[stamp], motion)
            for view in views:
                if view.stamp_ns == stamp:
                    encoded = view.encoded if view.encoded is not None else encode_png(view.image)
                    k = pixel_from_calibrated(view) @ view.intrinsics
                    self._sensors.camera(
                        view.name, stamp, k, (view.image.shape[0], view.image.shape[1]), encoded
                    )
        self._lidar(frame)
        self._previous = (frame.stamp_ns, frame.world_from_ego)

    def _twist(self, frame: CameraFrame, poses: Mapping[int, Matrix]) -> Twist:
        """This frame's motion since the one before, or from its first exposure to its last."""
        before = self._previous
        if before is not None and 0 < frame.stamp_ns - before[0] <= MAX_GAP_NS:
            return twist(before, (frame.stamp_ns, frame.world_from_ego))
        first, last = min(poses), max(poses)
        return twist((first, poses[first]), (last, poses[last]))

    def _lidar(self, frame: CameraFrame) -> None:
        """The frame's LiDAR points as seen at the anchor's exposure, since a frame has no stamp of its sweep."""
        if frame.lidar_points is None or frame.ego_from_lidar is None:
            return
        sweep = (
            frame.world_from_ego if frame.world_from_ego_at_lidar is None else frame.world_from_ego_at_lidar
        )
        now_from_then = inverse(frame.world_from_ego @ frame.ego_from_lidar) @ sweep @ frame.ego_from_lidar
        points = frame.lidar_points[:, :3] @ now_from_then[:3, :3].T + now_from_then[:3, 3]
        self._sensors.points(LIDAR, frame.stamp_ns, points.astype(np.float32), "xyz")


def twist(before: tuple[int, Matrix], now: tuple[int, Matrix]) -> Twist:
    """Linear (m/s) and angular (rad/s) velocity in the base frame between two stamped poses; zero at equal stamps."""
    seconds = (now[0] - before[0]) / SECOND
    if seconds <= 0:
        return np.zeros(3), np.zeros(3)
    before_from_now = inverse(before[1]) @ now[1]
    half = quaternion(before_from_now)
    sine = float(np.linalg.norm(half[1:]))
    angle = 2.0 * np.arctan2(sine, half[0])
    axis = half[1:] / max(sine, 1e-12)
    return before_from_now[:3, :3].T @ before_from_now[:3, 3] / seconds, axis * angle / seconds


def pixel_from_calibrated(view: CameraView) -> Matrix:
    """(3, 3): where a pixel of the calibrated image is in the image at hand, homogeneous."""
    t = view.image_transform
    return np.array([[t.scale, 0.0, -t.left], [0.0, t.scale, -t.top], [0.0, 0.0, 1.0]])
