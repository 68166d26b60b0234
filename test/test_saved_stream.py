"""A stream that was saved goes on in another process as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from driving import drive, tiny_model
from safetensors.numpy import save_file

from gdfusion_ros import OccupancyStream, load_model
from gdfusion_ros.errors import UserError


@pytest.fixture
def model(tmp_path):
    return load_model(tiny_model(tmp_path), "random:0")


def test_a_loaded_stream_goes_on_as_the_saved_one_would(tmp_path, model):
    frames = drive([0.0, 0.5, 1.0])
    stream = OccupancyStream(model)
    stream.step(frames[0])
    stream.step(frames[1])
    stream.save(tmp_path / "state")
    expected = stream.step(frames[2])

    other = OccupancyStream(model)
    other.load(tmp_path / "state")
    found = other.step(frames[2])
    assert (found.sequence, found.history_frames) == (expected.sequence, expected.history_frames) == (1, 2)
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.confidence, expected.confidence)
    assert list(tmp_path.glob("*.unfinished")) == []


def test_a_loaded_stream_starts_anew_when_the_gap_has_grown_too_long(tmp_path, model):
    stream = OccupancyStream(model)
    stream.step(drive([0.0])[0])
    stream.save(tmp_path / "state")
    other = OccupancyStream(model)
    other.load(tmp_path / "state")
    occupancy = other.step(drive([20.0])[0])
    assert (occupancy.sequence, occupancy.history_frames) == (2, 0)
    assert other.restarts == {"gap": 1}


def test_there_is_nothing_to_save_before_the_first_frame(tmp_path, model):
    with pytest.raises(ValueError, match="first frame"):
        OccupancyStream(model).save(tmp_path / "state")


def test_the_state_of_other_weights_is_refused_and_nothing_changes(tmp_path, model):
    stream = OccupancyStream(model)
    stream.step(drive([0.0])[0])
    stream.save(tmp_path / "state")
    other = OccupancyStream(load_model(tiny_model(tmp_path), "random:1"))
    with pytest.raises(UserError, match="random:0"):
        other.load(tmp_path / "state")
    assert other.state is None


def test_files_that_are_no_state_are_refused(tmp_path, model):
    stream = OccupancyStream(model)
    stream.step(drive([0.0])[0])
    stream.save(tmp_path / "state")
    content = (tmp_path / "state").read_bytes()
    for number, data in enumerate((b"", b"no state", content[:100], content[: len(content) // 2])):
        (tmp_path / f"broken{number}").write_bytes(data)
        with pytest.raises(UserError):
            stream.load(tmp_path / f"broken{number}")
    save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a saved"):
        stream.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError):
        stream.load(tmp_path / "nowhere")
    model_only = stream.state
    model_only.save(tmp_path / "no_note")
    with pytest.raises(UserError, match="go on from"):
        stream.load(tmp_path / "no_note")
