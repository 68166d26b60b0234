"""The inference form against the plain network, its precisions and backends, and where its tensors live."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import library
from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion
from gdfusion_ros.model.blocks.encoders import EncoderConfig, VoxelNeck
from gdfusion_ros.model.blocks.layers import ConvNorm, ImageResidual
from gdfusion_ros.model.compiled import CompiledBlock, blocks_of, compile_blocks, record
from gdfusion_ros.model.config import GridConfig, ModelConfig, TemporalConfig, load_config
from gdfusion_ros.model.fusion.temporal import RecurrentFusion
from gdfusion_ros.model.inference import FusedConvolution, inference_form, keeps_kernels
from gdfusion_ros.model.model import build_network, load_model
from gdfusion_ros.model.network import NetworkInput
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch
from gdfusion_ros.sources.world import WorldSource

FAMILIES = ["gdfusion-small", "bevdetocc-gf", "alocc3d-gf", "fbocc-gf"]


def small_config(name: str) -> ModelConfig:
    """A model on images and grids as small as its strides allow."""
    config = load_config(name)
    if name == "gdfusion-small":
        return config
    grid, z = config.grid, config.grid.z
    flat: tuple[float, float, float] = (-8.0, 8.0, 0.8)
    if name == "fbocc-gf":
        flat, z = (-40.0, 40.0, 3.2), (-1.0, 5.4, 1.6)
    return dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, height=64, width=96),
        grid=GridConfig(
            flat, flat, (z[0], z[1], 1.6 if name == "fbocc-gf" else 0.8), grid.frame, grid.upsampling
        ),
        depth=dataclasses.replace(config.depth, upper=config.depth.lower + 8 * config.depth.step),
    )


def inputs(config: ModelConfig, device: str = "cpu") -> list[NetworkInput]:
    """Two frames of a rig that drives forward."""
    torch.manual_seed(1)
    cameras, (height, width) = len(config.cameras), (config.image.height, config.image.width)
    angles = torch.arange(cameras) * 1.05
    rotation = torch.zeros(1, cameras, 3, 3)
    rotation[0, :, 0, 0], rotation[0, :, 0, 2] = angles.sin(), angles.cos()
    rotation[0, :, 1, 0], rotation[0, :, 1, 2], rotation[0, :, 2, 1] = -angles.cos(), angles.sin(), -1.0
    intrinsics = torch.tensor([[width / 1.2, 0, width / 2], [0, width / 1.2, height / 2], [0, 0, 1.0]])
    rig = CameraRig(
        intrinsics.expand(1, cameras, 3, 3).clone(),
        rotation,
        torch.tensor([0.0, 0.0, 1.5]).expand(1, cameras, 3).clone(),
        torch.eye(3).expand(1, cameras, 3, 3).clone(),
        torch.zeros(1, cameras, 3),
        torch.eye(3)[None],
    )
    ego = torch.eye(4)[None]
    ego[0, 0, 3] = 0.73
    moved = torch.eye(4).repeat(1, cameras, 1, 1)
    moved[0, :, :3, 3] = rotation[0].transpose(1, 2) @ ego[0, :3, 3]
    still = EgoMotion(torch.eye(4)[None], torch.eye(4).repeat(1, cameras, 1, 1))
    frames = []
    for motion in (still, EgoMotion(ego, moved)):
        images = torch.randn(1, cameras, 3, height, width)
        parts = (
            [images, rig, motion]
            if device == "cpu"
            else [images.to(device), _to(rig, device), _to(motion, device)]
        )
        frames.append(NetworkInput(*parts))
    return frames


def _to(record, device: str):  # type: ignore[no-untyped-def]
    values = {f.name: getattr(record, f.name).to(device) for f in dataclasses.fields(record)}
    return type(record)(**values)


def network_of(config: ModelConfig) -> nn.Module:
    """Random weights, and norms whose statistics are not those of a new network."""
    torch.manual_seed(0)
    network = build_network(config).eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.3)
            nn.init.uniform_(module.weight, 0.7, 1.2)
    return network


def run(network: nn.Module, frames: list[NetworkInput]) -> tuple[list[Tensor], TemporalState]:
    state, logits = None, []
    with torch.inference_mode():
        for frame in frames:
            output, state = network(frame, state)
            logits.append(output.logits)
    assert state is not None
    return logits, state


@pytest.mark.parametrize("name", FAMILIES)
def test_the_inference_form_gives_what_the_plain_network_gives(name: str) -> None:
    config = small_config(name)
    network, frames = network_of(config), inputs(config)
    with library.switched(False):
        plain, _ = run(network, frames)
    form = inference_form(network)
    for kernels in (False, True):
        with library.switched(kernels):
            found, _ = run(form, frames)
        for a, b in zip(found, plain):
            error = (a - b).abs() / b.abs().max()
            # Single cells may flip at the discontinuities of the motion cue.
            assert float(error.flatten().kthvalue(int(0.999 * error.numel())).values) < 1e-3
            assert float(error.mean()) < 1e-4


def test_the_network_itself_stays_as_it_is() -> None:
    config = small_config("gdfusion-small")
    network = network_of(config)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inference_form(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_module_that_is_not_ours_keeps_its_norms() -> None:
    class Swapped(nn.Module):
        """Calls its parts in another order than it names them."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(x))

    module = Swapped().eval()
    nn.init.uniform_(module.norm.running_mean)
    x = torch.randn(1, 8, 5, 6)
    with torch.inference_mode():
        assert torch.allclose(inference_form(module)(x), module(x), atol=1e-5)


