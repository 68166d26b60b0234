"""Every kernel against its plain-torch twin, over odd shapes, instruction sets and threads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import convolution, library, lifting, stereo
from gdfusion_ros.kernels import head as head_kernel
from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion, grid_points, pixel_grid, ray_steps
from gdfusion_ros.model.blocks.encoders import EncoderConfig, VoxelNeck
from gdfusion_ros.model.blocks.heads import VoxelHead
from gdfusion_ros.model.blocks.lifting import lift_logarithm, splat
from gdfusion_ros.model.blocks.pyramid import MixingHead
from gdfusion_ros.model.blocks.stereo import cost_volume
from gdfusion_ros.model.config import TemporalConfig
from gdfusion_ros.model.fusion.geometry import GeometryFusion, GeometryState
from gdfusion_ros.model.fusion.motion import MotionFusion
from gdfusion_ros.model.fusion.temporal import RecurrentFusion
from gdfusion_ros.model.fusion.warp import sample_history
from gdfusion_ros.model.inference import FusedNeck
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

pytestmark = pytest.mark.skipif(not library.instruction_sets(), reason="the library of kernels is not built")

BOUND = 2e-5
"""Of a tensor's largest value: what a kernel may differ from its twin."""

pytestmark = pytest.mark.usefixtures("instructions")


def twin(function, *arguments):  # type: ignore[no-untyped-def]
    with library.switched(False):
        return function(*arguments)


def assert_close(kernel: Tensor, plain: Tensor, bound: float = BOUND) -> None:
    assert kernel.shape == plain.shape
    assert float((kernel - plain).abs().max()) <= bound * float(plain.abs().max().clamp_min(1e-6))


def random_rig(cameras: int, seed: int) -> tuple[CameraRig, EgoMotion]:
    generator = torch.Generator().manual_seed(seed)
    angles = 6.28 * torch.rand(cameras, generator=generator)
    rotation = torch.zeros(1, cameras, 3, 3)
    rotation[0, :, 0, 0], rotation[0, :, 0, 2] = angles.sin(), angles.cos()
    rotation[0, :, 1, 0], rotation[0, :, 1, 2] = -angles.cos(), angles.sin()
    rotation[0, :, 2, 1] = -1
    intrinsics = torch.tensor([[60.0, 0, 31], [0, 60, 15], [0, 0, 1]]).expand(1, cameras, 3, 3).clone()
    scale = torch.diag(torch.tensor([0.9, 0.9, 1.0])).expand(1, cameras, 3, 3).clone()
    shift = torch.tensor([-1.0, -3.0, 0.0]).expand(1, cameras, 3).clone()
    rig = CameraRig(
        intrinsics,
        rotation,
        torch.randn(1, cameras, 3, generator=generator),
        scale,
        shift,
        torch.eye(3)[None],
    )
    step = torch.eye(4).expand(1, cameras, 4, 4).clone()
    # Forwards and sideways, so that some points leave the image and some end up behind the camera.
    step[..., :3, 3] = torch.randn(1, cameras, 3, generator=generator) * torch.tensor([1.0, 0.2, 3.0])
    return rig, EgoMotion(torch.eye(4)[None], step)


@pytest.mark.parametrize(
    ("channels", "depths", "size"), [(32, 16, (8, 16)), (13, 5, (7, 9)), (4, 3, (2, 3)), (68, 33, (5, 6))]
)
def test_the_cost_volume_equals_its_twin(channels: int, depths: int, size: tuple[int, int]) -> None:
    torch.manual_seed(channels)
    rig, motion = random_rig(2, channels)
    # Small features, or the softmax is one depth and zeros; a ReLU, so that the witness channel is often zero.
    current, previous = (0.2 * torch.randn(2, channels, *size).relu() for _ in range(2))
    arguments = (current, previous, torch.linspace(1, 20, depths), rig, motion, (32, 64))
    kernel, plain = cost_volume(*arguments), twin(cost_volume, *arguments)
    # A point on the border of the image, or just at the camera, may be seen by one and not by the other.
    assert kernel.shape == plain.shape
    wrong = ((kernel - plain).abs() > 1e-4 * plain.abs().max()).float().mean()
    assert wrong <= 0.01


