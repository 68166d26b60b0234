"""The node over real DDS: what goes in as a recording comes out as the grids of an offline run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from driving import SECOND, START, drive, tiny_model
from nodes import NodeProcess, Peer, ros_environment, running_node, wait_for
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from gdfusion_ros.assembly.grids import occupancy_of
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.sinks.bag import record_frames

pytestmark = pytest.mark.ros

TIMES = (0.0, 0.5, 1.0, 3.5)


def gdfusion(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "gdfusion_ros.cli.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def replay(environment: dict[str, str], bag: Path, *options: str) -> dict[str, object]:
    """Replay a recording to its end."""
    done = gdfusion(environment, "replay", str(bag), "--json", "--wait", "30", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "bag"
    record_frames(drive(TIMES), path)
    return path


def test_the_grids_over_dds_equal_those_of_an_offline_run(tmp_path, recording):
    model = str(tiny_model(tmp_path))
    parameters = {"model": model, "weights": "random:3", "image_reliability": "reliable"}
    with running_node(tmp_path, **parameters) as (_, peer, environment):
        played = replay(environment, recording, "--paced", "--clock", "--rate", "0", "--timeout", "60")
        assert played["frames"] == len(TIMES)
        wait_for(lambda: len(peer.latencies) == len(TIMES), "all grids")
        done = gdfusion(
            environment, "run", str(recording), "--model", model, "--weights", "random:3",
            "--out", str(tmp_path / "out"), "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "out").glob("*.npz"))
    assert [grid.sequence for grid in peer.grids] == [1, 1, 1, 2]
    assert [grid.history_frames for grid in peer.grids] == [0, 1, 2, 0]
    assert len({latency["state_bytes"] for latency in peer.latencies}) == 1
    assert len(files) == len(peer.grids) == len(TIMES)
    for file, grid in zip(files, peer.grids, strict=True):
        offline, live = np.load(file), occupancy_of(grid)
        assert offline["stamp_ns"] == live.stamp_ns
        assert offline["sequence"] == live.sequence
        assert np.array_equal(offline["labels"], live.labels)
        assert np.array_equal(offline["confidence"], live.confidence)
    grid = peer.grids[0]
    assert grid.header.frame_id == "base_link"
    assert grid.model_id == "tiny random:3"
    assert grid.cameras_used == 0b111111
    assert grid.origin.position.x == -16.0


def test_the_labels_are_latched_and_named_and_every_topic_has_its_qos(tmp_path):
    override = {"qos_overrides./CAM_BACK/image_rect_compressed.subscription.reliability": "reliable"}
    parameters = {"model": str(tiny_model(tmp_path)), "weights": "random:0", **override}
    with running_node(tmp_path, **parameters) as (node, peer, _):
        reliable, best_effort = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
        volatile, latched = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL
        for topic, qos in {
            "/CAM_FRONT/image_rect_compressed": (best_effort, volatile),
            "/CAM_FRONT/camera_info": (best_effort, volatile),
            "/CAM_BACK/image_rect_compressed": (reliable, volatile),
            "/tf": (reliable, volatile),
            "/tf_static": (reliable, latched),
            "/gdfusion/occupancy": (reliable, volatile),
            "/gdfusion/points": (reliable, volatile),
            "/gdfusion/label_info": (reliable, latched),
        }.items():
            look = (
                peer.node.get_publishers_info_by_topic
                if topic.startswith("/gdfusion")
                else peer.node.get_subscriptions_info_by_topic
            )
            wait_for(lambda look=look, topic=topic: look(topic), topic)
            profile = next(info.qos_profile for info in look(topic) if info.node_name == "gdfusion")
            assert (profile.reliability, profile.durability) == qos, topic
        (info,) = peer.label_infos
        assert info.label_set == "occ3d"
        assert [(label.id, label.name) for label in info.labels] == [(la.id, la.name) for la in OCC3D.labels]
        assert "RANDOM WEIGHTS" in node.text()
        wait_for(lambda: peer.diagnostics.get("gdfusion: temporal state"), "diagnostics")
        assert "random weights" in peer.diagnostics["gdfusion: temporal state"]["message"]


def test_a_signal_during_inference_ends_the_node_in_good_order(tmp_path, recording):
    for number in (signal.SIGINT, signal.SIGTERM):
        with ros_environment() as environment:
            node = NodeProcess(environment, tmp_path, model=str(tiny_model(tmp_path)), weights="random:0")
            peer = Peer(environment)
            try:
                node.says("active: ")
                player = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "gdfusion_ros.cli.main",
                        "replay",
                        str(recording),
                        "--rate",
                        "4",
                        "--loop",
                    ],
                    env=environment,
                    stderr=subprocess.DEVNULL,
                )
                wait_for(lambda heard=peer: heard.grids, "a grid")
                assert node.stop(number) == 0, node.text()
                assert "Traceback" not in node.text()
            finally:
                peer.close()
                player.terminate()
                player.wait()
                node.stop()


def test_a_recording_that_loops_starts_new_sequences_and_goes_on(tmp_path, recording):
    parameters = {"model": str(tiny_model(tmp_path)), "weights": "random:0", "image_reliability": "reliable"}
    with running_node(tmp_path, **parameters) as (node, peer, environment):
        for _ in range(2):
            replay(environment, recording, "--paced", "--rate", "0", "--timeout", "60")
        wait_for(lambda: len(peer.grids) == 2 * len(TIMES), "all grids")
        expected = [START + round(at * SECOND) for at in TIMES] * 2
        assert peer.stamps() == expected
        assert [grid.sequence for grid in peer.grids] == [1, 1, 1, 2, 3, 3, 3, 4]
        assert "time_went_back" in node.text()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"topics": "no-such-topics"}, "presets"),
        ({"calibration": "no-such-file.yaml"}, "no-such-file.yaml"),
    ],
)
def test_what_cannot_be_loaded_keeps_the_node_from_activating_and_is_named(tmp_path, parameters, words):
    with ros_environment() as environment:
        values = {"model": str(tiny_model(tmp_path)), "weights": "random:0", **parameters}
        node = NodeProcess(environment, tmp_path, **values)
        peer = Peer(environment)
        try:
            assert peer.state() == "unconfigured"
            assert words in node.text()
            assert "Traceback" not in node.text()
        finally:
            peer.close()
            assert node.stop() == 0


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"missing_camera": "guess"}, "missing_camera is 'guess'"),
        ({"save_state_on_exit": True}, "save_state_on_exit needs a file: set state_file"),
        ({"max_gap": 2}, "max_gap"),
    ],
)
def test_a_parameter_that_is_wrong_stops_the_start_with_one_line(tmp_path, parameters, words):
    with ros_environment() as environment:
        node = NodeProcess(environment, tmp_path, **parameters)
        assert node.process.wait(60) == 1
        (line,) = node.text().splitlines()
        assert line.startswith("occupancy_node: error: ")
        assert words in line
