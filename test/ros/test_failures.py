"""What the node does when things go wrong: the table of its interface, row by row, over real DDS.

One node lives through all of it. Each test drives at a time of its own, far from the others', so that it begins with a
new sequence.
"""

from __future__ import annotations

import itertools
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from driving import SECOND, START, TWO_CAMERAS, intrinsics, jpeg, picture, stamped_transform, tf
from nodes import running_node, wait_for
from rcl_interfaces.srv import DescribeParameters
from std_srvs.srv import Trigger
from vehicle import MS, Vehicle, rig_files

from gdfusion_ros.assembly.codec import encode_png
from gdfusion_ros.ros.parameters import PARAMETERS

pytestmark = pytest.mark.ros

_DRIVES = itertools.count(1)


@pytest.fixture(scope="module")
def living_node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    (folder / "faults").write_text("")
    parameters = {**rig_files(folder), "image_reliability": "reliable", "missing_frames_error": 3}
    script = Path(__file__).parent.parent / "faulty_node.py"
    variables = {"FAULTS": str(folder / "faults")}
    with running_node(folder, script, variables, **parameters) as (node, peer, _):
        Vehicle(node, peer, START).prepare()
        yield node, peer, folder / "faults"


@pytest.fixture
def vehicle(living_node):
    """The vehicle at a time of its own, with one frame behind it."""
    node, peer, _ = living_node
    vehicle = Vehicle(node, peer, START + 1000 * SECOND * next(_DRIVES))
    vehicle.begin_drive()
    yield vehicle
    assert node.process.poll() is None, node.text()


@pytest.fixture
def fault(living_node):
    """Makes the network do something; it does not any more when the test ends."""
    _, _, file = living_node
    yield file.write_text
    file.write_text("")


def test_a_missing_camera_skips_the_frame_is_named_and_recovers_by_itself(vehicle):
    for i in range(1, 5):
        vehicle.shoot(i * 0.5, without="CAM_BACK")
    vehicle.frame(2.5)
    assert vehicle.grids() == [2.5]
    assert vehicle.peer.latencies[-1]["sequence_started"] in ("gap", "camera_was_missing")
    assert "CAM_BACK: no image" in vehicle.node.text()
    for i in range(6, 10):
        vehicle.shoot(i * 0.5, without="CAM_BACK")
    wait_for(
        lambda: "missing in" in vehicle.peer.camera("CAM_BACK").get("message", ""), "a word on the camera"
    )
    assert vehicle.peer.camera("CAM_BACK")["level"] == 2
    vehicle.frames_until(lambda: vehicle.peer.camera("CAM_BACK").get("level") == 0, "recovery", 5.0)


def test_when_the_anchor_camera_stops_it_is_named_and_an_error(vehicle):
    wait_for(lambda: vehicle.peer.camera("CAM_FRONT").get("level") == 2, "an error that names the camera")
    assert "silent for" in vehicle.peer.camera("CAM_FRONT")["message"]
    assert float(vehicle.peer.camera("CAM_FRONT")["rate_hz"]) == 0
    vehicle.node.says("no image from CAM_BACK, CAM_FRONT")
    vehicle.frames_until(lambda: vehicle.peer.camera("CAM_FRONT").get("level") == 0, "recovery", 0.5)
    vehicle.node.says("all cameras are heard")


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
    frames = wait_for(
        lambda: (status := vehicle.peer.frames()).get("level") and status, "a word on the lost frames"
    )
    assert "too old" in frames["message"]
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
        k[0, 0] = np.nan
    elif fault == "zero focal length":
        k[0, 0] = 0.0
    else:
        size = (0, 0)
    vehicle.info("CAM_BACK", vehicle.stamp(0.2), k=k, size=size)
    vehicle.frame(0.5)
    assert vehicle.peer.latencies[-1].get("sequence_started") is None
    vehicle.node.says("CAM_BACK: ")


def test_a_camera_info_for_images_of_another_shape_leaves_the_last_good_one_in_force(vehicle):
    vehicle.info("CAM_BACK", vehicle.stamp(0.2), size=(160, 160))
    vehicle.frame(0.5)
    assert vehicle.peer.latencies[-1].get("sequence_started") is None
    vehicle.node.says("CAM_BACK: CameraInfo is for 160x160, and the images are 160x96")


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


def test_a_png_is_taken_where_jpegs_came(vehicle):
    vehicle.image("CAM_FRONT", vehicle.stamp(0.5))
    vehicle.image("CAM_BACK", vehicle.stamp(0.5, "CAM_BACK"), encode_png(picture(1)))
    wait_for(lambda: vehicle.peer.has_frame(vehicle.stamp(0.5)), "the grid")
    assert vehicle.peer.latencies[-1].get("sequence_started") is None


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


def test_when_inference_is_slow_the_newest_frame_wins_and_the_rest_is_counted(vehicle, fault):
    superseded = vehicle.count("CAM_FRONT", "dropped_superseded")
    fault("slow")
    assert vehicle.set(inference_period=0.0) == [(True, "")]
    try:
        for i in range(1, 21):
            last = vehicle.shoot(i * 0.1)
            time.sleep(0.02)  # the cameras are faster than the network, which takes 0.3 s
        wait_for(lambda: vehicle.peer.has_frame(last), "the newest frame's grid")
        vehicle.wait_for_count("CAM_FRONT", "dropped_superseded", superseded + 5)
        stamps = vehicle.peer.stamps()
        assert stamps == sorted(set(stamps))
        assert len(stamps) + vehicle.count("CAM_FRONT", "dropped_superseded") - superseded <= 20
    finally:
        vehicle.set(inference_period=0.5)