@pytest.mark.parametrize(("depths", "size"), [(16, (8, 16)), (5, (7, 9)), (33, (2, 3)), (48, (6, 11))])
@pytest.mark.parametrize("gain", [None, 0.7, 1.7])
def test_the_geometry_cue_equals_its_twin_over_a_sequence(
    depths: int, size: tuple[int, int], gain: float | None
) -> None:
    torch.manual_seed(depths)
    rig, motion = random_rig(2, depths)
    fusion = GeometryFusion(torch.linspace(1, 20, depths), (32, 64), gain is not None).eval()
    if fusion.gain is not None:
        fusion.gain.fill_(gain)
    states: list[GeometryState | None] = [None, None]
    for _ in range(3):
        logits, surface = torch.randn(2, depths, *size), torch.rand(2, depths, *size)
        kernel, states[0] = fusion(logits, surface, states[0], rig, motion)
        plain, states[1] = twin(fusion, logits, surface, states[1], rig, motion)
        assert_close(kernel, plain, 1e-4)
        assert_close(states[0].logits, states[1].logits, 1e-4)
        rig = dataclasses.replace(rig, image_translation=rig.image_translation + 0.4)


@pytest.mark.parametrize(("depths", "size"), [(16, (8, 16)), (5, (7, 9)), (1, (1, 3))])
def test_the_cells_along_rays_are_those_of_the_points_to_the_last_digit(
    depths: int, size: tuple[int, int]
) -> None:
    rig, _ = random_rig(3, depths)
    grid = VoxelGrid((-4.0, -3.0, -1.0), (0.4, 0.8, 0.5), (20, 10, 4))
    pixels, metres = pixel_grid(size, (32, 64), torch.device("cpu")), torch.linspace(1, 20, depths)
    cells = lifting.ray_cells(pixels, metres, ray_steps(rig), grid)
    along = pixels.expand(1, 3, depths, *size, 2)
    points = grid_points(along, metres[:, None, None].expand(along.shape[:-1]), rig)
    expected = (points - torch.tensor(grid.minimum)) / torch.tensor(grid.cell_size)
    assert_close(cells, expected, 1e-6)
    assert (cells == expected).float().mean() > 0.99


