"""`gdfusion view --live`: what a node publishes over DDS becomes shots."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from driving import SECOND, drive

from gdfusion_ros.assembly.rig import find_topics, read_rig
from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.viewer.shot import Shot, make_shot

rclpy = pytest.importorskip("rclpy")

pytestmark = pytest.mark.ros
GRID = VoxelGrid((-4.0, -4.0, -1.0), (1.0, 1.0, 1.0), (8, 8, 4))


def grid_at(stamp_ns: int) -> Occupancy:
    labels = np.full(GRID.shape, OCC3D.free, np.uint8)
    labels[:, :, 0] = 11
    labels[6, 3, 1] = 4
    vectors = np.zeros((*GRID.shape, 3), np.float32)
    vectors[6, 3, 1] = (2.0, 0.0, 0.0)
    flow = Flow(FlowKind.VELOCITY, vectors, labels == 4)
    confidence = np.full(GRID.shape, 77, np.uint8)
    return Occupancy(
        labels, GRID, OCC3D, stamp_ns, 2, 5, ("CAM_FRONT",), (True,), "m", "w", np.eye(4), confidence, flow
    )


def received_when(shots: queue.Queue[Shot], true: Callable[[Shot], bool]) -> Shot:
    """The first shot of which something is true."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            shot = shots.get(timeout=1.0)
        except queue.Empty:
            continue
        if true(shot):
            return shot
    pytest.fail("no such shot came")


def test_grids_flow_and_images_of_a_node_become_shots(ros_domain: int) -> None:
    from builtin_interfaces.msg import Time
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from sensor_msgs.msg import CompressedImage

    from gdfusion_ros.assembly.codec import encode_png
    from gdfusion_ros.msg import SemanticOccupancy, VoxelFlow
    from gdfusion_ros.ros.conversion import flow_message, occupancy_message
    from gdfusion_ros.ros.watcher import Watcher

    shots: queue.Queue[Shot] = queue.Queue()
    rig = read_rig(find_topics("nuscenes"))
    frame = drive([0.0])[0]
    front = frame.view("CAM_FRONT")
    original = grid_at(frame.stamp_ns)
    context = rclpy.Context()
    context.init()
    node = rclpy.create_node("made_up", context=context)
    grids = node.create_publisher(SemanticOccupancy, "/gdfusion/occupancy", 1)
    flows = node.create_publisher(VoxelFlow, "/gdfusion/flow", 1)
    latencies = node.create_publisher(DiagnosticArray, "/gdfusion/latency", 1)
    images = node.create_publisher(CompressedImage, "/CAM_FRONT/image_rect_compressed", 5)
    stop = threading.Event()

    def publish() -> None:
        image = CompressedImage(format="png", data=encode_png(front.image))
        image.header.frame_id = "CAM_FRONT"
        image.header.stamp = Time(sec=frame.stamp_ns // SECOND, nanosec=frame.stamp_ns % SECOND)
        later = CompressedImage(format="png", data=encode_png(np.zeros_like(front.image)))
        later.header.frame_id = "CAM_FRONT"
        later.header.stamp = Time(sec=frame.stamp_ns // SECOND + 1)
        values = {"total_ms": "95.5", "inference_ms": "80.0", "sequence_started": "camera_was_missing"}
        latency = DiagnosticArray(
            status=[DiagnosticStatus(values=[KeyValue(key=k, value=v) for k, v in values.items()])]
        )
        latency.header.stamp = image.header.stamp
        broken: Any = occupancy_message(original, "base_link")
        broken.size_x = 9
        while not stop.wait(0.2):
            images.publish(image)
            images.publish(later)
            grids.publish(broken)
            grids.publish(occupancy_message(original, "base_link", "zlib"))
            flows.publish(flow_message(original, original.flow, "base_link"))
            latencies.publish(latency)

    publisher = threading.Thread(target=publish)
    with Watcher(lambda shot, age: shots.put(shot), rig):
        publisher.start()
        try:
            shot = received_when(
                shots,
                lambda one: (
                    one.vectors is not None and "CAM_FRONT" in one.pictures and "total" in one.timings_ms
                ),
            )
        finally:
            stop.set()
            publisher.join()
    node.destroy_node()
    context.try_shutdown()

    expected = make_shot(original)
    for name in ("cells", "labels", "confidence", "vectors_valid"):
        np.testing.assert_array_equal(getattr(shot, name), getattr(expected, name))
    np.testing.assert_array_equal(shot.vectors[shot.vectors_valid], expected.vectors[expected.vectors_valid])
    assert (shot.sequence, shot.history_frames, shot.stamp_ns) == (2, 5, frame.stamp_ns)
    # Of the grid's own time, not the newest.
    np.testing.assert_array_equal(shot.pictures["CAM_FRONT"].image, front.image)
    assert (shot.timings_ms["total"], shot.restart_reason) == (95.5, "camera_was_missing")
