"""What costs time is made only while somebody subscribes to it."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import rclpy
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import PointCloud2

from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.ros import publishers as module
from gdfusion_ros.ros.parameters import PARAMETERS, Settings

pytestmark = pytest.mark.ros

ON_DEMAND = {
    "flow_message", "flow_markers", "points_message", "obstacle_points", "autoware_points", "occupancy_grid",
}  # fmt: skip


def test_an_adaptor_is_made_for_those_who_listen_only(ros_domain, monkeypatch):
    made: Counter[str] = Counter()
    for name in ON_DEMAND:
        real = getattr(module, name)

        def counted(*arguments, real=real, name=name):
            made[name] += 1
            return real(*arguments)

        monkeypatch.setattr(module, name, counted)
    grid = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 2))
    flow = Flow(FlowKind.VELOCITY, np.zeros((2, 2, 2, 3), np.float32), np.ones((2, 2, 2), bool))
    labels = np.full((2, 2, 2), 4, np.uint8)
    occupancy = Occupancy(
        labels, grid, OCC3D, 1, 1, 0, ("A",), (True,), "net", "random:0", np.eye(4), None, flow
    )
    settings = Settings({entry.name: entry.default for entry in PARAMETERS})
    context = rclpy.Context()
    context.init()
    node = LifecycleNode("gdfusion", context=context)
    try:
        outputs = module.OccupancyPublishers(node, OCC3D)
        outputs.publish(occupancy, "base_link", settings)
        assert made == {}
        subscription = node.create_subscription(PointCloud2, "/gdfusion/points", lambda _: None, 1)
        deadline = time.monotonic() + 60
        while not made and time.monotonic() < deadline:
            outputs.publish(occupancy, "base_link", settings)
            time.sleep(0.01)
        assert set(made) == {"points_message"}
        node.destroy_subscription(subscription)
    finally:
        node.destroy_node()
        context.try_shutdown()
