"""What a running node publishes, as shots for the viewer: grid, flow, images, ego pose."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from tf2_msgs.msg import TFMessage

from gdfusion_ros.assembly.codec import ImageError, decode_compressed, decode_raw
from gdfusion_ros.assembly.grids import occupancy_of
from gdfusion_ros.assembly.messages import SECOND
from gdfusion_ros.assembly.rig import Rig
from gdfusion_ros.assembly.transforms import TransformBuffer, TransformError
from gdfusion_ros.geometry import Matrix, transform
from gdfusion_ros.msg import SemanticOccupancy, VoxelFlow
from gdfusion_ros.viewer.shot import Picture, Shot, make_shot, shrunk, with_latency

RELIABLE = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=rclpy.qos.DurabilityPolicy.TRANSIENT_LOCAL
)

MAX_AGE_MS = 60_000.0
"""An exposure longer ago than this is a recording's: its age says nothing."""
KEPT = {"compressed": 12, "raw": 4}
"""Images of each camera that are kept until the grid of their time comes, by how they are sent."""
PATIENCE = 0.2
"""Seconds that parts of a frame wait for each other."""


@dataclass
class _Parts:
    """What has come of one frame. Topics keep no order among each other."""

    grid: Any = None
    flow: Any = None
    latency: Any = None
    age_ms: float | None = None
    since: float = field(default_factory=time.monotonic)


class Watcher:
    """Subscribes in a thread of its own and calls ``on_shot(shot, age_ms)`` for each grid. Use it in a `with`.

    A grid waits a moment for its flow and its latency, which the node publishes after it. ``age_ms`` is the time from
    the exposure to the grid's coming; None for recordings that are played.
    """

    def __init__(
        self, on_shot: Callable[[Shot, float | None], None], rig: Rig, name: str = "/gdfusion"
    ) -> None:
        """``name`` is the occupancy node's, ``rig`` names the cameras' topics and the frames."""
        self._on_shot = on_shot
        self._rig = rig
        self._parts: dict[int, _Parts] = {}
        self._flow_expected = False
        self._images: dict[str, deque[Any]] = {}
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
            subscribe(DiagnosticArray, f"{name}/latency", self._take_latency, RELIABLE),
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
        self._timer = self._node.create_timer(0.05, self._show_late)
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
        images = self._images[camera] = deque(maxlen=KEPT[self._rig.transport])

        def keep(message: Any) -> None:  # rclpy reads its signature, which a deque's append has none of
            images.append(message)

        return keep

    def _take_grid(self, message: Any) -> None:
        age = (self._node.get_clock().now().nanoseconds - _nanoseconds(message)) * 1e-6
        self._take(message, grid=message, age_ms=age if 0.0 <= age < MAX_AGE_MS else None)

    def _take_flow(self, message: Any) -> None:
        self._flow_expected = True
        self._take(message, flow=message)

    def _take_latency(self, message: Any) -> None:
        self._take(message, latency=message)

    def _take(self, message: Any, **parts: Any) -> None:
        stamp = _nanoseconds(message)
        there = self._parts[stamp] = replace(self._parts.get(stamp, _Parts()), **parts)
        flow_there = there.flow is not None or not self._flow_expected
        if there.grid is not None and there.latency is not None and flow_there:
            self._show(stamp)

    def _show_late(self) -> None:
        for stamp, there in sorted(self._parts.items()):
            if time.monotonic() - there.since > PATIENCE:
                self._show(stamp)

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

    def _show(self, stamp: int) -> None:
        parts = self._parts.pop(stamp)
        if parts.grid is None:  # it was shown before the rest of it came, or was lost
            return
        try:
            occupancy = occupancy_of(parts.grid, self._pose(stamp), parts.flow)
        except ValueError as error:
            self._node.get_logger().warning(f"a grid is left out: {error}", throttle_duration_sec=5.0)
            return
        shot = make_shot(occupancy).with_pictures(self._pictures(stamp))
        self._on_shot(shot if parts.latency is None else with_latency(shot, parts.latency), parts.age_ms)

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
        for name, messages in self._images.items():
            # Grids come after newer images: those of the grid's own time are shown.
            message = min(messages, key=lambda one: abs(_nanoseconds(one) - stamp), default=None)
            if message is None:
                continue
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


def _nanoseconds(message: Any) -> int:
    """The stamp, sane or not: it only says which image is nearest."""
    return int(message.header.stamp.sec) * SECOND + int(message.header.stamp.nanosec)
