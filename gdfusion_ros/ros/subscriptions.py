"""The node's input topics. Callbacks hand their message on, and ask how far the frames are."""

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

LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TRANSFORMS = QoSProfile(depth=100)
ODOMETRY = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


class Subscriptions:
    """Listens to a rig's topics while it exists. All callbacks run in the executor's thread."""

    def __init__(
        self,
        node: Node,
        rig: Rig,
        settings: Settings,
        assembler: FrameAssembler,
        on_image: Callable[[str, Any], None],
        advance: Callable[[], None],
    ) -> None:
        """``on_image(camera, message)`` gets the images, ``assembler`` all else; ``advance`` is called after each."""
        self._node, self._advance = node, advance
        self._all: list[Any] = []
        # Transforms first: of what is ready at the same time, the executor takes what was subscribed to first, and
        # an image is no use before its transforms.
        self._hear(TFMessage, "/tf_static", lambda m: assembler.handle_transforms(m, static=True), LATCHED)
        self._hear(TFMessage, "/tf", lambda m: assembler.handle_transforms(m, static=False), TRANSFORMS)
        if rig.motion == "odometry":
            self._hear(Odometry, rig.odometry_topic, assembler.handle_odometry, ODOMETRY)
        reliable = settings.text("image_reliability") == "reliable"
        sensor = QoSProfile(
            depth=int(settings.number("image_depth")),
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        image = CompressedImage if rig.transport == "compressed" else Image
        for camera in rig.cameras:
            self._camera(camera, image, sensor, assembler, on_image)

    def destroy(self) -> None:
        """Hear nothing any more."""
        for subscription in self._all:
            self._node.destroy_subscription(subscription)

    def _camera(
        self,
        camera: CameraTopics,
        image: Any,
        qos: QoSProfile,
        assembler: FrameAssembler,
        on_image: Callable[[str, Any], None],
    ) -> None:
        if camera.info:
            self._hear(CameraInfo, camera.info, lambda m: assembler.handle_camera_info(camera.name, m), qos)
        overridable = QoSOverridingOptions.with_default_policies()
        self._hear(image, camera.image, lambda m: on_image(camera.name, m), qos, overridable)

    def _hear(
        self,
        kind: Any,
        topic: str,
        take: Callable[[Any], None],
        qos: QoSProfile,
        overridable: QoSOverridingOptions | None = None,
    ) -> None:
        def callback(message: Any) -> None:
            take(message)
            self._advance()

        made = self._node.create_subscription(kind, topic, callback, qos, qos_overriding_options=overridable)
        self._all.append(made)