@pytest.mark.parametrize("trilinear", [False, True])
@pytest.mark.parametrize(("channels", "shape"), [(32, (8, 6, 4)), (5, (3, 7, 2)), (17, (9, 5, 1))])
def test_lifting_equals_its_twin(trilinear: bool, channels: int, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(channels)
    grid = VoxelGrid((-4.0, -3.0, -1.0), (1.0, 1.0, 1.0), shape)
    context, weights = torch.randn(2, 3, channels, 4, 5), torch.rand(2, 3, 7, 4, 5)
    points = torch.randn(2, 3, 7, 4, 5, 3) * 4
    arguments = (context, points, weights, grid, trilinear)
    assert_close(splat(*arguments), twin(splat, *arguments))


@pytest.mark.parametrize(("channels", "shape"), [(32, (8, 6, 4)), (5, (3, 7, 2)), (24, (9, 5, 1))])
def test_the_gradient_of_lifting_equals_that_of_its_twin(channels: int, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(channels)
    grid = VoxelGrid((-4.0, -3.0, -1.0), (1.0, 1.0, 1.0), shape)

    def gradients() -> list[Tensor]:
        context, weights = torch.randn(2, 3, channels, 4, 5), torch.rand(2, 3, 7, 4, 5)
        points = torch.randn(2, 3, 7, 4, 5, 3) * 4
        inputs = [context.requires_grad_(), weights.requires_grad_()]
        volume = splat(context, points, weights, grid, trilinear=False)
        return [volume.detach(), *torch.autograd.grad((volume * torch.randn(volume.shape)).sum(), inputs)]

    with torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(channels)
        by_kernel = gradients()
        torch.manual_seed(channels)
        by_torch = twin(gradients)
    assert not torch.equal(by_torch[1], torch.zeros_like(by_torch[1]))
    for kernel, plain in zip(by_kernel, by_torch, strict=True):
        assert_close(kernel, plain)


def test_ranks_are_computed_once_for_a_calibration_and_again_for_another() -> None:
    cache = lifting.RankCache()
    places = torch.rand(1000, 3) * 5
    first = cache.ranks(places, (5, 5, 5), False)
    assert cache.ranks(places.clone(), (5, 5, 5), False) is first
    moved = places.clone()
    moved[1, 1] += 2.5  # not among the sampled numbers
    assert cache.ranks(moved, (5, 5, 5), False) is not first


@pytest.mark.parametrize(
    ("channels", "shape"), [(32, (12, 10, 6)), (10, (7, 9, 3)), (16, (8, 5, 1)), (6, (4, 6, 1))]
)
@pytest.mark.parametrize("gains", [False, True])
def test_the_temporal_cues_equal_their_twins_over_a_sequence(
    channels: int, shape: tuple[int, int, int], gains: bool
) -> None:
    torch.manual_seed(channels)
    grid = VoxelGrid((-4.0, -3.0, -1.0), (0.5, 0.5, 0.5), shape)
    fusion = RecurrentFusion(channels, grid, TemporalConfig(gains=gains)).eval()
    torch.nn.init.normal_(fusion.motion.offset.weight, std=0.3)
    if fusion.gain is not None:
        torch.nn.init.uniform_(fusion.gain, -0.5, 1.5)
    motion = torch.eye(4)[None]
    motion[0, :3, 3] = torch.tensor([0.3, -0.1, 0.02])
    motion[0, 0, 1], motion[0, 1, 0] = -0.03, 0.03
    states: list[TemporalState | None] = [None, None]
    for frame in range(4):
        voxels = torch.randn(1, channels, *(shape[1], shape[0], shape[2])[: 3 if shape[2] > 1 else 2])
        kernel, tensors = fusion(voxels, states[0], motion, Watch())
        plain, twins = twin(fusion, voxels, states[1], motion, Watch())
        assert_close(kernel.voxels, plain.voxels, 1e-4)
        assert_close(kernel.offsets, plain.offsets, 1e-4)
        assert (kernel.inside == plain.inside).float().mean() > 0.99
        for name, tensor in tensors.items():
            assert_close(tensor, twins[name], 2e-4)
        states = [TemporalState(frame + 1, tensors), TemporalState(frame + 1, twins)]


def test_what_is_not_a_number_stays_so_in_the_motion_cue() -> None:
    torch.manual_seed(0)
    fusion = MotionFusion(6, VoxelGrid((-4.0, -3.0, -1.0), (0.5, 0.5, 0.5), (7, 5, 3))).eval()
    voxels, previous = torch.randn(1, 6, 3, 5, 7), torch.randn(1, 3, 3, 5, 7)
    voxels[0, 2, 1, 4, 3] = torch.nan
    offsets, positions, inside = fusion.move(voxels, previous, torch.eye(4)[None], False)
    broken = voxels.isnan().any(dim=1)
    assert torch.equal(offsets.isnan().all(dim=1), broken)
    assert torch.equal(positions.isnan().any(dim=-1), broken)
    assert not inside[broken].any()


@pytest.mark.parametrize("channels", [24, 13, 40])
def test_rounded_products_change_the_scene_cue_by_bfloat16_and_no_more(channels: int) -> None:
    torch.manual_seed(channels)
    grid = VoxelGrid((-4.0, -3.0, -1.0), (0.5, 0.5, 0.5), (12, 10, 5))
    fusion = RecurrentFusion(channels, grid, TemporalConfig()).eval()
    voxels = [torch.randn(1, channels, 10, 12, 5) for _ in range(3)]

    def run(rounds: bool) -> list[Tensor]:
        fusion.scene.rounds = rounds
        state, seen = None, []
        for frame, now in enumerate(voxels):
            fused, tensors = fusion(now, state, torch.eye(4)[None], Watch())
            state = TemporalState(frame + 1, tensors)
            seen += [fused.voxels, tensors["scene_weight"]]
        return seen

    for rounded, exact in zip(run(True), run(False)):
        assert_close(rounded, exact, 2e-2)
        assert torch.equal(rounded, exact) == (library.instruction_set() != "avx512bf16")


@pytest.mark.parametrize("depths", [48, 5])
def test_rounded_products_change_the_geometry_cue_by_bfloat16_and_no_more(depths: int) -> None:
    torch.manual_seed(depths)
    rig, motion = random_rig(2, depths)
    fusion = GeometryFusion(torch.linspace(1, 20, depths), (32, 64)).eval()
    frames = [(torch.randn(2, depths, 6, 11), torch.rand(2, depths, 6, 11)) for _ in range(2)]

    def run(rounds: bool) -> Tensor:
        fusion.rounds = rounds
        _, state = fusion(*frames[0], None, rig, motion)
        return fusion(*frames[1], state, rig, motion)[0]

    rounded, exact = run(True), run(False)
    assert_close(rounded, exact, 1e-2)
    assert torch.equal(rounded, exact) == (library.instruction_set() != "avx512bf16")


@pytest.mark.parametrize(("channels", "shape"), [(24, (8, 6, 4)), (5, (3, 7, 2))])
def test_lifting_to_logarithms_equals_its_twin(channels: int, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(channels)
    grid = VoxelGrid((-4.0, -3.0, -1.0), (1.0, 1.0, 1.0), shape)
    rig, _ = random_rig(3, channels)
    pixels, depths = pixel_grid((5, 7), (32, 64), torch.device("cpu")), torch.linspace(1, 6, 4)
    context, weights = torch.rand(1, 3, channels, 5, 7) ** 8, torch.rand(1, 3, 4, 5, 7)
    arguments = (context, weights, pixels, depths, rig, grid, 50.0)
    kernel = lift_logarithm(*arguments)
    assert kernel.any()
    assert_close(kernel, twin(lift_logarithm, *arguments))


@pytest.mark.parametrize("shape", [(3, 4, 5), (6, 7), (1, 4, 1), (1, 9)])
def test_the_warp_equals_its_twin_and_is_zero_outside(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    history = torch.randn(2, 11, *shape)
    positions = torch.rand(2, *shape, len(shape)) * 12 - 4
    assert_close(sample_history(history, positions), twin(sample_history, history, positions))
    assert not sample_history(history, positions + 100.0).any()


@pytest.mark.parametrize(("channels", "classes"), [(32, 19), (7, 3), (24, 40)])
def test_the_head_and_the_labels_equal_their_twins(channels: int, classes: int) -> None:
    torch.manual_seed(classes)
    head = VoxelHead(channels, classes).eval()
    x = torch.randn(1, channels, 5, 7, 3)
    logits = head(x)
    assert_close(logits, twin(head, x))
    excluded = (1,)
    labels, confidence = head_kernel.classify(10 * logits[0], 1, excluded)
    allowed = 10 * logits[0, 1:].clone()
    allowed[list(excluded)] = -torch.inf
    best, winner = allowed.max(dim=0)
    assert torch.equal(torch.from_numpy(labels).long(), winner.transpose(0, 1))
    expected = ((best - allowed.logsumexp(dim=0)).exp() * 255).transpose(0, 1)
    assert float((torch.from_numpy(confidence) - expected).abs().max()) <= 0.51


def test_labels_are_taken_from_logits_beside_other_outputs() -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 7, 3, 21)
    beside, alone = values[..., 1:20].movedim(-1, 0), values[..., 1:20].movedim(-1, 0).contiguous()
    for found, expected in zip(head_kernel.classify(beside, 0, ()), head_kernel.classify(alone, 0, ())):
        assert (found == expected).all()


@pytest.mark.parametrize(
    ("dims", "inputs", "outputs", "size"),
    [
        (3, 32, 32, (6, 8, 4)),
        (3, 5, 7, (5, 3, 1)),
        (3, 16, 50, (1, 2, 7)),
        (2, 64, 64, (9, 12)),
        (2, 3, 11, (1, 5)),
        (2, 130, 17, (8, 8)),
    ],
)
@pytest.mark.parametrize("relu", [True, False, 3])
def test_the_convolution_equals_its_twin(
    dims: int, inputs: int, outputs: int, size: tuple[int, ...], relu: bool | int
) -> None:
    torch.manual_seed(inputs)
    module = (nn.Conv3d if dims == 3 else nn.Conv2d)(inputs, outputs, 3, padding=1)
    x, residual = torch.randn(2, inputs, *size), torch.randn(2, outputs, *size)
    plain = module(x) + residual
    rectified = outputs if relu is True else int(relu)
    plain = torch.cat([plain[:, :rectified].relu(), plain[:, rectified:]], dim=1)
    weights = convolution.transform(module.weight, module.bias)
    assert_close(convolution.convolve(x, weights, relu, residual), plain)
    # Over the residual itself, when that lies in memory as the result does.
    residual = residual.movedim(1, -1).contiguous().movedim(-1, 1)
    result = convolution.convolve(x, weights, relu, residual, in_place=True)
    assert result.data_ptr() == residual.data_ptr()
    assert_close(result, plain)


@pytest.mark.parametrize(
    ("channels", "sizes", "outputs"),
    [
        ((32, 64, 128), ((12, 10, 8), (6, 5, 4), (3, 3, 2)), 32),
        ((5, 7), ((5, 3, 7), (1, 2, 3)), 9),
        ((8,), ((3, 3, 3),), 40),
        ((8, 8, 8), ((1, 2, 5), (1, 1, 1), (1, 1, 2)), 16),
    ],
)
def test_the_neck_equals_the_plain_one(
    channels: tuple[int, ...], sizes: tuple[tuple[int, int, int], ...], outputs: int
) -> None:
    torch.manual_seed(outputs)
    ones = tuple(1 for _ in channels)
    neck = VoxelNeck(EncoderConfig(ones, channels, ones, outputs)).eval()
    neck.conv.bn.bias.normal_()
    maps = [torch.randn(2, count, *size) for count, size in zip(channels, sizes)]
    fused = FusedNeck(neck, channels, "fp32")
    assert_close(fused(maps), neck(maps))
    assert_close(twin(fused, maps), neck(maps))


def test_the_doubled_mixing_head_equals_itself_a_few_rows_at_a_time() -> None:
    torch.manual_seed(0)
    head = MixingHead(32, 3, 5, doubled=True).eval()
    levels = [torch.randn(1, 32, *size) for size in ((9, 6, 4), (5, 3, 2), (3, 2, 1))]
    assert_close(head(levels), twin(head, levels))


def test_features_in_bfloat16_give_the_cost_volume_of_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, motion = random_rig(2, 3)
    current, previous = torch.randn(2, 16, 8, 16).bfloat16(), torch.randn(2, 16, 8, 16).bfloat16()
    depths = torch.linspace(1, 20, 9)
    taken: list[torch.dtype] = []

    def kernel(features: Tensor, *rest: Tensor | int) -> Tensor:
        taken.append(features.dtype)
        return original(features, *rest)

    original = stereo.cost_volume
    monkeypatch.setattr(stereo, "cost_volume", kernel)
    found = cost_volume(current, previous, depths, rig, motion, (32, 64))
    assert_close(found, cost_volume(current.float(), previous.float(), depths, rig, motion, (32, 64)))
    assert taken == ([torch.bfloat16, torch.float32] if library.instruction_sets() else [])
    assert_close(twin(cost_volume, current, previous, depths, rig, motion, (32, 64)), found, 1e-3)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    grid = VoxelGrid((-4.0, -3.0, -1.0), (0.5, 0.5, 0.5), (40, 30, 4))
    fusion = RecurrentFusion(8, grid, TemporalConfig()).eval()
    head, voxels, motion = VoxelHead(8, 5).eval(), torch.randn(1, 8, 30, 40, 4), torch.eye(4)[None]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            fused, state = fusion(voxels, None, motion, Watch())
            again, state = fusion(fused.voxels, TemporalState(1, state), motion, Watch())
            results.append(
                [
                    again.voxels,
                    *state.values(),
                    *head_kernel.classify(
                        head.classifier(again.voxels.movedim(1, -1)).movedim(-1, 1)[0], 1, ()
                    ),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_kernels_leave_training_meta_tensors_and_other_types_to_torch() -> None:
    x = torch.zeros(2)
    assert library.usable(x)
    assert not library.usable(x, torch.zeros(2, device="meta"))
    assert not library.usable(x.double())
    with torch.inference_mode(False), torch.enable_grad():
        assert not library.usable(torch.zeros(2))
    with library.switched(False):
        assert not library.usable(x)
        with library.switched(True):
            assert not library.usable(x)


def test_a_missing_library_is_one_warning_and_the_torch_path(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(path: str) -> None:
        raise OSError("no such file")

    library._library.cache_clear()
    monkeypatch.setattr(library.ctypes, "CDLL", missing)
    try:
        assert not library.usable(torch.zeros(2))
        assert not library.usable(torch.zeros(2))
        assert len(caplog.records) == 1
        assert "install the package again" in caplog.text
    finally:
        library._library.cache_clear()
