"""`gdfusion demo`: three processes, one report, and a failure when a grid is missing."""

from __future__ import annotations

import json
import os

import pytest
from driving import tiny_model
from nodes import ros_environment

from gdfusion_ros.cli.main import main
from gdfusion_ros.errors import UserError

pytestmark = pytest.mark.ros


@pytest.fixture
def own_domain(monkeypatch):
    """The environment of this test's ROS domain, undone at its end."""
    with ros_environment() as environment:
        for key in {*environment, *os.environ}:
            if key in environment:
                monkeypatch.setenv(key, environment[key])
        yield


def test_real_frames_give_a_grid_each_and_a_new_sequence_after_the_gap(
    tmp_path, shared_dir, own_domain, capsys
):
    folder = shared_dir / "data" / "nuscenes_scene0103"
    options = ["--model", str(tiny_model(tmp_path)), "--weights", "random:0", "--json"]
    assert main(["demo", "--frames", str(folder), "--out", str(tmp_path / "out"), *options]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["frames_sent"] == result["grids_received"] == 5
    assert result["sequences_started"] == 2
    assert result["restarts"] == ["first_frame", "gap"]
    assert len(result["state_bytes"]) == 5
    assert len(set(result["state_bytes"])) == 1
    assert result["weights"] == "random:0"
    assert set(result["latency_ms"]["inference"]) == {"median", "p95"}
    for key in ("output", "picture"):
        assert (tmp_path / "out").joinpath(result[key]).is_file()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == result


def test_the_demo_says_in_one_line_why_the_node_does_not_start(tmp_path, own_domain, capsys, monkeypatch):
    options = ["--model", str(tiny_model(tmp_path)), "--weights", "missing.safetensors"]
    assert main(["demo", "--out", str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "did not become active" in error
    assert "missing.safetensors" in error


def test_a_grid_that_is_missing_fails_the_demo(tmp_path, own_domain, monkeypatch):
    from gdfusion_ros.cli import demo

    monkeypatch.setattr(demo, "WORLD_FRAMES", 2)
    real = demo._stamp
    monkeypatch.setattr(demo, "_stamp", lambda grid: real(grid) + 1)
    options = ["--model", str(tiny_model(tmp_path)), "--weights", "random:0"]
    assert main(["demo", "--out", str(tmp_path / "out"), *options]) == 1
    # And again into the same folder, as `make demo` would.
    monkeypatch.setattr(demo, "_stamp", real)
    assert main(["demo", "--out", str(tmp_path / "out"), *options]) == 0


def test_a_folder_without_frames_is_refused(tmp_path):
    import argparse

    from gdfusion_ros.cli import demo

    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    with pytest.raises(UserError, match=r"frames\.json"):
        demo.run(parser.parse_args(["--frames", str(tmp_path), "--out", str(tmp_path / "out")]))


def test_a_folder_of_the_users_own_is_not_taken_for_an_earlier_recording(tmp_path):
    import argparse

    from gdfusion_ros.cli import demo

    photo = tmp_path / "input" / "holiday.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"")
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    with pytest.raises(UserError, match="give another folder"):
        demo.run(parser.parse_args(["--out", str(tmp_path)]))
    assert photo.is_file()
