"""What the node does when things go wrong: the table of its interface, row by row, over real DDS.

One node lives through all of it. Each test drives at a time of its own, far from the others', so that it begins with a
new sequence.
"""

from __future__ import annotations

import itertools
import struct
import time
from dataclasses import dataclass

import numpy as np
import pytest
from driving import (
    NUSCENES,
    OFFSETS_MS,
    SECOND,
    START,
    TWO_CAMERAS,
    camera_info,
    compressed,
    ego_from_camera,
    ego_pose,
    intrinsics,
    jpeg,
    picture,
    stamped_transform,
    tf,
    two_camera_files,
)
from nodes import NodeProcess, Peer, running_node, wait_for
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter

from gdfusion_ros.sinks.bag import image_topic, info_topic

pytestmark = pytest.mark.ros

MS = 1_000_000
IMAGES = {name: jpeg(picture(i)) for i, name in enumerate(TWO_CAMERAS)}
_DRIVES = itertools.count(1)


@dataclass
class Vehicle:
    """Two cameras and a pose source that say what a test wants said."""

    node: NodeProcess
    peer: Peer
    begin: int
    origin: float = 0.0

    def stamp(self, at: float, camera: str = "CAM_FRONT") -> int:
        """When a camera exposes for the frame at this time."""
        return self.begin + round(at * SECOND) + OFFSETS_MS[NUSCENES.index(camera)] * MS

    def pose(self, stamp: int, x: float = 0.0) -> None:
        pose = ego_pose((stamp - self.begin) / SECOND)
        pose[0, 3] += x
        self.peer.say("/tf", "TFMessage", tf(stamped_transform(stamp, "odom", "base_link", pose)))

    def static(self) -> None:
        transforms = [stamped_transform(0, "base_link", name, ego_from_camera(name)) for name in TWO_CAMERAS]
        self.peer.say("/tf_static", "TFMessage", tf(*transforms))

    def info(self, camera: str, stamp: int, **changes) -> None:
        self.peer.say(info_topic(camera), "CameraInfo", camera_info(stamp, camera, **changes))

    def image(
        self, camera: str, stamp: int, data: bytes | None = None, pose: bool = True, x: float = 0.0
    ) -> None:
        if pose:
            self.pose(stamp, x)
        message = compressed(stamp, IMAGES[camera] if data is None else data, camera)
        self.peer.say(image_topic(camera), "CompressedImage", message)

    def shoot(self, at: float, without: str = "", x: float = 0.0, pose: bool = True) -> int:
        """Both cameras; gives the anchor's stamp."""
        for camera in TWO_CAMERAS:
            if camera != without:
                self.image(camera, self.stamp(at, camera), pose=pose, x=x)
        return self.stamp(at)

    def frame(self, at: float, **how) -> None:
        """Both cameras, and wait for the grid."""
        stamp = self.shoot(at, **how)
        wait_for(lambda: self.peer.has_frame(stamp), f"the grid at {at} s")

    def grids(self) -> list[float]:
        """Times of this drive's grids."""
        return [(stamp - self.begin) / SECOND for stamp in self.peer.stamps()]

    def sequences(self) -> list[int]:
        return [grid.sequence for grid in self.peer.grids]

    def count(self, camera: str, reason: str) -> int:
        return int(self.peer.camera(camera).get(reason, 0))

    def wait_for_count(self, camera: str, reason: str, number: int) -> None:
        wait_for(lambda: self.count(camera, reason) >= number, f"{number} {reason} of {camera}")

    def set(self, **values) -> list[tuple[bool, str]]:
        """Set parameters; gives whether each was accepted, and the reason if not."""
        request = SetParameters.Request()
        request.parameters = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        answer = self.peer.call(SetParameters, "/gdfusion/set_parameters", request)
        return [(result.successful, result.reason) for result in answer.results]


@pytest.fixture(scope="module")
def living_node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    parameters = {**two_camera_files(folder), "image_reliability": "reliable", "missing_frames_error": 3}
    with running_node(folder, **parameters) as (node, peer, _):
        topics = {image_topic(name): "CompressedImage" for name in TWO_CAMERAS}
        topics |= {info_topic(name): "CameraInfo" for name in TWO_CAMERAS}
        peer.prepare(topics | {"/tf": "TFMessage", "/tf_static": "TFMessage"})
        Vehicle(node, peer, START).static()
        yield node, peer


@pytest.fixture
def vehicle(living_node):
    """The vehicle at a time of its own, with one frame behind it."""
    node, peer = living_node
    vehicle = Vehicle(node, peer, START + 1000 * SECOND * next(_DRIVES))
    for camera in TWO_CAMERAS:
        vehicle.info(camera, vehicle.begin)
    vehicle.frame(0.0)
    peer.grids.clear()
    peer.latencies.clear()
    yield vehicle
    assert node.process.poll() is None, node.text()


