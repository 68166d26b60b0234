"""GDFusion plugged into SurroundOcc, OpenOccupancy and COTR: what must hold before any training, and the warp."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import plugged_config as small
from torch import Tensor

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.geometry import Matrix, transform
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks import camera_attention, compact
from gdfusion_ros.model.config import ModelConfig, TemporalConfig
from gdfusion_ros.model.fusion import RecurrentFusion
from gdfusion_ros.model.fusion.warp import history_positions, sample_history
from gdfusion_ros.model.inference import inference_form
from gdfusion_ros.model.model import OccupancyModel, build_network
from gdfusion_ros.model.networks.cotr import joined_entries
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch
from gdfusion_ros.model.weights import load_entries, published_entries, randomise, read_checkpoint

pytestmark = pytest.mark.timeout(900)
FRAMES = 3


def frames(config: ModelConfig, seed: int = 0) -> Iterator[CameraFrame]:
    """A drive of 1.3 m a frame, turning a little, with noise for images."""
    rng = np.random.default_rng(seed)
    cameras = [transform((0.5, 0.0, 1.6), _yaw(60.0 * i) * _OPTICAL) for i in range(6)]
    ego_from_lidar = transform((0.94, 0.0, 1.84), _yaw(-90.0))
    for i in range(FRAMES):
        world_from_ego = transform((600.0 + 1.3 * i, 1600.0, 0.0), _yaw(5.0 * i))
        views = tuple(
            CameraView(
                name=name,
                image=rng.integers(0, 255, (config.image.height, config.image.width, 3), dtype=np.uint8),
                intrinsics=np.array([[80.0, 0.0, 55.0], [0.0, 80.0, 30.0], [0.0, 0.0, 1.0]]),
                ego_from_camera=camera,
                world_from_ego=world_from_ego,
                stamp_ns=500_000_000 * i,
            )
            for name, camera in zip(config.cameras, cameras, strict=True)
        )
        yield CameraFrame(500_000_000 * i, views, world_from_ego, world_from_ego, ego_from_lidar)


class _Rotation:
    """A quaternion that can be multiplied."""

    def __init__(self, w: float, x: float, y: float, z: float) -> None:
        self.values = (w, x, y, z)

    def __mul__(self, other: _Rotation) -> _Rotation:
        (a, b, c, d), (e, f, g, h) = self.values, other.values
        return _Rotation(
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        )

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        return self.values[index]


_OPTICAL = _Rotation(0.5, -0.5, 0.5, -0.5)
"""Optical frame (x right, y down, z forward) looking along the ego's x."""


def _yaw(degrees: float) -> _Rotation:
    half = np.deg2rad(degrees) / 2
    return _Rotation(float(np.cos(half)), 0.0, 0.0, float(np.sin(half)))


def filled(config: ModelConfig, entries: dict[str, Tensor] | None = None, seed: int = 0) -> OccupancyModel:
    network = build_network(config)
    randomise(network, seed)
    if entries is not None:
        load_entries(network, entries, "the test's weights", config.temporal)
    return OccupancyModel(config, network, "test")


