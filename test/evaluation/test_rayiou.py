"""RayIoU: its ray set number by number, hand-worked hits, and a brute-force twin."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from gdfusion_ros import grid as grids
from gdfusion_ros.evaluation.ground_truth import GroundTruth
from gdfusion_ros.evaluation.rayiou import RayScore, ray_directions, ray_origins, ray_pitches
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D, OPENOCC
from gdfusion_ros.rays import first_hits

CAR, ROAD, WALL, FREE = 4, 11, 15, 17
CUBE = VoxelGrid((-4.0, -4.0, -1.0), (0.5, 0.5, 0.5), (16, 16, 8))


def brute_hit(solid: np.ndarray, grid: VoxelGrid, origin: np.ndarray, direction: np.ndarray) -> tuple:
    """Nearest of all occupied cells that the ray enters, and its distance: every box of the grid is tried."""
    cells = np.argwhere(solid)
    low = np.asarray(grid.minimum) + cells * grid.cell_size
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([low - origin, low + grid.cell_size - origin]) / direction
    inside = (low <= origin) & (origin < low + grid.cell_size)
    never = np.where(inside, -math.inf, math.inf)  # along an axis that the ray does not move on
    near = np.where(direction == 0, never, ends.min(axis=0)).max(axis=1, initial=0.0)
    far = np.where(direction == 0, math.inf, ends.max(axis=0)).min(axis=1)
    entered = np.flatnonzero(near < far)
    if not len(entered):
        return math.inf, None
    first = entered[near[entered].argmin()]
    return near[first], tuple(cells[first])


def test_the_pitches_are_those_of_the_published_ray_set() -> None:
    pitches = ray_pitches()
    for k in range(10):
        # The ray at -(pi/2 - atan(k + 1)) falls one metre over k + 1 metres.
        assert math.tan(-pitches[k]) == pytest.approx(1 / (k + 1), abs=1e-12)
    step = math.atan(10) - math.atan(9)
    np.testing.assert_allclose(np.diff(pitches[9:]), step, atol=1e-12)
    assert pitches[-2] < 0.21 <= pitches[-1]
    assert len(pitches) == 39


def test_directions_are_unit_vectors_at_whole_degrees() -> None:
    rays = ray_directions()
    assert rays.shape == (39 * 360, 3)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1.0, atol=1e-12)
    azimuth = np.degrees(np.arctan2(rays[:, 1], rays[:, 0])) % 360
    np.testing.assert_allclose(azimuth.reshape(39, 360) % 360, np.tile(np.arange(360.0), (39, 1)), atol=1e-9)


def test_origins_are_the_scenes_lidars_near_the_vehicle_and_at_most_eight() -> None:
    poses = []
    for x in range(-100, 101, 5):
        pose = np.eye(4)
        pose[:3, 3] = (x + 1000.0, 500.0, 1.84)
        poses.append(pose)
    ego = np.eye(4)
    ego[:3, 3] = (1000.0, 500.0, 0.0)
    origins = ray_origins(poses, ego)
    assert len(origins) == 8
    np.testing.assert_allclose(origins[[0, -1], 0], [-35, 35])
    np.testing.assert_allclose(origins[:, 2], 1.84)
    # 15 positions from -35 to 35, thinned by round(linspace(0, 14, 8)) = 0, 2, .., 14
    np.testing.assert_allclose(origins[:, 0], np.arange(-35, 36, 10))
    assert len(ray_origins(poses[:1], ego)) == 0
    turned = ego @ np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(ray_origins(poses[20:22], turned)[1], [0, -5, 1.84], atol=1e-9)


def test_the_first_occupied_cell_stops_a_ray_at_its_near_face() -> None:
    solid = np.zeros(CUBE.shape, dtype=bool)
    solid[12, 8, 2] = solid[14, 8, 2] = True
    origin, ahead = np.array([[0.1, 0.1, 0.1]]), np.array([[1.0, 0.0, 0.0]])
    hits = first_hits(solid, CUBE, origin, ahead)
    assert hits.cell.tolist() == [[12, 8, 2]]
    assert hits.depth[0] == pytest.approx(2.0 - 0.1, abs=1e-12)
    behind = first_hits(solid, CUBE, origin, -ahead)
    assert not behind.hit[0]
    assert behind.depth[0] == pytest.approx(4.1, abs=1e-12)


def test_an_origin_in_an_occupied_cell_has_depth_zero_and_one_outside_enters_the_grid() -> None:
    solid = np.zeros(CUBE.shape, dtype=bool)
    solid[8, 8, 2] = True
    rays = np.array([[1.0, 0.0, 0.0]])
    assert first_hits(solid, CUBE, np.array([[0.2, 0.2, 0.2]]), rays).depth[0] == 0.0
    outside = first_hits(solid, CUBE, np.array([[-9.0, 0.2, 0.2]]), rays)
    assert outside.cell.tolist() == [[8, 8, 2]]
    assert outside.depth[0] == pytest.approx(9.0, abs=1e-12)
    assert not first_hits(solid, CUBE, np.array([[-9.0, 30.0, 0.2]]), rays).hit[0]


def test_hits_equal_brute_force_on_200_random_small_grids() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        grid = VoxelGrid(
            tuple(rng.uniform(-3, 0, 3)), tuple(rng.uniform(0.2, 0.9, 3)), tuple(rng.integers(2, 7, 3))
        )
        solid = rng.random(grid.shape) < 0.15
        origins = rng.uniform(np.asarray(grid.minimum) - 0.5, np.asarray(grid.maximum) + 0.5, (5, 3))
        rays = rng.normal(size=(5, 3))
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        hits = first_hits(solid, grid, origins, rays)
        for k in range(5):
            distance, cell = brute_hit(solid, grid, origins[k], rays[k])
            if cell is None:
                assert not hits.hit[k]
            else:
                assert tuple(hits.cell[k]) == cell
                assert hits.depth[k] == pytest.approx(distance, abs=1e-9)


def walls(distance: int, label: int = WALL) -> np.ndarray:
    """A grid with a wall right ahead, ``distance`` cells of 0.4 m from the ego, across the whole width."""
    labels = np.full(grids.OCC3D.shape, FREE, dtype=np.uint8)
    labels[100 + distance, :, :] = label
    return labels


@pytest.mark.parametrize(
    ("cells", "expected"), [(0, (1, 1, 1)), (1, (1, 1, 1)), (4, (0, 1, 1)), (9, (0, 0, 1))]
)
def test_a_wall_at_the_wrong_depth_counts_at_the_thresholds_it_is_within(cells: int, expected: tuple) -> None:
    truth = GroundTruth(walls(20), grids.OCC3D, OCC3D)
    score = RayScore([WALL], OCC3D.movable_ids)
    # Straight ahead only, so that the depth error is the walls' distance.
    score._directions = np.array([[1.0, 0.0, 0.0]])
    score.add(walls(20 + cells), truth, np.array([[0.0, 0.0, 1.84]]))
    assert score.at_thresholds == expected
    assert score.rayiou == pytest.approx(sum(expected) / 3)


def test_the_right_depth_with_the_wrong_class_counts_against_both_classes() -> None:
    truth = GroundTruth(walls(20, CAR), grids.OCC3D, OCC3D)
    score = RayScore(OCC3D_CLASSES, OCC3D.movable_ids)
    score.add(walls(20, WALL), truth, np.array([[0.0, 0.0, 1.84]]))
    assert score.rayiou == 0.0
    assert score.truth[CAR] == score.predicted[WALL] > 0


OCC3D_CLASSES = [label.id for label in OCC3D.labels if label.id != FREE]


def test_rayiou_mave_and_occ_score_equal_brute_force_on_200_random_small_grids() -> None:
    rng = np.random.default_rng(5)
    scored = 0
    for _ in range(200):
        grid = VoxelGrid((-2.0, -2.0, -1.0), (0.5, 0.5, 0.5), (8, 8, 5))
        truth = rng.choice([CAR, ROAD, FREE], grid.shape, p=[0.05, 0.1, 0.85]).astype(np.uint8)
        predicted = np.where(rng.random(grid.shape) < 0.95, truth, CAR).astype(np.uint8)
        flow = rng.normal(size=(*grid.shape, 3)).astype(np.float32)
        true_flow = rng.normal(size=(*grid.shape, 2)).astype(np.float32)
        true_flow[rng.random(grid.shape) < 0.1] = rng.choice([np.nan, np.inf])  # nobody annotated it
        rays = ray_directions()[rng.integers(0, 14040, 30)]
        origins = rng.uniform(-1.5, 1.5, (2, 3)) * [1, 1, 0.3]
        score = RayScore([CAR, ROAD], [CAR])
        score._directions = rays
        score.add(predicted, GroundTruth(truth, grid, OCC3D, velocity=true_flow), origins, flow)
        hit = np.zeros((3, 2), int)
        n_true, n_guess, errors = np.zeros(2, int), np.zeros(2, int), []
        for origin in origins:
            for ray in rays:
                t_depth, t_cell = brute_hit(truth != FREE, grid, origin, ray)
                if t_cell is None:
                    continue
                p_depth, p_cell = brute_hit(predicted != FREE, grid, origin, ray)
                assert p_cell is not None
                t, p = truth[t_cell], predicted[p_cell]
                for k, c in enumerate((CAR, ROAD)):
                    n_true[k] += t == c
                    n_guess[k] += p == c
                    for j, limit in enumerate((1.0, 2.0, 4.0)):
                        hit[j, k] += t == p == c and abs(t_depth - p_depth) < limit
                known = np.isfinite(true_flow[t_cell]).all()
                if t == p == CAR and abs(t_depth - p_depth) < 2.0 and known:
                    errors.append(np.linalg.norm(flow[p_cell][:2].astype(float) - true_flow[t_cell]))
        np.testing.assert_array_equal(score.hits, hit)
        np.testing.assert_array_equal([score.truth, score.predicted], [n_true, n_guess])
        union = n_true + n_guess - hit
        ious = np.where(union > 0, hit / np.maximum(union, 1), math.nan)
        assert score.rayiou == pytest.approx(np.nanmean(ious), rel=1e-12)
        if errors:
            scored += 1
            assert score.mave == pytest.approx(np.mean(errors), rel=1e-12)
            assert score.occ_score == pytest.approx(0.9 * score.rayiou + 0.1 * max(1 - np.mean(errors), 0))
    assert scored > 100


def test_a_perfect_prediction_scores_one_and_without_flow_there_is_no_occ_score() -> None:
    labels = walls(20)
    labels[:, :, 2] = ROAD
    score = RayScore(OCC3D_CLASSES, OCC3D.movable_ids)
    score.add(labels, GroundTruth(labels, grids.OCC3D, OCC3D), np.array([[0.0, 0.0, 1.84]]))
    assert score.rayiou == 1.0
    assert math.isnan(score.mave)
    assert math.isnan(score.occ_score)


def test_openocc_labels_have_their_own_free_id() -> None:
    labels = np.full(grids.OCC3D.shape, OPENOCC.free, dtype=np.uint8)
    labels[:, :, 2] = OPENOCC.id("driveable_surface")
    truth = GroundTruth(labels, grids.OCC3D, OPENOCC)
    score = RayScore(list(range(16)), OPENOCC.movable_ids)
    score.add(labels, truth, np.array([[0.0, 0.0, 1.84]]))
    assert score.rayiou == 1.0
    # Flat ground in a 40 m box: every ray that falls at least 2 m over 36 m meets it, those upwards never.
    assert 0 < score.truth.sum() < 360 * 39


def test_one_frame_takes_less_than_half_a_second() -> None:
    rng = np.random.default_rng(0)
    labels = walls(60)
    labels[:, :, 2] = ROAD
    labels[rng.integers(0, 200, 3000), rng.integers(0, 200, 3000), rng.integers(3, 7, 3000)] = CAR
    truth = GroundTruth(labels, grids.OCC3D, OCC3D)
    origins = np.stack([np.arange(-28.0, 36.0, 8.0), np.zeros(8), np.full(8, 1.84)], axis=1)
    score = RayScore(OCC3D_CLASSES, OCC3D.movable_ids)
    score.add(labels, replace(truth), origins)  # compiles
    begin = time.process_time()
    score.add(labels, truth, origins)
    # 0.2 s on one core of 2020; the bound leaves room for a busy machine.
    assert time.process_time() - begin < 0.5
