"""The node's input topics. Callbacks hand their message to the assembler and ask it how far the frames are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

from gdfusion_ros.assembly.assembler import FrameAssembler
from gdfusion_ros.assembly.rig import CameraTopics, Rig
from gdfusion_ros.ros.parameters import Settings

Hear = Callable[[str, Any], None]


class Subscriptions:
    """Feeds an assembler from a rig's topics while it exists. All callbacks run in the executor's thread."""

    def __init__(
        self,
        node: Node,
        rig: Rig,
        settings: Settings,
        assembler: FrameAssembler,
        advance: Callable[[], None],
        on_image: Hear,
    ) -> None:
        """``on_image(camera, message)`` is called before an image is taken in, ``advance`` after every message."""
        self._node, self._assembler, self._advance, self._on_image = node, assembler, advance, on_image
        # Transforms first: of what is ready at the same time, the executor takes what was subscribed to first, and
        # an image is no use before its transforms.
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._all = [
            node.create_subscription(TFMessage, "/tf_static", self._transforms(static=True), latched),
            node.create_subscription(TFMessage, "/tf", self._transforms(static=False), QoSProfile(depth=100)),
        ]
        if rig.motion == "odometry":
            odometry = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._all.append(node.create_subscription(Odometry, rig.odometry_topic, self._odometry, odometry))
        for camera in rig.cameras:
            self._camera(camera, rig.transport, settings)

    def destroy(self) -> None:
        """Hear nothing any more."""
        for subscription in self._all:
            self._node.destroy_subscription(subscription)

    def _camera(self, camera: CameraTopics, transport: str, settings: Settings) -> None:
        reliable = settings.text("image_reliability") == "reliable"
        sensor = QoSProfile(
            depth=int(settings.number("image_depth")),
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        if camera.info:
            info = self._node.create_subscription(CameraInfo, camera.info, self._info(camera.name), sensor)
            self._all.append(info)
        image = self._node.create_subscription(
            CompressedImage if transport == "compressed" else Image,
            camera.image,
            self._image(camera.name),
            sensor,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._all.append(image)

    def _image(self, camera: str) -> Callable[[Any], None]:
        def callback(message: Any) -> None:
            self._on_image(camera, message)
            self._assembler.handle_image(camera, message, int(self._node.get_clock().now().nanoseconds))
            self._advance()

        return callback

    def _info(self, camera: str) -> Callable[[Any], None]:
        def callback(message: Any) -> None:
            self._assembler.handle_camera_info(camera, message)
            self._advance()

        return callback

    def _transforms(self, static: bool) -> Callable[[Any], None]:
        def callback(message: Any) -> None:
            self._assembler.handle_transforms(message, static)
            self._advance()

        return callback

    def _odometry(self, message: Any) -> None:
        self._assembler.handle_odometry(message)
        self._advance()
