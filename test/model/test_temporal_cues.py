"""The four temporal cues against brute force, autograd and each other."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import library
from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion
from gdfusion_ros.model.config import TemporalConfig
from gdfusion_ros.model.fusion.geometry import GeometryFusion, GeometryState
from gdfusion_ros.model.fusion.motion import MotionFusion, motion_gradient, sample_with_jacobian
from gdfusion_ros.model.fusion.scene import SceneFusion, SceneState, scene_gradient
from gdfusion_ros.model.fusion.stacked import StackedFusion
from gdfusion_ros.model.fusion.temporal import RecurrentFusion
from gdfusion_ros.model.fusion.voxel import VoxelFusion, VoxelState
from gdfusion_ros.model.fusion.warp import history_positions, sample_history
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

GRID = VoxelGrid((-3.0, -2.0, -1.0), (1.0, 0.5, 0.8), (6, 8, 3))
FLAT = VoxelGrid((-3.0, -2.0, -1.0), (1.0, 0.5, 2.4), (6, 8, 1))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def spatial(grid: VoxelGrid) -> tuple[int, ...]:
    x, y, z = grid.shape
    return (y, x) if z == 1 else (z, y, x)


def drive(metres: float = 0.7, turn: float = 0.1, batch: int = 1) -> Tensor:
    """(B, 4, 4) ego motion: forward, and to the left."""
    matrix = torch.eye(4)
    matrix[:2, :2] = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix[0, 3] = metres
    return matrix.expand(batch, 4, 4).clone()


def interpolate(volume: Tensor, place: Tensor) -> Tensor:
    """(C,) of a volume (C, ...) at one place (x first), zero outside: the sum over all corners, one by one."""
    total = torch.zeros(len(volume))
    base = [math.floor(float(p)) for p in place]
    for corner in itertools.product((0, 1), repeat=len(place)):
        cell = [b + c for b, c in zip(base, corner)]
        weight = 1.0
        for p, b, c in zip(place, base, corner):
            weight *= float(p) - b if c else 1 - (float(p) - b)
        if all(0 <= i < size for i, size in zip(cell, reversed(volume.shape[1:]))):
            total += weight * volume[(slice(None), *reversed(cell))]
    return total


@pytest.mark.parametrize("grid", [GRID, FLAT])
def test_the_warp_equals_a_brute_force_loop(grid: VoxelGrid) -> None:
    motion = drive()
    positions = history_positions(motion, grid)[0]
    history = torch.randn(1, 2, *spatial(grid))
    sampled = sample_history(history, positions[None])[0]
    for cell in itertools.product(*(range(n) for n in spatial(grid))):
        index = torch.tensor([*reversed(cell)], dtype=torch.float32)
        cell_size = torch.tensor(grid.cell_size[: len(index)])
        minimum = torch.tensor(grid.minimum[: len(index)])
        metres = torch.cat([index * cell_size + minimum, torch.ones(4 - len(index))])
        place = ((motion[0] @ metres)[: len(index)] - minimum) / cell_size
        assert torch.allclose(positions[cell], place, atol=1e-5)
        assert torch.allclose(sampled[(slice(None), *cell)], interpolate(history[0], place), atol=1e-4)


@pytest.mark.parametrize("grid", [GRID, FLAT])
def test_the_motion_gradient_is_that_of_autograd(grid: VoxelGrid) -> None:
    dims = 2 if grid is FLAT else 3
    previous = torch.randn(2, dims, *spatial(grid))
    positions = history_positions(drive(batch=2), grid)
    offsets = (0.3 * torch.randn(2, dims, *spatial(grid))).requires_grad_()
    sampled = sample_history(previous, positions + offsets.movedim(1, -1))
    (sampled - offsets).square().mean(dim=1).sum().backward()
    ours = motion_gradient(offsets.detach(), previous, positions)
    moved = positions + offsets.detach().movedim(1, -1)
    last = torch.tensor([size - 1 for size in reversed(spatial(grid))])
    inside = ((moved > 0.01) & (moved < last - 0.01)).all(dim=-1)
    assert inside.sum() > 20
    assert offsets.grad is not None
    difference = (ours - offsets.grad).movedim(1, -1)[inside]
    assert difference.abs().max() < 1e-4
    outside = ((moved < -0.01) | (moved > last + 0.01)).any(dim=-1)
    assert (ours.movedim(1, -1)[outside] == 0).all()


def test_the_motion_jacobian_is_flat_beyond_the_border() -> None:
    volume = torch.randn(1, 3, *spatial(GRID))
    value, jacobian = sample_with_jacobian(volume, torch.tensor([-1.5, 2.25, 0.5]).view(1, 1, 1, 1, 3))
    at_border, _ = sample_with_jacobian(volume, torch.tensor([0.0, 2.25, 0.5]).view(1, 1, 1, 1, 3))
    assert torch.allclose(value, at_border, atol=1e-6)
    assert (jacobian[..., 0, :] == 0).all()


def test_motion_starts_with_its_prediction_and_keeps_it_clamped() -> None:
    cue = MotionFusion(4, GRID)
    with torch.no_grad():
        cue.offset.weight.mul_(1000)
    voxels = torch.randn(1, 4, *spatial(GRID), requires_grad=True)
    offsets, state = cue(voxels, None, history_positions(torch.eye(4)[None], GRID))
    assert offsets.abs().max() == 20
    assert torch.equal(offsets, state)
    assert not state.requires_grad


def test_motion_passes_its_gradient_on_as_if_the_step_were_constant() -> None:
    cue = MotionFusion(4, GRID)
    voxels = torch.randn(1, 4, *spatial(GRID))
    previous = torch.randn(1, 3, *spatial(GRID))
    offsets, _ = cue(voxels, previous, history_positions(drive(), GRID))
    upstream = torch.randn_like(offsets)
    (offsets * upstream).sum().backward()
    assert cue.offset.bias is not None
    assert cue.offset.bias.grad is not None
    assert torch.allclose(cue.offset.bias.grad, upstream.flatten(2).sum(dim=(0, 2)), rtol=1e-4)


def test_the_scene_gradient_is_that_of_autograd() -> None:
    key, target = torch.randn(2, 6, 50), torch.randn(2, 6, 50)
    parts = [torch.randn(2, 6, 6), torch.randn(2, 6, 1), torch.randn(2, 6, 1), torch.randn(2, 6, 1)]
    weight, bias, scale, shift = (part.requires_grad_() for part in parts)
    z = weight @ key + bias
    normal = (z - z.mean(dim=1, keepdim=True)) / (z.var(dim=1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    # The mean of each sample by itself, summed over the batch.
    (normal * scale + shift - target).square().mean(dim=(1, 2)).sum().backward()
    step = scene_gradient(key, target, weight, bias, scale, shift)
    for own, part in zip(step, (weight, bias, scale, shift)):
        assert part.grad is not None
        assert torch.allclose(own, part.grad, atol=1e-6)


def test_all_scene_parameters_get_a_gradient_through_the_step() -> None:
    cue = SceneFusion(6)
    state = SceneState(torch.randn(1, 6, 6), torch.randn(1, 6, 1))
    voxels = torch.randn(1, 6, *spatial(GRID), requires_grad=True)
    fused, new = cue(voxels, state)
    fused.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cue.parameters())
    assert not new.weight.requires_grad


def test_the_first_frame_of_a_sequence_passes_voxel_fusion_unchanged_but_fills_the_state() -> None:
    cue = VoxelFusion(8, GRID).eval()
    voxels = torch.randn(1, 8, *spatial(GRID))
    fused, state = cue(voxels, None, history_positions(torch.eye(4)[None], GRID))
    assert torch.equal(fused, voxels)
    assert not torch.allclose(state.voxels, voxels)
    assert state.steps == 1


def test_the_time_embedding_stands_still_at_its_trained_maximum() -> None:
    cue = VoxelFusion(8, GRID, max_time_steps=40).eval()
    voxels, positions = torch.randn(1, 8, *spatial(GRID)), history_positions(drive(), GRID)
    with torch.no_grad():
        fused = [cue(voxels, VoxelState(voxels, steps), positions)[0] for steps in (39, 40, 41, 10_000)]
    assert not torch.allclose(fused[0], fused[1])
    assert torch.equal(fused[1], fused[2])
    assert torch.equal(fused[1], fused[3])


@pytest.mark.timeout(1200)
def test_a_stream_of_ten_thousand_frames_stays_finite_and_bounded() -> None:
    grid = VoxelGrid((-2.0, -2.0, -1.0), (1.0, 1.0, 1.0), (4, 4, 2))
    fusion = RecurrentFusion(4, grid, TemporalConfig()).eval()
    state: TemporalState | None = None
    sizes = []
    with torch.inference_mode():
        for frame in range(10_000):
            out, tensors = fusion(torch.randn(1, 4, 4, 4, 2), state, drive(0.2, 0.01), Watch())
            state = TemporalState(frame + 1, tensors)
            assert out.voxels.isfinite().all()
            if frame % 1000 == 999:
                sizes.append(max(float(t.abs().max()) for t in tensors.values()))
    assert max(sizes[5:]) < 3 * max(sizes[:5])


@pytest.mark.parametrize("grid", [GRID, FLAT])
def test_samples_of_a_batch_are_fused_independently(grid: VoxelGrid) -> None:
    fusion = RecurrentFusion(4, grid, TemporalConfig()).eval()
    shape = (8, 6, 3) if grid is GRID else (8, 6)
    frames = [torch.randn(2, 4, *shape) for _ in range(3)]
    motions = [torch.cat([drive(0.3), drive(0.9, -0.2)]) for _ in range(3)]

    def run(rows: slice) -> Tensor:
        state, out = None, None
        for i, (x, motion) in enumerate(zip(frames, motions)):
            here = motion[rows] if i else torch.eye(4).expand(motion[rows].shape)
            out, tensors = fusion(x[rows], state, here, Watch())
            state = TemporalState(i + 1, tensors)
        assert out is not None
        return out.voxels

    with torch.inference_mode():
        together = run(slice(0, 2))
        assert torch.allclose(together[:1], run(slice(0, 1)), atol=1e-5)
        assert torch.allclose(together[1:], run(slice(1, 2)), atol=1e-5)


@pytest.mark.parametrize("off", ["voxel", "scene", "motion", "geometry"])
def test_the_fusion_runs_with_each_cue_off(off: str) -> None:
    config = replace(TemporalConfig(), **{off: False})
    fusion = RecurrentFusion(4, GRID, config).eval()
    state = None
    with torch.inference_mode():
        for frame in range(3):
            out, tensors = fusion(torch.randn(1, 4, 8, 6, 3), state, drive(), Watch())
            state = TemporalState(frame + 1, tensors)
    assert out.voxels.isfinite().all()
    assert off not in tensors
    assert (out.offsets is None) == (off == "motion")


def test_the_cues_hold_no_history_themselves() -> None:
    fusion = RecurrentFusion(4, GRID, TemporalConfig()).eval()
    x = torch.randn(1, 4, 8, 6, 3)
    before = set(vars(fusion))
    with torch.inference_mode():
        first, tensors = fusion(x, None, torch.eye(4)[None], Watch())
        fusion(torch.randn_like(x), TemporalState(1, tensors), drive(), Watch())
        again, _ = fusion(x, None, torch.eye(4)[None], Watch())
    assert set(vars(fusion)) == before
    assert torch.equal(first.voxels, again.voxels)


def rig(cameras: int = 2) -> CameraRig:
    eye = torch.eye(3).expand(1, cameras, 3, 3).clone()
    intrinsics = eye * torch.tensor([50.0, 50.0, 1.0]).view(3, 1)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = 48.0, 32.0
    zero = torch.zeros(1, cameras, 3)
    return CameraRig(intrinsics, eye, zero, eye, zero, torch.eye(3)[None])


def still(cameras: int = 2) -> EgoMotion:
    return EgoMotion(torch.eye(4)[None], torch.eye(4).expand(1, cameras, 4, 4))


def test_geometry_of_a_camera_that_stands_still_is_what_it_was() -> None:
    cue = GeometryFusion(torch.arange(1.0, 9.0), (64, 96)).eval()
    logits = torch.randn(2, 8, 4, 6)
    state = GeometryState(torch.randn(1, 2, 8, 4, 6), rig().image_rotation, rig().image_translation)
    warped = cue._warp(state, rig(), still(), logits.shape[-2:])
    # Rounding moves the cells of the last row, column and depth by a millionth of a cell, towards the zero outside.
    assert torch.allclose(warped, state.logits[0], atol=1e-3)


def test_geometry_history_counts_only_where_it_says_something() -> None:
    cue = GeometryFusion(torch.arange(1.0, 9.0), (64, 96)).eval()
    logits, surface = torch.randn(2, 8, 4, 6), torch.rand(2, 8, 4, 6)
    behind = EgoMotion(
        torch.eye(4)[None], torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])).expand(1, 2, 4, 4)
    )
    state = GeometryState(torch.randn(1, 2, 8, 4, 6), rig().image_rotation, rig().image_translation)
    with torch.no_grad():
        fused, new = cue(logits, surface, state, rig(), behind)
        alone, _ = cue(logits, surface, None, rig(), still())
    assert torch.equal(new.logits[0], logits)
    assert torch.equal(fused, alone)


def test_measured_depth_enters_the_state_and_wins_where_the_lidar_saw() -> None:
    cue = GeometryFusion(torch.arange(1.0, 9.0), (64, 96)).eval()
    logits, surface = torch.randn(2, 8, 4, 6), torch.rand(2, 8, 4, 6)
    measured = torch.zeros_like(logits)
    measured[0, 3, 1, 2] = 1
    with torch.no_grad():
        plain, _ = cue(logits, surface, None, rig(), still())
        with_lidar, state = cue(logits, surface, None, rig(), still(), measured)
    assert torch.equal(state.logits[0, 0, :, 1, 2], measured[0, :, 1, 2])
    assert torch.equal(state.logits[0, 1], logits[1])
    # The one by the kernel, the other by its twin.
    changed = ((plain - with_lidar).abs() > 1e-5).any(dim=1).nonzero().tolist()
    assert changed == [[0, 1, 2]]


@pytest.mark.parametrize("grid", [GRID, FLAT])
def test_the_stacked_history_equals_all_of_it_at_once(grid: VoxelGrid) -> None:
    frames = 4
    fusion = StackedFusion(3, grid, TemporalConfig(history="stacked", stacked_frames=frames)).eval()
    shape = (8, 6, 3) if grid is GRID else (8, 6)
    first = torch.randn(1, 3, *shape)
    xs = [first, *(torch.randn(1, 3, *shape) for _ in range(3))]
    state = None
    # The naive form: a list of volumes, newest first, each resampled every frame.
    stack: list[Tensor] = []
    ages: list[float] = []
    for i, x in enumerate(xs):
        motion = drive() if i else torch.eye(4)[None]
        rows = x.permute(0, 1, 4, 2, 3) if x.dim() == 5 else x
        stack = [rows] * frames if not i else stack
        ages = [0.0] * frames if not i else [age + 1 for age in ages]
        positions = history_positions(motion, grid)
        stack = [sample_history(volume.contiguous(), positions) for volume in stack]
        volumes = [rows, *stack]
        times = [torch.full_like(rows[:, :1], 0.5 * age) for age in (0.0, *ages)]
        with torch.no_grad():
            each = [fusion.each(torch.cat(pair, dim=1)) for pair in zip(volumes, times)]
            expected = fusion.merge(torch.cat(each, dim=1))
            out, tensors = fusion(x, state, motion, Watch())
        fused = out.voxels.permute(0, 1, 4, 2, 3) if x.dim() == 5 else out.voxels
        assert torch.allclose(fused, expected, atol=1e-5)
        stack, ages = volumes[:frames], [0.0, *ages[: frames - 1]]
        assert torch.allclose(tensors["history"], torch.cat(stack, dim=1), atol=1e-6)
        assert tensors["history_times"].tolist() == [ages]
        state = TemporalState(i + 1, tensors)


def test_the_plain_and_the_kernel_form_of_the_fusion_agree() -> None:
    fusion = RecurrentFusion(16, GRID, TemporalConfig()).eval()
    xs = [torch.randn(1, 16, 8, 6, 3) for _ in range(3)]
    results = []
    for on in (False, True):
        state = None
        with library.switched(on), torch.inference_mode():
            for i, x in enumerate(xs):
                out, tensors = fusion(x, state, drive() if i else torch.eye(4)[None], Watch())
                state = TemporalState(i + 1, tensors)
        results.append(out.voxels)
    assert torch.allclose(*results, atol=1e-4)


@pytest.mark.parametrize("gain", [-0.5, 3.0])
def test_lifting_weights_are_never_below_nothing_whatever_the_gain(gain: float) -> None:
    cue = GeometryFusion(torch.arange(1.0, 9.0), (64, 96), gain=True)
    assert cue.gain is not None
    cue.gain.data.fill_(gain)
    surface = torch.zeros(2, 8, 4, 6)
    surface[:, 0] = 1.0
    logits = torch.full((2, 8, 4, 6), -9.0)
    logits[:, 1] = 9.0
    for gradient in (True, False):  # the twin, then the kernel
        with torch.set_grad_enabled(gradient):
            weights, _ = cue(logits, surface, None, rig(), still())
        assert float(weights.min()) == 0.0
        assert float(weights.max()) > 0.5