def test_bfloat16_differs_from_float32_by_its_rounding_only() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(ConvNorm(32, 32, 3, dims=2), ImageResidual(32, 32)).eval()
    x = torch.randn(1, 32, 12, 14)
    with torch.inference_mode():
        exact, rounded = inference_form(block)(x), inference_form(block, "bf16")(x)
    error = float((exact - rounded).abs().max() / exact.abs().max())
    assert 1e-4 < error < 3e-2


def test_in_bfloat16_the_history_stays_that_of_float32() -> None:
    """Rounded products in the voxel cue would come back to it with every frame."""
    torch.manual_seed(0)
    fusion = RecurrentFusion(24, VoxelGrid((-3.0, -2.0, -1.0), (0.5, 0.5, 0.5), (12, 8, 4)), TemporalConfig())
    forms = [inference_form(fusion, precision) for precision in ("fp32", "bf16")]
    assert [form.scene.rounds for form in (fusion.eval(), *forms)] == [False, False, True]
    states: list[TemporalState | None] = [None, None]
    for frame in range(3):
        voxels = torch.randn(1, 24, 8, 12, 4)
        with torch.inference_mode():
            for i, form in enumerate(forms):
                _, tensors = form(voxels, states[i], torch.eye(4)[None], Watch())
                states[i] = TemporalState(frame + 1, tensors)
        assert torch.equal(states[0].tensors["voxel"], states[1].tensors["voxel"])


def test_int8_without_openvino_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="int8 needs the backend openvino"):
        inference_form(nn.Conv2d(3, 3, 3), "int8")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_frame_needs_no_round_trip_through_the_cpu(name: str) -> None:
    """On the meta device, whatever asks for a tensor's values or mixes devices raises."""
    config = small_config(name)
    network = inference_form(network_of(config)).to("meta")
    logits, state = run(network, inputs(config, "meta"))
    assert all(tensor.device.type == "meta" for tensor in (*logits, *state.tensors.values()))


def world_frames(count: int) -> list[CameraFrame]:
    return list(WorldSource(3, count))


@pytest.mark.parametrize(("backend", "package"), [("openvino", "openvino"), ("onnxruntime", "onnxruntime")])
def test_other_backends_give_the_same_labels(backend: str, package: str) -> None:
    pytest.importorskip(package)
    pytest.importorskip("onnxscript" if backend == "onnxruntime" else package)
    frames = world_frames(2)
    plain = load_model("gdfusion-small", "random:0", kernels=False)
    other = load_model("gdfusion-small", "random:0", backend=backend, calibration=frames[:1])
    assert len(blocks_of(plain.network)) >= 2
    states: list[TemporalState | None] = [None, None]
    for frame in frames:
        expected, states[0] = plain(frame, states[0])
        found, states[1] = other(frame, states[1])
        assert (expected.labels == found.labels).mean() > 0.999


