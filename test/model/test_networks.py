"""Whole networks, small: what a frame goes through, what comes out, and what is carried on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import small_voxels, tiny_config, tiny_frame

from gdfusion_ros.frame import FlowKind
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.model import OccupancyModel, build_network, load_model
from gdfusion_ros.model.network import NetworkOutput
from gdfusion_ros.model.state import TemporalState

NETWORKS = [
    "bevdetocc-gf",
    "fbocc-gf",
    "alocc3d-gf",
    "alocc2d-gf",
    "bevdetocc-sf",
    "fbocc",
    "alocc2d-mini",
    "alocc-flow-2d",
]


def drive(config: ModelConfig, frames: int = 3) -> tuple[OccupancyModel, list, list[TemporalState]]:
    model = load_model(config, "random:0")
    predictions, states = [], []
    state = None
    for i in range(frames):
        prediction, state = model(tiny_frame(i, config.cameras), state)
        predictions.append(prediction)
        states.append(state)
    return model, predictions, states


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sequence_gives_a_grid_a_frame_and_a_state_of_constant_size(name: str) -> None:
    config = tiny_config(name)
    model, predictions, states = drive(config)
    for prediction in predictions:
        assert prediction.labels.shape == model.grid.shape
        assert prediction.labels.dtype == np.uint8
        assert prediction.labels.max() <= config.labels.labels.free
        assert prediction.confidence is not None
        assert prediction.confidence.shape == model.grid.shape
    assert [state.frames for state in states] == [1, 2, 3]
    assert len({state.bytes for state in states}) == 1
    assert not np.array_equal(predictions[1].labels, predictions[2].labels)


def test_a_frame_wakes_no_threads_of_numpys_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenBLAS keeps the other cores busy for 0.1 s after a matrix that `inv` inverted, and after some others."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("numpy.linalg was asked within a frame")

    for name in ("inv", "solve", "pinv", "lstsq", "det", "svd", "eigh", "cholesky", "qr"):
        monkeypatch.setattr(np.linalg, name, refuse)
    _, predictions, _ = drive(tiny_config(), 2)
    assert len(predictions) == 2


def test_the_history_changes_what_is_seen() -> None:
    config = tiny_config()
    model, predictions, _ = drive(config, 2)
    alone, _ = model(tiny_frame(1), None)
    assert not np.array_equal(alone.labels, predictions[1].labels)


def test_a_frame_leaves_the_state_it_was_given_untouched() -> None:
    config = small_voxels(tiny_config())
    model = load_model(config, "random:0")
    _, state = model(tiny_frame(0), None)
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    first, _ = model(tiny_frame(1), state)
    again, _ = model(tiny_frame(1), state)
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in before.items())
    assert np.array_equal(first.labels, again.labels)


def test_views_that_were_prepared_early_give_the_same() -> None:
    model = load_model(small_voxels(tiny_config()), "random:0")
    frame = tiny_frame(0)
    prepared = replace(frame, views=tuple(model.prepare(view) for view in frame.views))
    raw, _ = model(frame, None)
    early, _ = model(prepared, None)
    assert np.array_equal(raw.labels, early.labels)


def test_the_order_in_which_a_frame_lists_its_cameras_does_not_matter() -> None:
    model = load_model(small_voxels(tiny_config()), "random:0")
    frame = tiny_frame(0)
    straight, _ = model(frame, None)
    reversed_, _ = model(replace(frame, views=frame.views[::-1]), None)
    assert np.array_equal(straight.labels, reversed_.labels)


@pytest.mark.parametrize("off", ["voxel", "scene", "motion", "geometry"])
def test_each_cue_can_be_switched_off_and_the_rest_runs(off: str) -> None:
    config = small_voxels(tiny_config(**{off: False}))
    _, predictions, states = drive(config)
    assert not [name for name in states[-1].tensors if name.split("_")[0] == off]
    assert (predictions[-1].flow is None) == (off == "motion")


def test_all_cues_off_is_a_network_of_single_frames() -> None:
    config = small_voxels(tiny_config(history="none"))
    model, predictions, states = drive(config, 2)
    alone, _ = model(tiny_frame(1), None)
    assert set(states[-1].tensors) == {"image_quarter"}
    # Only stereo depth still looks at the image before.
    assert predictions[1].labels.shape == alone.labels.shape


def test_weights_of_a_network_with_all_cues_load_into_one_without_some(tmp_path: Path) -> None:
    from gdfusion_ros.model.weights import write_weights

    whole = small_voxels(tiny_config())
    network = load_model(whole, "random:3").network
    write_weights(network, tmp_path / "w.safetensors", {})
    fewer = replace(whole, temporal=replace(whole.temporal, scene=False, geometry=False))
    loaded = load_model(fewer, tmp_path / "w.safetensors")
    assert torch.equal(loaded.network.neck.conv.conv.weight, network.neck.conv.conv.weight)


def test_a_voxel_placed_by_hand_comes_out_under_its_own_label_and_at_its_own_place() -> None:
    # The network's volumes are (channel, y, x, z), channel 0 void; the grid is (x, y, z), and label k is channel k + 1.
    model = load_model(small_voxels(tiny_config()), "random:0")
    x_cells, y_cells, z_cells = model.grid.shape
    logits = torch.zeros(1, 19, y_cells, x_cells, z_cells)
    logits[:, 18] = 1.0  # free
    logits[:, 0] = 9.0  # void: never a label
    index, inside = model.grid.index([3.4, -1.2, 0.9])
    x, y, z = index.tolist()
    assert inside
    assert x != y
    logits[0, 4 + 1, y, x, z] = 5.0  # a car
    labels, confidence = model._labels(NetworkOutput(logits))
    assert labels[x, y, z] == model.label_set.id("car") == 4
    assert (labels == 4).sum() == 1
    assert (labels == 17).sum() == labels.size - 1
    expected = 255 * np.exp(5) / (np.exp(5) + np.exp(1) + 16)
    assert confidence[x, y, z] == pytest.approx(expected, abs=1)


def test_labels_that_an_annotation_lacks_are_never_given() -> None:
    config = tiny_config()
    config = small_voxels(replace(config, labels=replace(config.labels, excluded=(0,))))
    model = load_model(config, "random:0")
    x_cells, y_cells, z_cells = model.grid.shape
    logits = torch.zeros(1, 19, y_cells, x_cells, z_cells)
    logits[:, 1], logits[:, 3] = 9.0, 1.0
    labels, _ = model._labels(NetworkOutput(logits))
    assert (labels == 2).all()


def test_flow_points_to_where_the_history_was_sampled_in_metres() -> None:
    config = tiny_config()
    _, predictions, states = drive(config, 2)
    flow = predictions[1].flow
    assert flow is not None
    assert flow.kind is FlowKind.HISTORY_DISPLACEMENT
    offsets = states[1].tensors["motion"][0]  # (3, Z, Y, X) in cells
    cell = config.grid.features.cell_size
    assert flow.vectors[4, 7, 2] == pytest.approx(
        [float(offsets[a, 2, 7, 4]) * cell[a] for a in range(3)], rel=1e-5
    )
    assert flow.valid.any()
    assert np.isfinite(flow.vectors).all()
    first = predictions[0].flow
    assert first is not None
    assert not first.valid.any()


@pytest.mark.parametrize("name", ["fbocc-gf", "alocc2d-gf"])
def test_flow_covers_the_output_grid_where_it_is_finer_than_the_features(name: str) -> None:
    model, predictions, states = drive(tiny_config(name), 2)
    flow = predictions[1].flow
    assert flow is not None
    assert flow.vectors.shape == (*model.grid.shape, 3)
    up = model.config.grid.upsampling
    offsets = states[1].tensors["motion"][0, 0]
    coarse = float(offsets[..., 3, 5] if offsets.dim() == 2 else offsets[0, 3, 5])
    assert flow.vectors[5 * up[0], 3 * up[1], 0, 0] == pytest.approx(
        coarse * model.config.grid.features.cell_size[0]
    )


def test_a_network_with_a_flow_head_gives_velocities_over_ground() -> None:
    model, predictions, _ = drive(tiny_config("alocc-flow-2d"), 2)
    flow = predictions[1].flow
    assert flow is not None
    assert flow.kind is FlowKind.VELOCITY
    assert flow.vectors.shape == (*model.grid.shape, 3)
    assert (flow.vectors[..., 2] == 0).all()
    assert np.array_equal(flow.valid, np.isin(predictions[1].labels, model.label_set.movable_ids))


def test_a_missing_camera_and_a_foreign_state_are_named() -> None:
    model = load_model(small_voxels(tiny_config()), "random:0")
    with pytest.raises(ValueError, match="CAM_BACK"):
        model(tiny_frame(0, ("CAM_FRONT",)), None)
    _, state = model(tiny_frame(0), None)
    with pytest.raises(ValueError, match="another"):
        model(tiny_frame(1), replace(state, model="another"))


def test_ego_motion_is_exact_far_from_the_origin_of_the_map() -> None:
    model = load_model(small_voxels(tiny_config()), "random:0")

    def motion(shift: float) -> torch.Tensor:
        frames = []
        for i in range(2):
            frame = tiny_frame(i)
            move = np.eye(4)
            move[:2, 3] = shift
            views = tuple(replace(view, world_from_ego=move @ view.world_from_ego) for view in frame.views)
            frames.append(replace(frame, world_from_ego=move @ frame.world_from_ego, views=views))
        poses = model.ego_poses(frames[0])
        return model.network_input(
            frames[1], model.ego_poses(frames[1]), poses
        ).motion.previous_camera_from_camera

    assert torch.allclose(motion(0.0), motion(5e6), atol=1e-6)


@pytest.mark.parametrize("name", ["alocc3d-gf-surroundocc", "alocc3d-gf-waymo"])
def test_any_number_of_cameras_runs(name: str) -> None:
    config = replace(tiny_config(name), cameras=("CAM_FRONT", "LEFT", "RIGHT"))
    model = load_model(config, "random:0")
    prediction, _ = model(tiny_frame(0, config.cameras), None)
    assert prediction.labels.shape == model.grid.shape


def test_lidar_depth_changes_the_grid() -> None:
    config = tiny_config("alocc3d-gf-lidar-depth")
    model = load_model(config, "random:0")
    points = np.random.default_rng(0).uniform(-6, 6, (500, 3)).astype(np.float32)
    frame = replace(tiny_frame(0), ego_from_lidar=np.eye(4), lidar_points=points)
    nothing = replace(frame, lidar_points=points[:0])
    seen, _ = model(frame, None)
    unseen, _ = model(nothing, None)
    assert not np.array_equal(seen.labels, unseen.labels)
    with pytest.raises(ValueError, match="LiDAR"):
        model(tiny_frame(0), None)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    config = small_voxels(tiny_config())
    entries = [load_model(config, f"random:{seed}").network.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(entries[0][name], entries[1][name]) for name in entries[0])
    assert any(not torch.equal(entries[0][name], entries[2][name]) for name in entries[0])


def test_random_weights_come_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(small_voxels(tiny_config()))
    assert model.weights == "random:0"
    assert "random weights" in caplog.text


def test_training_reaches_every_parameter_of_the_recurrent_network() -> None:
    config = small_voxels(tiny_config())
    model = load_model(config, "random:0")
    network = build_network(config)
    network.load_state_dict(model.network.state_dict())
    network.train()
    frames = [tiny_frame(i) for i in range(2)]
    poses = [model.ego_poses(frame) for frame in frames]
    with torch.no_grad():
        _, state = network(model.network_input(frames[0], poses[0], None), None)
    output, _ = network(model.network_input(frames[1], poses[1], poses[0]), state)
    output.logits.square().mean().backward()
    silent = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert silent == []