def outputs(model: OccupancyModel, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    state = None
    for frame in frames(model.config):
        seen: dict[str, Tensor] = {}
        prediction, state = model(frame, state, Watch(seen.__setitem__))
        yield {name: seen[name] for name in names} | {"labels": torch.from_numpy(prediction.labels)}


@pytest.mark.parametrize(("base", "logits"), [("surroundocc", "logits_3"), ("openoccupancy", "logits")])
def test_with_the_base_networks_weights_the_output_is_the_base_networks(
    base: str, logits: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = filled(small(base))
    with caplog.at_level(logging.WARNING):
        plugged = filled(small(f"{base}-gf"), published_entries(plain.network), seed=5)

    assert "no temporal cues" in caplog.text
    pairs = list(zip(outputs(plain, (logits,)), outputs(plugged, (logits,)), strict=True))
    assert len(pairs) == FRAMES
    for expected, actual in pairs:
        assert float((actual[logits] - expected[logits]).abs().max()) <= 1e-5
        assert torch.equal(actual["labels"], expected["labels"])


@pytest.mark.parametrize("base", ["surroundocc", "openoccupancy"])
def test_with_the_gains_open_history_counts_from_the_second_frame_on(base: str) -> None:
    config = small(f"{base}-gf")
    closed, opened = filled(config), filled(config)
    gains = [p for name, p in opened.network.named_parameters() if name.split(".")[-1] == "gain"]
    with torch.no_grad():
        for gain in gains:
            gain.fill_(0.5)

    name = "scene_fused"
    differences = [
        float((a[name] - b[name]).abs().max())
        for a, b in zip(outputs(closed, (name,)), outputs(opened, (name,)), strict=True)
    ]

    assert gains
    assert min(differences) > 1e-3


def test_cotr_gf_fuses_the_voxels_that_bevdetocc_gf_fuses() -> None:
    trunk = filled(small("bevdetocc-gf"), seed=1)
    heads = filled(small("cotr"), seed=2)
    entries = joined_entries(published_entries(trunk.network), published_entries(heads.network))
    joined = filled(small("cotr-gf"), entries, seed=3)

    names = ("scene_fused",)
    for expected, actual in zip(outputs(trunk, names), outputs(joined, names), strict=True):
        assert torch.equal(actual["scene_fused"], expected["scene_fused"])


def test_cotr_gf_encodes_as_bevdetocc_gf_does_though_its_axes_are_ordered_otherwise() -> None:
    trunk = filled(small("bevdetocc-gf"), seed=1)
    heads = filled(small("cotr"), seed=2)
    entries = joined_entries(published_entries(trunk.network), published_entries(heads.network))
    joined = filled(small("cotr-gf"), entries)
    volume = torch.randn(1, 32, 16, 12, 8)

    with torch.no_grad():
        expected = trunk.network.encoder(volume)
        actual = joined.network.encoder(volume.permute(0, 1, 4, 2, 3))

    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a.permute(0, 1, 3, 4, 2), b, atol=1e-4)


@pytest.mark.parametrize("name", ["surroundocc-gf", "openoccupancy-gf", "cotr-gf", "cotr"])
def test_the_state_keeps_its_size(name: str) -> None:
    model = filled(small(name))
    state, sizes = None, []
    for frame in frames(model.config):
        _, state = model(frame, state)
        sizes.append(state.bytes)

    assert len(set(sizes)) == 1


def test_surroundocc_refuses_the_cue_that_it_has_no_depth_for() -> None:
    config = small("surroundocc-gf")
    with pytest.raises(UserError, match="no depth distribution"):
        build_network(replace(config, temporal=replace(config.temporal, geometry=True)))


def test_a_single_frame_network_has_neither_gains_nor_a_warp() -> None:
    with pytest.raises(ValueError, match="recurrent"):
        TemporalConfig(history="none", gains=True)


# ---- the warp between LiDAR frames (surroundocc-spec.md 10.5)

LIDAR_GRID = VoxelGrid.from_bounds((-8.0, 8.0, 1.0), (-8.0, 8.0, 1.0), (-2.0, 2.0, 1.0), "lidar")


def warped(previous_from_current: Matrix) -> tuple[Tensor, Tensor]:
    """A random history (1, 1, Z, Y, X), and where each current cell finds it."""
    volume = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 4, 16, 16))).float()
    motion = torch.from_numpy(previous_from_current).float()[None]
    return volume, sample_history(volume, history_positions(motion, LIDAR_GRID, centred=True))


def test_history_stays_where_it_is_without_motion() -> None:
    volume, sampled = warped(np.eye(4))
    assert torch.allclose(sampled, volume, atol=1e-5)


def test_a_metre_forward_shifts_history_by_a_cell_along_the_lidars_y() -> None:
    volume, sampled = warped(transform((0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0)))
    assert torch.allclose(sampled[..., :-1, :], volume[..., 1:, :], atol=1e-5)
    assert float(sampled[..., -1, :].abs().max()) < 1e-4


def test_a_quarter_turn_turns_history_exactly_onto_cells() -> None:
    half = np.sqrt(0.5)
    volume, sampled = warped(transform((0.0, 0.0, 0.0), (half, 0.0, 0.0, half)))
    # What lies at (x, y) now lay at (-y, x) before: row x, column 15 - y.
    assert torch.allclose(sampled[0, 0], volume[0, 0].transpose(1, 2).flip(1), atol=1e-4)


def test_the_model_warps_between_lidar_poses_where_its_file_says_so() -> None:
    model = filled(small("surroundocc-gf"))
    first, second, _ = frames(model.config)
    poses = [model.ego_poses(frame)["world_from_history"] for frame in (first, second)]
    motion = np.linalg.inv(poses[0]) @ poses[1]

    # The ego drives along its x, which is the LiDAR's y.
    assert motion[1, 3] == pytest.approx(1.3, abs=0.1)
    assert abs(motion[0, 3]) < 0.1


