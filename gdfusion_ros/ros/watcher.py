"""What a running node publishes, as shots for the viewer: grid, flow, images, ego pose."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import rclpy
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from tf2_msgs.msg import TFMessage

from gdfusion_ros.assembly.codec import ImageError, decode_compressed, decode_raw
from gdfusion_ros.assembly.grids import occupancy_of
from gdfusion_ros.assembly.messages import stamp_ns
from gdfusion_ros.assembly.rig import Rig
from gdfusion_ros.assembly.transforms import TransformBuffer, TransformError
from gdfusion_ros.geometry import Matrix, transform
from gdfusion_ros.msg import SemanticOccupancy, VoxelFlow
from gdfusion_ros.viewer.shot import Picture, Shot, make_shot, shrunk

RELIABLE = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=rclpy.qos.DurabilityPolicy.TRANSIENT_LOCAL
)


class Watcher:
    """Subscribes in a thread of its own and calls ``on_shot(shot, age_ms)`` for each grid. Use it in a `with`."""

    def __init__(self, on_shot: Callable[[Shot, float], None], rig: Rig, name: str = "/gdfusion") -> None:
        """``name`` is the occupancy node's, ``rig`` names the cameras' topics and the frames."""
        self._on_shot = on_shot
        self._rig = rig
        self._grid: Any = None
        self._images: dict[str, Any] = {}
        self._transforms = TransformBuffer()
        self._odometry: Matrix | None = None
        self._context = rclpy.Context()
        self._context.init()
        self._node = rclpy.create_node("gdfusion_view", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        subscribe = self._node.create_subscription
        self._subscriptions = [
            subscribe(VoxelFlow, f"{name}/flow", self._take_flow, RELIABLE),
            subscribe(SemanticOccupancy, f"{name}/occupancy", self._take_grid, RELIABLE),
            subscribe(TFMessage, "/tf", lambda message: self._take_transforms(message, False), 100),
            subscribe(TFMessage, "/tf_static", lambda message: self._take_transforms(message, True), LATCHED),
        ]
        if rig.motion == "odometry":
            odometry = subscribe(Odometry, rig.odometry_topic, self._take_odometry, qos_profile_sensor_data)
            self._subscriptions.append(odometry)
        kind = CompressedImage if rig.transport == "compressed" else Image
        for camera in rig.cameras:
            keep = self._keeper(camera.name)
            self._subscriptions.append(subscribe(kind, camera.image, keep, qos_profile_sensor_data))
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        self._context.try_shutdown()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return

    def _keeper(self, camera: str) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            self._images[camera] = message

        return keep

    def _take_flow(self, message: Any) -> None:
        # The node publishes a frame's flow after its grid: the grid is shown at once, and again with its flow.
        if self._grid is not None and self._grid.header.stamp == message.header.stamp:
            self._show(self._grid, message)

    def _take_transforms(self, message: Any, static: bool) -> None:
        for one in message.transforms:
            try:
                self._transforms.set_message(one, static)
            except ValueError as error:
                self._node.get_logger().warning(
                    f"a transform is left out: {error}", throttle_duration_sec=5.0
                )

    def _take_odometry(self, message: Any) -> None:
        p, q = message.pose.pose.position, message.pose.pose.orientation
        try:
            self._odometry = transform((p.x, p.y, p.z), (q.w, q.x, q.y, q.z))
        except ValueError as error:
            self._node.get_logger().warning(f"an odometry is left out: {error}", throttle_duration_sec=5.0)

    def _take_grid(self, message: Any) -> None:
        self._grid = message
        self._show(message, None)

    def _show(self, grid: Any, flow: Any) -> None:
        try:
            stamp = stamp_ns(grid.header.stamp)
            occupancy = occupancy_of(grid, self._pose(stamp), flow)
        except ValueError as error:
            self._node.get_logger().warning(f"a grid is left out: {error}", throttle_duration_sec=5.0)
            return
        age = (self._node.get_clock().now().nanoseconds - stamp) * 1e-6
        self._on_shot(make_shot(occupancy).with_pictures(self._pictures(stamp)), age)

    def _pose(self, stamp: int) -> Matrix | None:
        if self._rig.motion == "odometry":
            return self._odometry
        try:
            return self._transforms.lookup(self._rig.fixed_frame, self._rig.base_frame, stamp)
        except TransformError:
            return None

    def _pictures(self, stamp: int) -> dict[str, Picture]:
        decode = decode_compressed if self._rig.transport == "compressed" else decode_raw
        pictures = {}
        for name, message in list(self._images.items()):
            try:
                image = shrunk(decode(message))
            except ImageError:
                continue
            try:
                place = self._transforms.lookup(self._rig.base_frame, message.header.frame_id, stamp)
            except TransformError:
                place = None
            pictures[name] = Picture(image, place)
        return pictures