@pytest.mark.parametrize("dims", [2, 3])
def test_openvino_gives_images_and_volumes_channels_last_in_memory(dims: int) -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(dims)
    network = nn.Module()
    network.encoder = ConvNorm(20, 12, 3, dims=dims).eval()
    x = torch.randn(2, 20, *(5, 6, 7)[:dims])
    with torch.inference_mode():
        expected = network.encoder(x)
        calls = record(network, lambda: network.encoder(x))
        block = compile_blocks(network, "openvino", "fp32", calls).encoder
        first, second = block(x), block(2 * x)
    assert first.shape == expected.shape
    assert first.stride(1) == 1
    # The second frame must not have written over the first one's output.
    assert torch.allclose(first, expected, atol=1e-4)
    assert not torch.equal(first, second)


def test_volumes_stay_with_the_kernels_whatever_computes_the_images() -> None:
    volumes, images = ConvNorm(32, 32, 3, dims=3), ConvNorm(32, 32, 3, dims=2)
    few, strided = ConvNorm(8, 8, 3, dims=3), nn.Conv3d(32, 32, 3, stride=2, padding=1)
    assert keeps_kernels(volumes) == keeps_kernels(nn.Sequential(images, volumes)) == volumes_are_kept()
    assert not any(keeps_kernels(block) for block in (images, few, strided, nn.Conv3d(32, 32, 1)))


def volumes_are_kept() -> bool:
    return bool(library.allowed() and library.instruction_sets() and not torch.cpu._is_amx_tile_supported())


def test_a_network_of_volumes_in_openvino_gives_the_same_labels() -> None:
    pytest.importorskip("openvino")
    config = small_config("bevdetocc-gf")
    frames = world_frames(2)
    plain = load_model(config, "random:0", kernels=False)
    other = load_model(config, "random:0", backend="openvino", calibration=frames[:1])
    parts = other.inference_network.named_modules()
    compiled = {name for name, part in parts if isinstance(part, CompiledBlock)}
    kept = {name for name, block in blocks_of(plain.network).items() if keeps_kernels(block)}
    assert "image_encoder" in compiled
    assert ({"encoder", "neck"} <= kept) == volumes_are_kept()
    assert not compiled & kept
    states: list[TemporalState | None] = [None, None]
    for frame in frames:
        expected, states[0] = plain(frame, states[0])
        found, states[1] = other(frame, states[1])
        assert (expected.labels == found.labels).mean() > 0.999


def test_a_backend_without_a_frame_to_prepare_with_is_refused_in_one_line() -> None:
    model = load_model("gdfusion-small", "random:0", backend="openvino")
    with pytest.raises(UserError, match="needs a frame"):
        model(world_frames(1)[0], None)


def test_a_neck_whose_stages_another_runtime_computes_is_converted_by_itself() -> None:
    torch.manual_seed(0)
    network = nn.Module()
    network.neck = VoxelNeck(EncoderConfig((1, 1), (8, 16), (1, 2), 8))
    maps = [torch.randn(1, 8, 4, 6, 4), torch.randn(1, 16, 2, 3, 2)]
    with torch.inference_mode():
        assert torch.allclose(inference_form(network).neck(maps), network.eval().neck(maps), atol=1e-5)


def test_convolutions_with_few_channels_or_strides_are_left_to_torch() -> None:
    assert not FusedConvolution(nn.Conv2d(3, 64, 3, padding=1), None, True, "fp32").winograd
    assert not FusedConvolution(nn.Conv2d(64, 64, 3, stride=2, padding=1), None, True, "fp32").winograd
    assert not FusedConvolution(nn.Conv2d(64, 64, 3, padding=2, dilation=2), None, True, "fp32").winograd
    assert FusedConvolution(nn.Conv3d(64, 64, 3, padding=1), None, True, "fp32").winograd


def test_only_convolutions_of_volumes_can_be_too_wide_for_transformed_weights() -> None:
    assert FusedConvolution(nn.Conv3d(128, 128, 3, padding=1), None, True, "fp32").winograd
    assert not FusedConvolution(nn.Conv3d(160, 160, 3, padding=1), None, True, "fp32").winograd
    assert FusedConvolution(nn.Conv2d(512, 512, 3, padding=1), None, True, "fp32").winograd
