"""The temporal state on its way between frames and processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gdfusion_ros.errors import UserError
from gdfusion_ros.model.state import TemporalState


def state() -> TemporalState:
    tensors = {
        "voxel": torch.randn(1, 2, 3, 4, 5),
        "motion": torch.randn(1, 3, 3, 4, 5).permute(0, 1, 4, 2, 3),
    }
    poses = {
        "world_from_history": np.eye(4) * 1e6 + 1e-9,
        "world_from_camera": np.random.default_rng(0).random((2, 4, 4)),
    }
    return TemporalState(7, tensors, poses, "some-model")


def test_a_saved_state_comes_back_exactly(tmp_path: Path) -> None:
    before = state()
    before.save(tmp_path / "state.safetensors")
    after = TemporalState.load(tmp_path / "state.safetensors")
    assert (after.frames, after.model, after.bytes) == (7, "some-model", before.bytes)
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert all(np.array_equal(after.poses[name], pose) for name, pose in before.poses.items())
    assert after.tensors.keys() == before.tensors.keys()


def test_its_bytes_are_those_of_its_tensors_and_poses() -> None:
    assert state().bytes == 4 * (120 + 180) + 8 * 16 * 3


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state().save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a state at all", whole[:8]):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            TemporalState.load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="absent"):
        TemporalState.load(tmp_path / "absent")


def test_a_file_of_weights_is_not_taken_for_a_state(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(tmp_path / "weights.safetensors"))
    with pytest.raises(UserError, match="not a saved temporal state"):
        TemporalState.load(tmp_path / "weights.safetensors")
