"""The benchmarks of the node hold, in little, what they hold at length; what they measure is for people to read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from driving import tiny_model
from nodes import ros_environment
from nuscenes_tables import write_nuscenes

from gdfusion_ros.cli.main import main

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parent.parent


def run(tmp_path: Path, name: str, *options: str) -> dict:
    """A benchmark with the tiny network; gives its report."""
    model = ["--model", str(tiny_model(tmp_path)), "--weights", "random:0"]
    command = [sys.executable, str(ROOT / "benchmark" / name), *model, *options]
    with ros_environment() as environment:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_every_key_frame_of_a_twelve_hertz_recording_gives_the_grid_of_the_offline_run_once(tmp_path):
    pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    data = write_nuscenes(tmp_path / "nuscenes", ("scene-0001",))
    assert main(["nuscenes-to-bag", str(data), "--sweeps", "--out", str(tmp_path / "bags")]) == 0
    bag = tmp_path / "bags" / "scene-0001"
    report = run(tmp_path, "replay.py", "--bag", str(bag), "--rate", "0.25", "--out", str(tmp_path / "out"))
    assert report["key_frames"] == report["grids"] == report["equal"] == 4
    assert report["images_sent"] == 6 * 19
    assert report["counts_add_up"]
    assert report["faults"] == {}


def test_a_long_stream_stays_the_size_it_is_and_finite(tmp_path):
    report = run(tmp_path, "long_stream.py", "--frames", "150")
    assert report["sequences"] == 1
    assert len(report["state_bytes"]) == 1
    assert report["finite"]
    assert report["growth_mb"] < 50


def test_a_short_soak_recovers_from_its_faults(tmp_path):
    options = ("--minutes", "0.4", "--every", "0.5", "--recovery", "25", "--out", str(tmp_path / "out"))
    report = run(tmp_path, "soak.py", *options)
    assert sum(report["faults"].values()) >= 2
    assert report["faults_found"] == []
    assert report["state_checksums"]
