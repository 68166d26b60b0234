"""Lifting: which voxel a pixel's features go to, and how much of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import library
from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion, depth_values, pixel_grid
from gdfusion_ros.model.blocks.depth import Neighbourhood, spread_behind
from gdfusion_ros.model.blocks.lifting import splat
from gdfusion_ros.model.blocks.neighbours import neighbour_points
from gdfusion_ros.model.blocks.stereo import cost_volume
from gdfusion_ros.model.config import DepthBins

GRID = VoxelGrid((-4.0, -3.0, -1.0), (1.0, 0.5, 2.0), (8, 12, 3))


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "kernel"])
def _form(request: pytest.FixtureRequest):
    torch.manual_seed(0)
    with library.switched(request.param), torch.no_grad():
        yield


def place(point: tuple[float, float, float], trilinear: bool) -> dict[tuple[int, int, int], float]:
    """Voxels (x, y, z) that one point of weight 1 reaches, and its share in each."""
    points = torch.tensor(point).view(1, 1, 1, 1, 1, 3)
    volume = splat(torch.ones(1, 1, 1, 1, 1), points, torch.ones(1, 1, 1, 1, 1), GRID, trilinear)
    assert volume.shape == (1, 1, 12, 8, 3)
    return {(x, y, z): float(volume[0, 0, y, x, z]) for y, x, z in volume[0, 0].nonzero().tolist()}


def test_a_point_goes_whole_into_the_voxel_that_contains_it() -> None:
    assert place((1.2, -2.6, 1.5), trilinear=False) == {(5, 0, 1): 1.0}


def test_points_up_to_one_cell_below_the_lower_bound_are_kept_and_others_are_not() -> None:
    assert place((-4.9, 0.1, 0.0), trilinear=False) == {(0, 6, 0): 1.0}
    assert place((-5.1, 0.1, 0.0), trilinear=False) == {}
    assert place((4.1, 0.1, 0.0), trilinear=False) == {}


def test_splatting_spreads_a_point_over_its_eight_corners() -> None:
    shares = place((1.25, -2.6, 1.5), trilinear=True)
    expected = {
        (x, y, z): wx * wy * wz
        for (x, wx), (y, wy), (z, wz) in itertools.product(
            [(5, 0.75), (6, 0.25)], [(0, 0.2), (1, 0.8)], [(1, 0.75), (2, 0.25)]
        )
    }
    assert shares.keys() == expected.keys()
    assert all(abs(shares[cell] - expected[cell]) < 1e-5 for cell in expected)


def test_splatting_conserves_the_weight_of_points_well_inside_the_grid() -> None:
    points = torch.tensor([-2.0, -2.0, 0.0]) + torch.rand(1, 2, 5, 3, 4, 3) * torch.tensor([4.0, 4.0, 2.0])
    weights, context = torch.rand(1, 2, 5, 3, 4), torch.randn(1, 2, 6, 3, 4)
    volume = splat(context, points, weights, GRID, trilinear=True)
    expected = (context * weights.sum(dim=2)[:, :, None]).sum(dim=(1, 3, 4))
    assert torch.allclose(volume.sum(dim=(2, 3, 4)), expected, atol=1e-4)


def test_depth_is_spread_behind_the_surface_only_and_not_normalised() -> None:
    probabilities, presence = torch.rand(1, 6, 2, 2), torch.rand(1, 3, 2, 2)
    ours = spread_behind(probabilities, presence)
    for j in range(6):
        expected = probabilities[0, j].clone()
        for k in range(1, 4):
            if j - k >= 0:
                expected += presence[0, k - 1] * probabilities[0, j - k]
        assert torch.allclose(ours[0, j], expected, atol=1e-6)


def rig(cameras: int) -> CameraRig:
    eye = torch.eye(3).expand(1, cameras, 3, 3).clone()
    intrinsics = torch.tensor([[40.0, 0.0, 31.0], [0.0, 40.0, 31.0], [0.0, 0.0, 1.0]]).expand(
        1, cameras, 3, 3
    )
    shift = torch.zeros(1, cameras, 3)
    return CameraRig(intrinsics, eye, shift, eye, shift, torch.eye(3)[None])


def test_neighbours_lend_points_of_the_nearest_bins_and_the_pixel_itself_none() -> None:
    cameras, bins = 2, DepthBins(1.0, 9.0, 1.0)
    geometry = torch.rand(1, cameras, bins.count, 4, 4)
    geometry[0, 0, :, 1, 2] = 0
    geometry[0, 0, 0, 1, 2] = 1  # the likeliest bin is 0: candidates -1, 0, 1
    neighbourhood = Neighbourhood(torch.rand(cameras, 3, 3, 3, 4, 4), torch.zeros(cameras, 3, 3, 2, 4, 4))
    points, weights = neighbour_points(
        geometry,
        neighbourhood,
        pixel_grid((4, 4), (64, 64), torch.device("cpu")),
        depth_values(bins),
        rig(cameras),
    )
    assert points.shape == (1, cameras, 27, 4, 4, 3)
    slots = weights.unflatten(2, (9, 3))
    assert (slots[:, :, 4] == 0).all()
    # Candidate -1 is thrown away; candidates beyond the number of cameras are clamped to its last (spec 12.1).
    assert (slots[0, 0, :, 0, 1, 2] == 0).all()
    expected = neighbourhood.weights[0, 0, 0, :, 1, 2] * torch.tensor([0.0, 1.0, 0.0])
    assert torch.allclose(slots[0, 0, 0, :, 1, 2], expected)
    assert points[..., 2].max() <= 2.0


def test_a_camera_that_moved_sideways_finds_the_depth_of_what_it_saw() -> None:
    # A wall of noise at 4 m. The feature cells are 63 / 15 = 4.2 pixels apart, so a step of 0.84 m shifts them by two.
    bins, size, step, cells = DepthBins(1.0, 9.0, 1.0), (64, 64), 0.84, 2
    previous = torch.randn(1, 8, 16, 16)
    current = previous.roll(-cells, dims=3)
    motion = EgoMotion(torch.eye(4)[None], torch.eye(4).expand(1, 1, 4, 4).clone())
    motion.previous_camera_from_camera[..., 0, 3] = step
    cost = cost_volume(current, previous, depth_values(bins), rig(1), motion, size)
    found = cost.argmax(dim=1)[0, :, : 16 - cells]
    assert (found == 3).float().mean() > 0.9
