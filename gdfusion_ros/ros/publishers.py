"""The node's output topics. Whatever costs time is made only while somebody subscribes to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from nav_msgs.msg import OccupancyGrid
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from gdfusion_ros.frame import Occupancy
from gdfusion_ros.labels import LabelSet
from gdfusion_ros.msg import LabelInfo, SemanticOccupancy, VoxelFlow
from gdfusion_ros.ros.adaptors import (
    autoware_points,
    flow_markers,
    obstacle_points,
    occupancy_grid,
    vision_label_info,
)
from gdfusion_ros.ros.conversion import (
    Cells,
    flow_message,
    label_info_message,
    model_id,
    occupancy_message,
    points_message,
    time_message,
)
from gdfusion_ros.ros.parameters import Settings

OUTPUT = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class OccupancyPublishers:
    """Publishes what comes out of the stream."""

    def __init__(self, node: LifecycleNode, label_set: LabelSet) -> None:
        self._all: list[Publisher[Any]] = []

        def publisher(kind: Any, topic: str, qos: QoSProfile = OUTPUT) -> Publisher[Any]:
            made = node.create_publisher(kind, f"~/{topic}", qos)
            self._all.append(made)
            return made

        self._occupancy = publisher(SemanticOccupancy, "occupancy")
        self._flow = publisher(VoxelFlow, "flow")
        self._points = publisher(PointCloud2, "points")
        self._obstacle_points = publisher(PointCloud2, "obstacle_points")
        self._autoware_points = publisher(PointCloud2, "autoware_points")
        self._occupancy_grid = publisher(OccupancyGrid, "occupancy_grid")
        self._flow_markers = publisher(MarkerArray, "flow_markers")
        self._latency = publisher(DiagnosticArray, "latency")
        now = node.get_clock().now().to_msg()
        publisher(LabelInfo, "label_info", LATCHED).publish(label_info_message(label_set, now))
        labels = vision_label_info(label_set)
        if labels is not None:
            labels.header.stamp = now
            publisher(type(labels), "vision_label_info", LATCHED).publish(labels)

    def destroy(self, node: LifecycleNode) -> None:
        """Take the topics away."""
        for publisher in self._all:
            node.destroy_publisher(publisher)

    def publish(self, occupancy: Occupancy, frame: str, settings: Settings) -> float:
        """Publish an occupancy in ``frame``; gives the milliseconds that it took."""
        begin = time.perf_counter()
        self._occupancy.publish(
            occupancy_message(
                occupancy,
                frame,
                cast(Literal["raw", "zlib"], settings.text("encoding")),
                settings.flag("confidence"),
            )
        )
        flow = occupancy.flow
        if flow is not None:
            cells = cast(Cells, settings.text("flow_cells"))
            _on_demand(self._flow, lambda: flow_message(occupancy, flow, frame, cells))
            _on_demand(self._flow_markers, lambda: flow_markers(occupancy, flow, frame))
        band = settings.obstacle_band
        _on_demand(self._points, lambda: points_message(occupancy, frame))
        _on_demand(self._obstacle_points, lambda: obstacle_points(occupancy, frame, band))
        _on_demand(self._autoware_points, lambda: autoware_points(occupancy, frame))
        _on_demand(self._occupancy_grid, lambda: occupancy_grid(occupancy, frame, band))
        return (time.perf_counter() - begin) * 1e3

    def publish_latency(
        self, occupancy: Occupancy, timings_ms: Mapping[str, float], reason: str | None
    ) -> None:
        """Publish where a frame's time went, and what the temporal state is; one status with key and value."""
        values = {f"{stage}_ms": f"{value:.3f}" for stage, value in timings_ms.items()}
        values["sequence"] = str(occupancy.sequence)
        values["history_frames"] = str(occupancy.history_frames)
        values["state_bytes"] = str(occupancy.state_bytes)
        if reason:
            values["sequence_started"] = reason
        status = DiagnosticStatus(
            level=DiagnosticStatus.OK,
            name="latency",
            hardware_id=model_id(occupancy),
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )
        header = Header(stamp=time_message(occupancy.stamp_ns))
        self._latency.publish(DiagnosticArray(header=header, status=[status]))


def _on_demand(publisher: Publisher[Any], make: Callable[[], Any]) -> None:
    if publisher.get_subscription_count():
        publisher.publish(make())