def test_slow_frames_are_a_warning_and_a_run_of_them_an_error(vehicle):
    def stages(level: int) -> bool:
        return vehicle.peer.diagnostics["gdfusion: stages"]["level"] == level

    vehicle.set(slow_frame=600.0)
    vehicle.frame(0.5)
    vehicle.set(slow_frame=0.0, slow_frames_error=3)
    try:
        vehicle.frame(1.0)
        wait_for(lambda: stages(1), "a warning")
        for i in range(3, 6):
            vehicle.frame(i * 0.5)
        wait_for(lambda: stages(2), "an error")
    finally:
        vehicle.set(slow_frame=2.0, slow_frames_error=5)


def test_a_network_slower_than_the_longest_gap_is_told_that_it_has_no_history(vehicle, fault):
    fault("slow")
    assert vehicle.set(max_gap=0.2) == [(True, "")]
    try:
        vehicle.frame(0.5)
        vehicle.frame(1.0)
        assert vehicle.peer.latencies[-1]["sequence_started"] == "gap"
        vehicle.node.says("longer than max_gap: no frame has a history")
    finally:
        vehicle.set(max_gap=1.5)


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
    ((done, reason),) = vehicle.set(obstacle_min_height=3.0)
    assert not done
    assert "less than obstacle_max_height" in reason
    assert vehicle.set(sync_tolerance=0.1, confidence=False) == [(True, ""), (True, "")]
    vehicle.frame(0.5)
    assert len(vehicle.peer.grids[-1].confidence) == 0
    vehicle.set(sync_tolerance=0.15, confidence=True)


def test_every_parameter_is_described_with_its_range_and_whether_it_can_be_changed(vehicle):
    request = DescribeParameters.Request(names=[entry.name for entry in PARAMETERS])
    answer = vehicle.peer.call(DescribeParameters, "/gdfusion/describe_parameters", request)
    for entry, told in zip(PARAMETERS, answer.descriptors, strict=True):
        assert (told.name, told.description, told.read_only) == (
            entry.name, entry.description, entry.read_only,
        )  # fmt: skip
        ranges = [(one.from_value, one.to_value) for one in (*told.floating_point_range, *told.integer_range)]
        assert ranges == ([entry.bounds] if entry.bounds else [])
        assert all(choice in told.additional_constraints for choice in entry.choices)


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


def test_when_memory_runs_out_the_state_is_dropped_and_the_frame_tried_again(vehicle, fault):
    fault("out of memory once")
    vehicle.frame(0.5)
    assert vehicle.peer.latencies[-1]["sequence_started"] == "out_of_memory"
    assert vehicle.peer.state() == "active"
    fault("")
    vehicle.frame(1.0)
    assert vehicle.peer.grids[-1].history_frames == 1


def test_when_memory_stays_out_the_node_says_so_deactivates_and_can_be_activated_again(vehicle, fault):
    fault("out of memory")
    vehicle.shoot(0.5)
    wait_for(lambda: vehicle.peer.state() == "inactive", "deactivation")
    vehicle.node.says("deactivating: out of memory even without temporal state")
    wait_for(
        lambda: "out of memory" in vehicle.peer.diagnostics["gdfusion: temporal state"]["message"],
        "a word in the diagnostics",
    )
    assert vehicle.peer.diagnostics["gdfusion: temporal state"]["level"] == 2
    fault("")
    wait_for(lambda: not vehicle.peer.is_heard("/tf"), "the end of the subscriptions")
    assert vehicle.peer.change_state("activate")
    vehicle.prepare()
    vehicle.begin_drive()
    vehicle.frame(0.5)
    assert vehicle.peer.grids[-1].history_frames == 1


def test_a_frame_that_the_network_fails_on_is_counted_and_costs_the_history_only(vehicle, fault):
    failed = int(vehicle.peer.frames().get("failed_internal", 0))
    fault("broken")
    vehicle.shoot(0.5)
    wait_for(lambda: int(vehicle.peer.frames().get("failed_internal", 0)) == failed + 1, "the count")
    assert vehicle.peer.frames()["level"] == 1
    fault("")
    vehicle.frame(1.0)
    assert vehicle.peer.latencies[-1]["sequence_started"] == "failed_frame"


def test_a_callback_that_fails_does_not_end_the_node(vehicle):
    client = vehicle.peer.node.create_client(Trigger, "/gdfusion/break")
    assert client.wait_for_service(60)
    client.call_async(Trigger.Request())
    vehicle.node.says("nobody thought of this")
    vehicle.frame(0.5)


def test_every_frame_is_accounted_for(vehicle):
    vehicle.frame(0.5)

    def adds_up() -> bool:
        frames = {key: int(value) for key, value in vehicle.peer.frames().items() if str(value).isdigit()}
        dropped = sum(number for key, number in frames.items() if key.startswith("dropped_"))
        failed = sum(number for key, number in frames.items() if key.startswith("failed_"))
        return (
            frames["selected"] == frames["made"] + dropped and frames["made"] == frames["published"] + failed
        )

    wait_for(adds_up, "counts that add up")
