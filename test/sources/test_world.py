"""The made-up world: reproducible, and its ground truth true."""

from __future__ import annotations

import numpy as np
import pytest

from gdfusion_ros.geometry import inverse
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.sources.world import NUSCENES, TRAINING_SEEDS, Rig, WorldSource, pinhole

SIZE = (48, 128)


@pytest.fixture(scope="module")
def drive():
    return WorldSource(7, frames=5, image_size=SIZE, weather="day")


@pytest.fixture(scope="module")
def pairs(drive):
    return [*drive.pairs()]


def test_the_same_seed_gives_the_same_bytes(pairs):
    again = [*WorldSource(7, frames=5, image_size=SIZE, weather="day").pairs()]
    for (frame, truth), (frame2, truth2) in zip(pairs, again, strict=True):
        for view, view2 in zip(frame.views, frame2.views, strict=True):
            assert view.image.tobytes() == view2.image.tobytes()
            assert np.array_equal(view.world_from_ego, view2.world_from_ego)
        for name in ("labels", "velocity", "visible", "hidden_seen_before"):
            assert np.array_equal(getattr(truth, name), getattr(truth2, name))


def test_the_sky_is_free_and_nothing_else_is(pairs):
    for _, truth in pairs:
        for depth, labels in zip(truth.depth, truth.pixel_labels, strict=True):
            assert np.array_equal(labels == OCC3D.free, np.isinf(depth))


def test_another_seed_is_another_city(pairs):
    other = next(iter(WorldSource(8, frames=1, image_size=SIZE, weather="day")))
    assert not np.array_equal(other.views[1].image, pairs[0][0].views[1].image)


def test_where_a_ray_ends_the_grid_is_occupied(drive, pairs):
    hits = solid = same = 0
    for frame, truth in pairs:
        ego_from_world = inverse(frame.world_from_ego)
        for camera, view, depth, pixel_labels in zip(
            NUSCENES.cameras, frame.views, truth.depth, truth.pixel_labels, strict=True
        ):
            assert depth.shape == SIZE
            if view.stamp_ns != frame.stamp_ns:
                continue  # things have moved on between this exposure and the grid's time
            rays = drive._rays(camera, view.world_from_ego @ view.ego_from_camera)
            origin = (view.world_from_ego @ view.ego_from_camera)[:3, 3]
            near = np.isfinite(depth) & (depth < 35.0)
            points = origin + rays[near] * (depth[near] + 0.05)[:, None]
            cells, inside = truth.grid.index(points @ ego_from_world[:3, :3].T + ego_from_world[:3, 3])
            labels = truth.labels[tuple(cells[inside].T)]
            hits += len(labels)
            solid += int((labels != OCC3D.free).sum())
            same += int((labels == pixel_labels[near][inside]).sum())
    assert hits > 5000
    assert solid / hits > 0.99
    assert same / hits > 0.8


def test_what_moves_is_of_a_class_that_can_move(pairs):
    movable = OCC3D.table(OCC3D.movable_ids)
    moved = 0
    for _, truth in pairs:
        moving = np.abs(truth.velocity).max(-1) > 0
        assert movable[truth.labels[moving]].all()
        assert np.abs(truth.velocity).max() < 20.0
        moved += int(moving.sum())
    assert moved > 0


def test_hidden_voxels_are_those_seen_before_but_not_now(pairs):
    assert not pairs[0][1].hidden_seen_before.any()
    for _, truth in pairs[1:]:
        assert truth.hidden_seen_before.any()
        assert not (truth.hidden_seen_before & truth.visible).any()


def test_ground_truth_by_index_is_that_of_the_pairs(pairs):
    fresh = WorldSource(7, frames=5, image_size=SIZE, weather="day").ground_truth(3)
    assert np.array_equal(fresh.labels, pairs[3][1].labels)
    assert np.array_equal(fresh.hidden_seen_before, pairs[3][1].hidden_seen_before)


def test_every_camera_exposes_at_its_own_time_and_pose(pairs):
    frame = pairs[2][0]
    offsets = {view.name: (view.stamp_ns - frame.stamp_ns) * 1e-9 for view in frame.views}
    assert offsets["CAM_FRONT"] == 0
    for camera in NUSCENES.cameras:
        assert offsets[camera.name] == pytest.approx(camera.exposure_offset, abs=1e-6)
    assert np.array_equal(frame.view("CAM_FRONT").world_from_ego, frame.world_from_ego)


def test_the_ego_drives_on_the_road(pairs):
    road = OCC3D.id("driveable_surface")
    for _, truth in pairs:
        cell, _ = truth.grid.index([[0.5, 0.0, -0.05]])
        assert truth.labels[tuple(cell[0])] == road


def test_pose_noise_changes_reported_poses_only(pairs):
    noisy = [*WorldSource(7, frames=5, image_size=SIZE, weather="day", pose_noise=0.3)]
    assert np.array_equal(noisy[4].views[0].image, pairs[4][0].views[0].image)
    error = np.linalg.norm(noisy[4].world_from_ego[:2, 3] - pairs[4][0].world_from_ego[:2, 3])
    assert 0.05 < error < 3.0


def test_any_rig_can_be_driven():
    rig = Rig("two", (pinhole("A", 400.0, (320, 240), (1.5, 0, 1.6), 0.0, size=(640, 480)),
                      pinhole("B", 400.0, (320, 240), (0.0, 0, 1.6), 180.0, 0.02, size=(640, 480))), "A")  # fmt: skip
    frame, truth = next(WorldSource(3, 1, rig, (96, 160)).pairs())
    assert [view.name for view in frame.views] == ["A", "B"]
    assert frame.views[0].image.shape == (96, 160, 3)
    assert frame.views[0].image_transform.top == 24
    assert truth.visible.any()


@pytest.mark.parametrize("weather", ["day", "dusk", "night", "fog", "night fog"])
def test_every_weather_gives_a_picture_that_is_neither_black_nor_white(weather):
    frame = next(iter(WorldSource(5, 1, image_size=(32, 96), weather=weather)))
    brightness = np.mean([view.image.mean() for view in frame.views])
    assert 15 < brightness < 235


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="weather"):
        WorldSource(0, 1, weather="hail")
    with pytest.raises(ValueError, match="frames"):
        WorldSource(0, 0)
    with pytest.raises(IndexError):
        WorldSource(0, 1, image_size=(32, 96)).ground_truth(1)


def test_training_draws_from_seeds_of_its_own():
    assert TRAINING_SEEDS >= 1_000_000
