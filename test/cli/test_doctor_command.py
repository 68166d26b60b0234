"""`gdfusion doctor` finds what is wrong with an installation and a live graph, and says it in plain words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from driving import drive
from nodes import ros_environment, running_node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from tf2_msgs.msg import TFMessage
from vehicle import rig_files

from gdfusion_ros.cli.main import main
from gdfusion_ros.sinks.bag import image_topic, record_frames

pytestmark = pytest.mark.ros


def doctor(environment: dict[str, str], *options: str) -> tuple[int, list[dict[str, str]]]:
    command = [sys.executable, "-m", "gdfusion_ros.cli.main", "doctor", "--json", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])["findings"]


def test_a_sound_installation_has_no_errors(capsys):
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["errors"] == 0
    assert {"python", "torch", "rclpy", "files", "models", "domain", "shared memory"} <= {
        finding["what"] for finding in result["findings"]
    }


def test_a_profile_that_does_not_exist_and_a_wrong_domain_are_errors(monkeypatch, capsys):
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/no/such/profile.xml")
    monkeypatch.setenv("ROS_DOMAIN_ID", "1000")
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "/no/such/profile.xml" in output
    assert "ROS_DOMAIN_ID" in output


def test_a_graph_without_cameras_is_said_camera_by_camera():
    with ros_environment() as environment:
        code, findings = doctor(environment, "--live", "--seconds", "1")
    assert code == 1
    errors = [finding["text"] for finding in findings if finding["level"] == "error"]
    assert any("nobody publishes /CAM_BACK/image_rect_compressed" in text for text in errors)
    assert any("nothing comes on /tf" in text for text in errors)


def test_a_recording_that_plays_is_heard_and_frames_can_be_made_of_it(tmp_path: Path):
    record_frames(drive([i / 4 for i in range(40)]), tmp_path / "bag")
    with ros_environment() as environment:
        command = [
            sys.executable,
            "-m",
            "gdfusion_ros.cli.main",
            "replay",
            str(tmp_path / "bag"),
            "--clock",
            "--loop",
        ]
        player = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            code, findings = doctor(environment, "--live", "--seconds", "12", "--sim-time")
        finally:
            player.terminate()
            player.wait()
    assert code == 0, findings
    texts = [finding["text"] for finding in findings if finding["level"] == "ok"]
    assert sum("image_rect_compressed" in text and "Hz" in text for text in texts) == 6
    assert any("frames of" in text for text in texts)
    assert any("looks to 0 degrees" in text for text in texts)


def test_publishers_that_the_node_cannot_hear_and_a_clock_that_is_not_there_are_errors(tmp_path: Path):
    parameters = {**rig_files(tmp_path), "image_reliability": "reliable", "use_sim_time": True}
    with running_node(tmp_path, **parameters) as (_, peer, environment):
        best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        peer.node.create_publisher(CompressedImage, image_topic("CAM_BACK"), best_effort)
        peer.node.create_publisher(TFMessage, "/tf_static", QoSProfile(depth=1))
        code, findings = doctor(environment, "--live", "--seconds", "8", "--topics", parameters["topics"])
    assert code == 1
    errors = {finding["text"] for finding in findings if finding["level"] == "error"}
    for topic in (image_topic("CAM_BACK"), "/tf_static"):
        assert any(f"QoS mismatch on {topic}: peer is not heard by gdfusion" in text for text in errors), (
            errors
        )
    assert "/gdfusion has use_sim_time, but nobody publishes /clock" in errors


def test_a_camera_whose_frame_is_no_optical_one_is_named(tmp_path: Path):
    frames = drive([i / 2 for i in range(4)], cameras=("CAM_FRONT",))
    body = np.eye(4)
    body[:3, 3] = (1.5, 0.0, 1.5)  # x ahead, z up
    views = [replace(frame.views[0], ego_from_camera=body) for frame in frames]
    record_frames([replace(f, views=(v,)) for f, v in zip(frames, views, strict=True)], tmp_path / "bag")
    topics = rig_files(tmp_path, ("CAM_FRONT",))["topics"]
    command = [
        sys.executable,
        "-m",
        "gdfusion_ros.cli.main",
        "replay",
        str(tmp_path / "bag"),
        "--clock",
        "--loop",
    ]
    with ros_environment() as environment:
        player = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            _, findings = doctor(environment, "--live", "--seconds", "8", "--sim-time", "--topics", topics)
        finally:
            player.terminate()
            player.wait()
    warnings = [finding["text"] for finding in findings if finding["level"] == "warning"]
    assert any("it looks up: is its frame an optical one" in text for text in warnings), findings
