"""Records what the node publishes, byte for byte, into a recording."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import PointCloud2

from gdfusion_ros.msg import LabelInfo, SemanticOccupancy, VoxelFlow
from gdfusion_ros.sinks.recording import Recording

OUTPUTS: dict[str, tuple[Any, str]] = {
    "occupancy": (SemanticOccupancy, "gdfusion_ros/msg/SemanticOccupancy"),
    "flow": (VoxelFlow, "gdfusion_ros/msg/VoxelFlow"),
    "label_info": (LabelInfo, "gdfusion_ros/msg/LabelInfo"),
    "points": (PointCloud2, "sensor_msgs/msg/PointCloud2"),
    "latency": (DiagnosticArray, "diagnostic_msgs/msg/DiagnosticArray"),
}
"""Topics of the node under its name, and their types."""


class OutputRecorder:
    """Subscribes to a node's outputs and writes them down; also keeps what `on_message` asks for."""

    def __init__(
        self, node: Node, recording: Recording, name: str, on_message: Callable[[str, Any], None]
    ) -> None:
        """``name`` is the occupancy node's, as "/gdfusion"; ``on_message(output, message)`` gets each message."""
        self._recording = recording
        self._on_message = on_message
        self._lock = threading.Lock()
        self._latest_ns = 0
        self._subscriptions = [
            self._subscribe(node, f"{name}/{output}", output, kind, kind_name)
            for output, (kind, kind_name) in OUTPUTS.items()
        ]

    def _subscribe(self, node: Node, topic: str, output: str, kind: Any, kind_name: str) -> Any:
        durability = DurabilityPolicy.TRANSIENT_LOCAL if output == "label_info" else DurabilityPolicy.VOLATILE

        def callback(data: bytes) -> None:
            message = deserialize_message(data, kind)
            stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            with self._lock:
                # Recorded at the data's time. What was latched before the first frame carries the node's
                # clock.
                self._latest_ns = stamp if output != "label_info" else self._latest_ns or stamp
                self._recording.write_cdr(topic, kind_name, data, self._latest_ns)
            self._on_message(output, message)

        return node.create_subscription(
            kind, topic, callback, QoSProfile(depth=10, durability=durability), raw=True
        )