def test_a_missing_camera_skips_the_frame_is_named_and_recovers_by_itself(vehicle):
    for i in range(1, 5):
        vehicle.shoot(i * 0.5, without="CAM_BACK")
    vehicle.frame(2.5)
    assert vehicle.grids() == [2.5]
    assert vehicle.peer.latencies[-1]["sequence_started"] in ("gap", "camera_was_missing")
    assert "CAM_BACK: no image" in vehicle.node.text()
    for i in range(6, 10):
        vehicle.shoot(i * 0.5, without="CAM_BACK")
    wait_for(lambda: vehicle.peer.camera("CAM_BACK").get("level") == 2, "an error that names the camera")
    assert "missing in" in vehicle.peer.camera("CAM_BACK")["message"]
    vehicle.frame(5.0)
    wait_for(lambda: vehicle.peer.camera("CAM_BACK").get("level") == 0, "recovery")


def test_after_a_skipped_frame_history_starts_anew(vehicle):
    vehicle.shoot(0.5, without="CAM_BACK")
    vehicle.frame(1.0)
    assert vehicle.peer.latencies[-1]["sequence_started"] == "camera_was_missing"


def test_a_missing_camera_can_be_blank_and_the_message_says_so(vehicle):
    assert vehicle.set(missing_camera="blank") == [(True, "")]
    try:
        stamp = vehicle.shoot(0.5, without="CAM_BACK")
        wait_for(lambda: vehicle.peer.has_frame(stamp), "a grid without CAM_BACK")
        assert vehicle.peer.grids[-1].cameras_used == 0b01
        vehicle.frame(1.0)
        assert vehicle.peer.grids[-1].cameras_used == 0b11
        assert vehicle.peer.grids[-1].history_frames == 2
    finally:
        vehicle.set(missing_camera="skip")


def test_late_duplicate_and_disordered_images_are_dropped_and_history_never_runs_backwards(vehicle):
    before = {
        reason: vehicle.count("CAM_BACK", reason) for reason in ("dropped_duplicate", "dropped_out_of_order")
    }
    vehicle.frame(0.5)
    back = vehicle.stamp(0.5, "CAM_BACK")
    vehicle.image("CAM_BACK", back)
    vehicle.image("CAM_BACK", back - 300 * MS)
    vehicle.image("CAM_FRONT", vehicle.stamp(0.5))
    vehicle.image("CAM_FRONT", vehicle.stamp(0.5) - 400 * MS)
    vehicle.frame(1.0)
    assert vehicle.grids() == [0.5, 1.0]
    for reason, count in before.items():
        vehicle.wait_for_count("CAM_BACK", reason, count + 1)
    assert vehicle.sequences()[0] == vehicle.sequences()[1]


def test_a_late_transform_is_waited_for_and_a_missing_one_costs_the_frame(vehicle):
    dropped = vehicle.count("CAM_FRONT", "dropped_no_transform")
    first = vehicle.shoot(0.5, pose=False)
    vehicle.pose(vehicle.stamp(0.5, "CAM_FRONT"))
    vehicle.pose(vehicle.stamp(0.5, "CAM_BACK"))
    wait_for(lambda: vehicle.peer.has_frame(first), "the grid whose transforms came late")
    for i in range(2, 5):
        vehicle.shoot(i * 0.5, pose=False)
    vehicle.wait_for_count("CAM_FRONT", "dropped_no_transform", dropped + 1)
    assert vehicle.grids() == [0.5]
    vehicle.frame(3.0)


def test_a_clock_that_jumps_back_starts_a_new_sequence_and_goes_on(vehicle):
    vehicle.frame(0.5)
    vehicle.frame(-20.0)
    vehicle.frame(-19.5)
    assert vehicle.grids() == [0.5, -20.0, -19.5]
    first, second, third = vehicle.sequences()
    assert first < second == third
    assert vehicle.peer.latencies[1]["sequence_started"] == "time_went_back"
    assert "went back" in vehicle.node.text()


def test_a_long_pause_starts_a_new_sequence(vehicle):
    vehicle.frame(60.0)
    assert vehicle.peer.latencies[-1]["sequence_started"] == "gap"


def test_a_teleport_starts_a_new_sequence(vehicle):
    vehicle.frame(0.5)
    vehicle.frame(1.0, x=500.0)
    assert [latency.get("sequence_started") for latency in vehicle.peer.latencies] == [None, "pose_jump"]


@pytest.mark.parametrize("fault", ["nan", "zero focal length", "wrong size"])
def test_a_broken_camera_info_is_refused_by_name_and_the_last_good_one_stays(vehicle, fault):
    k, size = intrinsics(), (96, 160)
    if fault == "nan":
        k[0, 2] = np.nan
    elif fault == "zero focal length":
        k[0, 0] = 0.0
    else:
        size = (0, 0)
    vehicle.info("CAM_BACK", vehicle.stamp(0.2), k=k, size=size)
    vehicle.frame(0.5)
    assert vehicle.peer.latencies[-1].get("sequence_started") is None
    vehicle.node.says("CAM_BACK: ")