@pytest.mark.parametrize("name", ["surroundocc-gf", "openoccupancy-gf", "cotr-gf", "cotr"])
def test_the_inference_form_gives_what_the_network_gives(name: str) -> None:
    plain = filled(small(name))
    with torch.no_grad():
        for parameter_name, parameter in plain.network.named_parameters():
            if parameter_name.split(".")[-1] == "gain":
                parameter.fill_(0.3)
    fused = OccupancyModel(plain.config, plain.network, "test")
    plain.kernels = False

    states: list[TemporalState | None] = [None, None]
    for frame in frames(plain.config):
        seen: list[dict[str, Tensor]] = [{}, {}]
        for i, model in enumerate((plain, fused)):
            _, states[i] = model(frame, states[i], Watch(seen[i].__setitem__))
        # What only lies behind a discontinuity may differ in single places.
        last = "logits_3" if name == "surroundocc-gf" else "logits"
        error = (seen[1][last] - seen[0][last]).abs() / seen[0][last].abs().max()
        assert float(error.flatten().kthvalue(int(0.99 * error.numel())).values) < 1e-3


@pytest.mark.parametrize(
    "name", ["surroundocc", "surroundocc-gf", "openoccupancy", "openoccupancy-gf", "cotr", "cotr-gf"]
)
def test_a_frame_needs_no_round_trip_through_the_cpu(name: str) -> None:
    """On the meta device, whatever asks for a tensor's values or mixes devices raises."""
    model = OccupancyModel(small(name), filled(small(name)).network, "test", device="meta")
    network, state, before = inference_form(model.network), None, None
    for frame in frames(model.config):
        poses = model.ego_poses(frame)
        with torch.inference_mode():
            output, state = network(model.network_input(frame, poses, before), state)
        before = poses
        assert {tensor.device.type for tensor in (output.logits, *state.tensors.values())} == {"meta"}
        assert output.logits[0, 0].transpose(0, 1).shape == model.grid.shape


@pytest.mark.parametrize("name", ["surroundocc", "cotr"])
def test_asking_all_cameras_about_all_queries_gives_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, which is not asked how many queries a camera sees."""
    model = filled(small(name))
    last = "logits_3" if name == "surroundocc" else "logits"
    expected = list(outputs(model, (last,)))
    for module in (camera_attention, compact):
        monkeypatch.setattr(module, "selected", lambda mask: torch.arange(len(mask)))
    for a, b in zip(outputs(model, (last,)), expected, strict=True):
        assert torch.allclose(a[last], b[last], atol=1e-5 * float(b[last].abs().max()))
        assert torch.equal(a["labels"], b["labels"])


def test_cues_that_are_plugged_in_begin_as_the_average_of_present_and_history() -> None:
    grid = VoxelGrid.from_bounds((0.0, 4.0, 1.0), (0.0, 5.0, 1.0), (0.0, 3.0, 1.0))
    fusion = RecurrentFusion(6, grid, TemporalConfig(warp="grid", gains=True, geometry=False)).eval()
    shown: dict[str, Tensor] = {}
    first, second = torch.rand(2, 1, 6, 5, 4, 3)
    with torch.no_grad():
        assert torch.equal(fusion(first, None, torch.eye(4)[None], Watch())[0].voxels, first)
        fusion.gain.fill_(1.0)
        carried = fusion(first, None, torch.eye(4)[None], Watch())[1]
        state = TemporalState(1, carried)
        fused = fusion(second, state, torch.eye(4)[None], Watch(shown.__setitem__))[0].voxels

    assert torch.allclose(shown["voxel_fused"], (first + second) / 2, atol=1e-4)
    assert float((fused - shown["voxel_fused"]).abs().max()) < 0.5


def test_offsets_of_deformable_convolutions_may_have_their_very_old_name(tmp_path: Path) -> None:
    weight = torch.zeros(27, 4, 3, 3)
    torch.save({"state_dict": {"module.layer3.0.conv2_offset.weight": weight}}, tmp_path / "old.pth")

    assert list(read_checkpoint(tmp_path / "old.pth")) == ["layer3.0.conv2.conv_offset.weight"]
