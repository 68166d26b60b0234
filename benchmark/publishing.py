"""What it costs the node to publish a full-size grid, with flow and points, to listeners in another process.

    python benchmark/publishing.py
    python benchmark/publishing.py --occupied 0.1 --frames 200

Makes 200 x 200 x 16 grids of which a part is occupied (a layer of ground first, the rest at random), with confidence
and a vector in every cell, and publishes each with the node's own publishers: `~/occupancy`, `~/flow` over the occupied
cells and `~/points`. Times are of the call that the node's inference thread makes, in milliseconds: as the clock saw
them, and as processor time of that thread, which other work on the machine hardly lengthens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import numpy as np

from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.grid import OCC3D as GRID
from gdfusion_ros.labels import OCC3D

TOPICS = ("occupancy", "flow", "points")
ROAD, WALL = 11, 15


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--occupied",
        type=float,
        nargs="*",
        default=[0.05, 0.1, 0.25, 0.5],
        help="parts of the cells that are",
    )
    parser.add_argument("--frames", type=int, default=50, help="grids of each kind (%(default)s)")
    parser.add_argument("--listen", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()

    from gdfusion_ros.ros.environment import stay_on_this_machine, use_shared_memory

    stay_on_this_machine()
    use_shared_memory()
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 101)))
    return _listen() if args.listen else _publish(args)


def _listen() -> int:
    """Take every message of the node in, until the other process ends this one."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import PointCloud2

    from gdfusion_ros.msg import SemanticOccupancy, VoxelFlow

    rclpy.init(args=[])
    node = rclpy.create_node("listener")
    for kind, topic in zip((SemanticOccupancy, VoxelFlow, PointCloud2), TOPICS, strict=True):
        node.create_subscription(kind, f"/gdfusion/{topic}", lambda _: None, QoSProfile(depth=1), raw=True)
    with suppress(ExternalShutdownException):
        rclpy.spin(node)
    return 0


def _publish(args: argparse.Namespace) -> int:
    import rclpy
    from rclpy.lifecycle import LifecycleNode

    from gdfusion_ros.ros.parameters import PARAMETERS, Settings
    from gdfusion_ros.ros.publishers import OccupancyPublishers

    settings = Settings({entry.name: entry.default for entry in PARAMETERS})
    rclpy.init(args=[])
    node = LifecycleNode("gdfusion")
    publishers = OccupancyPublishers(node, OCC3D)
    listener = subprocess.Popen([sys.executable, __file__, "--listen"])
    try:
        while any(node.count_subscribers(f"/gdfusion/{topic}") == 0 for topic in TOPICS):
            time.sleep(0.05)
        time.sleep(1.0)  # the listener's side of the discovery
        result = {
            f"{part:g}": _measure(
                lambda o: publishers.publish(o, "base_link", settings), grid(part), args.frames
            )
            for part in args.occupied
        }
    finally:
        listener.terminate()
        listener.wait()
        node.destroy_node()
        rclpy.try_shutdown()
    print(json.dumps(result))
    return 0


def _measure(publish: Any, occupancy: Occupancy, frames: int) -> dict[str, Any]:
    """Milliseconds of one call, and what it published."""
    publish(occupancy)
    wall, own = [], []
    for _ in range(frames):
        begin = time.thread_time()
        wall.append(publish(occupancy))
        own.append((time.thread_time() - begin) * 1e3)
        time.sleep(0.05)
    return {
        "occupied_cells": int((occupancy.labels != OCC3D.free).sum()),
        "wall_ms": {"median": round(statistics.median(wall), 2), "best": round(min(wall), 2)},
        "processor_ms": {"median": round(statistics.median(own), 2), "best": round(min(own), 2)},
    }


def grid(part: float) -> Occupancy:
    """A grid of which this part is occupied, with confidence and a vector in every cell."""
    rng = np.random.default_rng(0)
    labels = np.full(GRID.shape, OCC3D.free, np.uint8)
    ground = labels[:, :, 2].reshape(-1)
    ground[: round(min(part, 1 / 16) * GRID.cells)] = ROAD
    labels[:, :, 2] = ground.reshape(GRID.shape[:2])
    free = np.flatnonzero(labels == OCC3D.free)
    rest = round(part * GRID.cells) - int((labels == ROAD).sum())
    labels.reshape(-1)[rng.choice(free, max(rest, 0), replace=False)] = WALL
    vectors = rng.normal(size=(*GRID.shape, 3)).astype(np.float32)
    flow = Flow(FlowKind.HISTORY_DISPLACEMENT, vectors, np.ones(GRID.shape, bool))
    confidence = rng.integers(0, 256, GRID.shape, dtype=np.uint8)
    return Occupancy(
        labels, GRID, OCC3D, 10**18, 1, 0, ("CAM_FRONT",), (True,), "made-up", "none", np.eye(4), confidence, flow
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