def test_a_quaternion_that_is_not_of_unit_length_is_refused(vehicle):
    broken = stamped_transform(vehicle.stamp(0.5), "odom", "base_link", np.eye(4))
    broken.transform.rotation.w = 3.0
    vehicle.peer.say("/tf", "TFMessage", tf(broken))
    vehicle.frame(0.5)
    vehicle.node.says("not a unit quaternion")
    assert vehicle.peer.latencies[-1].get("sequence_started") is None


def test_a_calibration_that_changes_starts_a_new_sequence(vehicle):
    vehicle.frame(0.5)
    k = intrinsics()
    k[0, 0] = k[1, 1] = 140.0
    vehicle.info("CAM_BACK", vehicle.stamp(0.8), k=k)
    vehicle.frame(1.0)
    assert vehicle.peer.latencies[-1]["sequence_started"] == "calibration_changed"


def test_an_image_of_another_size_is_used_with_scaled_intrinsics(vehicle):
    stamp = vehicle.stamp(0.5)
    vehicle.image("CAM_FRONT", stamp)
    vehicle.image("CAM_BACK", vehicle.stamp(0.5, "CAM_BACK"), jpeg(picture(5, (192, 320))))
    wait_for(lambda: vehicle.peer.has_frame(stamp), "the grid")
    assert vehicle.peer.latencies[-1]["sequence_started"] == "calibration_changed"


def bomb() -> bytes:
    data = bytearray(jpeg(picture(1)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (jpeg(picture(1))[:1500], "truncated"),
        (bomb(), "65000x65000"),
        (b"RIFF....WEBPVP8 ", "neither JPEG nor PNG"),
        (b"", "neither JPEG nor PNG"),
    ],
    ids=["truncated", "bomb", "unknown format", "empty"],
)
def test_a_hostile_image_is_refused_before_it_is_decoded_and_the_node_lives(vehicle, data, words):
    refused = vehicle.count("CAM_BACK", "dropped_refused")
    vehicle.image("CAM_BACK", vehicle.stamp(0.2, "CAM_BACK"), data)
    vehicle.wait_for_count("CAM_BACK", "dropped_refused", refused + 1)
    vehicle.frame(0.5)
    assert vehicle.peer.latencies[-1].get("sequence_started") is None


def test_when_inference_is_slow_the_newest_frame_wins_and_the_rest_is_counted(vehicle):
    superseded = vehicle.count("CAM_FRONT", "dropped_superseded")
    assert vehicle.set(inference_period=0.0) == [(True, "")]
    try:
        for i in range(1, 31):
            last = vehicle.shoot(i * 0.1)
            time.sleep(0.05)
        wait_for(lambda: vehicle.peer.has_frame(last), "the newest frame's grid")
        vehicle.wait_for_count("CAM_FRONT", "dropped_superseded", superseded + 1)
        stamps = vehicle.peer.stamps()
        assert stamps == sorted(set(stamps))
        assert len(stamps) + vehicle.count("CAM_FRONT", "dropped_superseded") - superseded <= 30
    finally:
        vehicle.set(inference_period=0.5)


def test_slow_frames_are_a_warning_and_a_run_of_them_an_error(vehicle):
    vehicle.set(slow_frame=0.0, slow_frames_error=3)
    try:
        vehicle.frame(0.5)
        wait_for(lambda: vehicle.peer.diagnostics["gdfusion: stages"]["level"] == 1, "a warning")
        for i in range(2, 5):
            vehicle.frame(i * 0.5)
        wait_for(lambda: vehicle.peer.diagnostics["gdfusion: stages"]["level"] == 2, "an error")
    finally:
        vehicle.set(slow_frame=2.0, slow_frames_error=5)


def test_every_image_is_accounted_for(vehicle):
    vehicle.frame(0.5)

    def adds_up() -> bool:
        for camera in TWO_CAMERAS:
            values = vehicle.peer.camera(camera)
            dropped = sum(int(value) for key, value in values.items() if key.startswith("dropped_"))
            if int(values["received"]) != int(values["used"]) + int(values["waiting"]) + dropped:
                return False
        return True

    wait_for(adds_up, "counts that add up")


def test_thresholds_change_at_run_time_and_the_model_does_not(vehicle):
    ((done, reason),) = vehicle.set(model="another")
    assert not done
    assert "model" in reason or "read-only" in reason
    ((done, reason),) = vehicle.set(missing_camera="guess")
    assert not done
    assert "must be one of" in reason
    ((done, _),) = vehicle.set(sync_tolerance=5.0)
    assert not done
    assert vehicle.set(sync_tolerance=0.1, confidence=False) == [(True, ""), (True, "")]
    vehicle.frame(0.5)
    assert len(vehicle.peer.grids[-1].confidence) == 0
    vehicle.set(sync_tolerance=0.15, confidence=True)


def test_a_reset_starts_a_new_sequence(vehicle):
    vehicle.frame(0.5)
    answer = vehicle.peer.trigger("reset")
    assert answer.success
    vehicle.frame(1.0)
    assert vehicle.peer.latencies[-1]["sequence_started"] == "reset_service"


def test_without_a_state_file_saving_is_refused_with_a_hint(vehicle):
    answer = vehicle.peer.trigger("save_state")
    assert not answer.success
    assert "state_file" in answer.message
