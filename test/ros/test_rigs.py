"""Rigs other than compressed cameras with transforms: raw images of any encoding, odometry, one camera, no clock."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from driving import SECOND, START
from nav_msgs.msg import OccupancyGrid
from nodes import NodeProcess, Peer, ros_environment, running_node, wait_for
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2
from vehicle import PICTURES, Vehicle, rig_files
from visualization_msgs.msg import MarkerArray

from gdfusion_ros.assembly.grids import occupancy_of

pytestmark = pytest.mark.ros

BACK = PICTURES["CAM_BACK"]
_DRIVES = itertools.count(1)


@pytest.fixture(scope="module")
def raw_node(tmp_path_factory):
    """A node that takes raw images, and the ego motion from odometry."""
    folder = tmp_path_factory.mktemp("raw")
    parameters = {**rig_files(folder, motion="odometry"), "transport": "raw", "image_reliability": "reliable"}
    with running_node(folder, **parameters) as (node, peer, _):
        Vehicle(node, peer, START, transport="raw", motion="odometry").prepare()
        yield node, peer


@pytest.fixture
def vehicle(raw_node):
    node, peer = raw_node
    begin = START + 1000 * SECOND * next(_DRIVES)
    vehicle = Vehicle(node, peer, begin, transport="raw", motion="odometry")
    vehicle.begin_drive()
    yield vehicle
    assert node.process.poll() is None, node.text()


def mosaic(rgb: np.ndarray) -> np.ndarray:
    """What a sensor with an RGGB filter sees of an image."""
    result = rgb[:, :, 1].copy()
    result[::2, ::2], result[1::2, 1::2] = rgb[::2, ::2, 0], rgb[1::2, 1::2, 2]
    return result


ENCODINGS = {
    "bgr8": np.ascontiguousarray(BACK[:, :, ::-1]),
    "rgba8": np.dstack([BACK, np.full(BACK.shape[:2], 255, np.uint8)]),
    "mono8": cv2.cvtColor(BACK, cv2.COLOR_RGB2GRAY),
    "mono16": cv2.cvtColor(BACK, cv2.COLOR_RGB2GRAY).astype(np.uint16) << 8,
    "bayer_rggb8": mosaic(BACK),
    "yuv422_yuy2": cv2.cvtColor(BACK, cv2.COLOR_RGB2YUV_YUY2),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_raw_images_of_many_encodings_make_frames(vehicle, encoding):
    stamp = vehicle.stamp(0.5)
    vehicle.image("CAM_FRONT", stamp)
    back = vehicle.stamp(0.5, "CAM_BACK")
    vehicle.pose(back)
    vehicle.raw_image("CAM_BACK", back, ENCODINGS[encoding], encoding)
    wait_for(lambda: vehicle.peer.has_frame(stamp), "the grid")
    assert vehicle.peer.grids[-1].cameras_used == 0b11
    assert vehicle.peer.grids[-1].history_frames == 1


@pytest.mark.parametrize(
    ("encoding", "changes", "words"),
    [
        ("32FC1", {}, "encoding '32FC1' is not one of"),
        ("rgb8", {"height": 97}, "but height * step is"),
        ("rgb8", {"step": 100}, "step 100 is less than"),
        ("rgb8", {"width": 60_000, "height": 60_000}, "60000x60000"),
    ],
    ids=["unknown encoding", "height", "step", "size"],
)
def test_a_raw_image_that_lies_is_refused_by_name_and_the_node_lives(vehicle, encoding, changes, words):
    refused = vehicle.count("CAM_BACK", "dropped_refused")
    vehicle.raw_image("CAM_BACK", vehicle.stamp(0.2, "CAM_BACK"), BACK, encoding, **changes)
    vehicle.wait_for_count("CAM_BACK", "dropped_refused", refused + 1)
    assert words in vehicle.peer.camera("CAM_BACK")["message"]
    vehicle.frame(0.5)


def test_odometry_places_the_frames_and_a_jump_of_it_starts_anew(vehicle):
    vehicle.frame(0.5)
    assert vehicle.peer.grids[-1].history_frames == 1
    vehicle.frame(1.0, x=500.0)
    assert vehicle.peer.latencies[-1]["sequence_started"] == "pose_jump"
    first = vehicle.shoot(1.5, pose=False)
    assert not vehicle.peer.has_frame(first)
    vehicle.pose(vehicle.stamp(1.5), x=500.0)
    vehicle.pose(vehicle.stamp(1.5, "CAM_BACK"), x=500.0)
    wait_for(lambda: vehicle.peer.has_frame(first), "the grid whose odometry came late")


def test_every_adaptor_is_published_to_those_who_listen(vehicle):
    peer, qos = vehicle.peer, QoSProfile(depth=10)
    heard: dict[str, object] = {}

    def hear(kind, topic):
        peer.hear(kind, f"/gdfusion/{topic}", lambda message: heard.__setitem__(topic, message), qos)

    clouds = ("points", "obstacle_points", "autoware_points")
    for topic in clouds:
        hear(PointCloud2, topic)
    hear(OccupancyGrid, "occupancy_grid")
    hear(MarkerArray, "flow_markers")
    vehicle.frames_until(lambda: len(heard) == 5, "all adaptors", 0.5)
    grid = occupancy_of(peer.grids[-1])
    occupied = int(((grid.labels != 17) & (grid.labels != 255)).sum())
    assert heard["points"].width == heard["autoware_points"].width == occupied
    for topic in (*clouds, "occupancy_grid"):
        assert heard[topic].header.frame_id == "base_link"
    assert (heard["occupancy_grid"].info.width, heard["occupancy_grid"].info.height) == grid.grid.shape[:2]
    wait_for(lambda: peer.flows, "the flow")
    assert np.isfinite(np.array(peer.flows[-1].vx)).all()


def test_one_camera_without_a_clock_through_every_state(tmp_path):
    """One camera, its life cycle managed from outside, and use_sim_time with nothing on /clock."""
    parameters = {**rig_files(tmp_path, ("CAM_FRONT",)), "autostart": False, "use_sim_time": True}
    parameters |= {"image_reliability": "reliable", "tf_timeout": 0.3}
    with ros_environment() as environment:
        node = NodeProcess(environment, tmp_path, **parameters)
        peer = Peer(environment)
        try:
            assert peer.state() == "unconfigured"
            wait_for(lambda: peer.diagnostics.get("gdfusion: temporal state"), "diagnostics")
            assert peer.diagnostics["gdfusion: temporal state"]["message"] == "the node is not active"
            assert peer.change_state("configure")
            node.says("the weights of two were trained on CAM_FRONT, CAM_BACK: expect less")
            vehicle = Vehicle(node, peer, START, cameras=("CAM_FRONT",))
            for turn in range(2):  # everything can be taken down and up again
                assert peer.change_state("activate")
                vehicle.begin += 1000 * SECOND
                vehicle.prepare()
                vehicle.begin_drive()
                vehicle.frame(0.5)
                assert peer.grids[-1].cameras_used == 0b1
                assert peer.grids[-1].history_frames == 1
                assert peer.change_state("deactivate")
                wait_for(lambda: not peer.is_heard("/tf"), "the end of the subscriptions")
                if turn == 0:
                    assert peer.change_state("cleanup")
                    assert peer.state() == "unconfigured"
                    assert peer.change_state("configure")
            node.says("nothing comes on /clock")
            assert peer.change_state("activate")
            vehicle.begin += 1000 * SECOND
            vehicle.prepare()
            vehicle.begin_drive()
            # Without a clock, how long a transform is waited for is measured by the images that go on coming.
            for i in range(1, 5):
                vehicle.shoot(i * 0.5, pose=False)
            vehicle.wait_for_count("CAM_FRONT", "dropped_no_transform", 3)
            vehicle.frame(2.5)
        finally:
            peer.close()
            assert node.stop() == 0, node.text()
    assert "Traceback" not in node.text()
