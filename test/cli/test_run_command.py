"""`gdfusion run`: one file a frame, and what became of the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from driving import START, drive, tiny_model

from gdfusion_ros.cli.main import main
from gdfusion_ros.sinks.bag import record_frames


@pytest.fixture
def options(tmp_path):
    return ["--model", str(tiny_model(tmp_path)), "--weights", "random:0", "--json"]


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_recording_gives_one_file_a_frame(tmp_path, options, capsys):
    record_frames(drive([0.0, 0.25, 0.5, 1.0]), tmp_path / "bag")
    assert main(["run", str(tmp_path / "bag"), "--out", str(tmp_path / "out"), *options]) == 0
    result = last_json(capsys)
    assert result["frames"] == 3
    assert result["sequences_started"] == 1
    assert result["images_dropped"] == {"between_frames": 6}
    files = sorted((tmp_path / "out").glob("*.npz"))
    assert len(files) == 3
    first = np.load(files[0])
    assert first["labels"].shape == (32, 32, 4)
    assert first["labels"].dtype == np.uint8
    assert (first["stamp_ns"], first["sequence"], first["free_label"]) == (START, 1, 17)
    assert first["grid_minimum"].tolist() == [-16.0, -16.0, -1.0]


def test_a_folder_of_frames_is_a_source_too(tmp_path, options, capsys, shared_dir):
    folder = shared_dir / "data" / "nuscenes_scene0103"
    assert main(["run", str(folder), "--frames", "2", *options]) == 0
    assert last_json(capsys)["frames"] == 2


def test_the_made_up_world_is_a_source_too(options, capsys):
    assert main(["run", "world:2", "--frames", "2", *options]) == 0
    assert last_json(capsys)["frames"] == 2


def test_earlier_results_are_not_overwritten(tmp_path, options, capsys):
    record_frames(drive([0.0]), tmp_path / "bag")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.npz").touch()
    assert main(["run", str(tmp_path / "bag"), "--out", str(tmp_path / "out"), *options]) == 1
    assert "already" in capsys.readouterr().err


def test_a_recording_of_which_no_frame_can_be_made_is_a_failure(tmp_path, options, capsys):
    record_frames(drive([0.0], cameras=("CAM_FRONT", "CAM_BACK")), tmp_path / "bag")
    assert main(["run", str(tmp_path / "bag"), *options]) == 1
    assert "CAM_FRONT_LEFT" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["nowhere", "world:x"])
def test_a_source_that_is_none_is_said_in_one_line(source, options, capsys):
    assert main(["run", source, *options]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert source in error[0]
