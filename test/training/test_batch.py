"""What training feeds a network is what inference feeds it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gdfusion_ros.labels import OCC3D
from gdfusion_ros.model.config import DepthBins, ImageConfig, load_config
from gdfusion_ros.model.model import load_model
from gdfusion_ros.sources.world import NUSCENES, TRAINING_SEEDS, WorldSource
from gdfusion_ros.training.batch import collate, depth_target, semantics_target
from gdfusion_ros.training.data import WorldSequences, stack
from gdfusion_ros.training.losses import depth_loss, flow_loss, occupancy_loss, semantics_loss


@pytest.fixture(scope="module")
def pairs():
    return [*WorldSource(TRAINING_SEEDS, 2).pairs()]


def test_a_batch_is_what_the_model_makes_of_the_frame(pairs):
    model = load_model("gdfusion-small", "random:0")
    batch, _ = collate([(stack(pairs), 1)], model.config, 8, first=False)
    frames = [frame for frame, _ in pairs]
    expected = model.network_input(frames[1], model.ego_poses(frames[1]), model.ego_poses(frames[0]))
    assert torch.allclose(batch.images, expected.images, atol=1e-5)
    for name in ("intrinsics", "rotation", "translation", "image_rotation", "image_translation"):
        assert torch.allclose(getattr(batch.rig, name), getattr(expected.rig, name), atol=1e-4), name
    for name in ("previous_from_current", "previous_camera_from_camera"):
        assert torch.allclose(getattr(batch.motion, name), getattr(expected.motion, name), atol=1e-4), name


def test_targets_are_the_ground_truth_with_rows_of_y(pairs):
    _, targets = collate([(stack(pairs), 1)], load_config("gdfusion-small"), 8, first=False)
    truth = pairs[1][1]
    assert np.array_equal(targets.labels[0].numpy(), truth.labels.swapaxes(0, 1))
    assert (targets.weight[0].numpy() == 1)[truth.visible.swapaxes(0, 1)].all()
    assert targets.velocity.shape == (1, 100, 100, 8, 2)


def test_a_stored_sequence_reads_back_as_it_was(tmp_path):
    drawn = WorldSequences(1, 2, (32, 64), tmp_path)
    first, again = drawn[0], drawn[0]
    for name, array in vars(first).items():
        assert np.array_equal(array, getattr(again, name)), name


def test_a_sequence_has_the_networks_cameras_in_the_networks_order(tmp_path):
    names = ("CAM_BACK", "CAM_FRONT")
    sequences = WorldSequences(1, 1, (32, 64), tmp_path, rig=NUSCENES.with_cameras(names))
    drawn = sequences[0]
    assert drawn.images.shape == (1, 2, 32, 64, 3)
    # Where the optical axis points along the ego's x.
    assert drawn.ego_from_camera[0, 0, 2] < -0.9
    assert drawn.ego_from_camera[1, 0, 2] > 0.9
    whole = WorldSequences(1, 1, (32, 64), tmp_path)[0]
    assert whole.images.shape[1] == 6, "what is stored for one rig is not taken for another"
    with pytest.raises(ValueError, match="CAM_ROOF"):
        NUSCENES.with_cameras(("CAM_ROOF",))


def test_the_second_half_of_the_sequences_is_the_first_in_the_mirror():
    sequences = WorldSequences(1, 2, (32, 64))
    assert len(sequences) == 2
    drawn, mirrored = sequences[0], sequences[1]
    assert np.array_equal(mirrored.labels, drawn.labels[:, :, ::-1])
    assert np.array_equal(mirrored.velocity[..., 1], -drawn.velocity[:, :, ::-1, :, 1])
    # A point to the left of the vehicle is where its mirror image, to the right, is in the mirrored images.
    config = dataclasses.replace(load_config("gdfusion-small"), image=ImageConfig(32, 64))
    there, here = (collate([(s, 1)], config, 4, first=False)[0] for s in (drawn, mirrored))
    assert torch.equal(here.images, there.images.flip(-1))
    points = torch.randn(50, 3) * torch.tensor([20.0, 20.0, 2.0])
    for camera in range(6):
        (u, v), (u_mirrored, v_mirrored) = (
            _pixels(points * torch.tensor([1.0, side, 1.0]), batch.rig, camera)
            for side, batch in ((1.0, there), (-1.0, here))
        )
        front = torch.isfinite(u)
        assert torch.allclose(u_mirrored[front], 63 - u[front], atol=1e-2)
        assert torch.allclose(v_mirrored[front], v[front], atol=1e-2)
    assert here.motion.previous_from_current[0, 1, 3] == pytest.approx(
        -float(there.motion.previous_from_current[0, 1, 3]), abs=1e-5
    )


def _pixels(points, rig, camera):
    """Network pixels of points in the ego frame; NaN behind the camera or right beside it."""
    local = (points - rig.translation[0, camera]) @ rig.rotation[0, camera]
    image = local @ rig.intrinsics[0, camera].T
    image = torch.where(local[:, 2:] > 1.0, image / local[:, 2:], torch.nan)
    image = image @ rig.image_rotation[0, camera].T + rig.image_translation[0, camera]
    return image[:, 0], image[:, 1]


def test_what_no_camera_has_seen_weighs_what_it_is_told_to(pairs):
    config = load_config("gdfusion-small")
    _, targets = collate([(stack(pairs), 1)], config, 4, first=False, unseen=0.05)
    truth = pairs[1][1]
    unseen = ~(truth.visible | truth.hidden_seen_before)
    assert np.allclose(targets.weight[0].numpy().swapaxes(0, 1)[unseen], 0.05)


def test_the_jaccard_loss_does_not_ask_for_what_nobody_has_seen():
    labels = torch.tensor([0, 1]).view(1, 2, 1, 1)
    logits = 50.0 * torch.nn.functional.one_hot(torch.tensor([1, 5]), 19).T.view(1, 19, 2, 1, 1).float()
    weight = torch.tensor([1.0, 0.05]).view(1, 2, 1, 1)
    cross_entropy, jaccard = occupancy_loss(logits, labels, weight, torch.ones(18))
    assert jaccard < 1e-5
    assert cross_entropy > 0.1


def test_semantics_targets_count_the_pixels_of_a_cell():
    pixels = np.full((1, 4, 4), OCC3D.id("car"), dtype=np.uint8)
    pixels[0, 0] = OCC3D.free
    pixels[0, 1] = 255
    target = semantics_target(pixels, OCC3D, 4)
    assert target.shape == (1, 1, 1, 18)
    assert target[0, 0, 0, OCC3D.id("car")] == 0.5
    assert target[0, 0, 0, OCC3D.free] == 0.25
    assert target.sum() == 0.75


def test_a_perfect_guess_of_what_cells_show_costs_nothing():
    target = torch.zeros(1, 2, 2, 18)
    target[..., 4] = 1.0
    assert semantics_loss(50.0 * target.movedim(-1, 1), target, torch.ones(18)) < 1e-6
    assert semantics_loss(torch.zeros(1, 18, 2, 2), target, torch.ones(18)) == pytest.approx(np.log(18))


def test_depth_targets_count_the_pixels_of_a_cell():
    depth = np.full((1, 8, 8), 255, dtype=np.uint8)
    depth[0, :4] = round(10.0 / 0.2)
    target = depth_target(depth, DepthBins(1.0, 41.0, 1.0), 8)
    assert target.shape == (1, 1, 1, 40)
    assert target[0, 0, 0, 9] == 0.5
    assert target.sum() == 0.5


def test_perfect_predictions_cost_nothing():
    labels = torch.randint(0, 18, (1, 4, 4, 2))
    logits = 100.0 * torch.nn.functional.one_hot(labels + 1, 19).movedim(-1, 1).float()
    weight = torch.ones(labels.shape)
    cross_entropy, jaccard = occupancy_loss(logits, labels, weight, torch.ones(18))
    assert cross_entropy < 1e-6
    assert jaccard < 1e-5
    target = torch.zeros(1, 2, 2, 5)
    target[..., 3] = 1.0
    assert depth_loss(target.movedim(-1, 1), target) < 1e-5
    velocity = torch.ones(1, 4, 4, 2, 2)
    assert flow_loss(velocity, velocity, labels, weight, 17) < 0.02


def test_voxels_without_weight_do_not_count():
    labels = torch.zeros(1, 2, 1, 1, dtype=torch.int64)
    logits = torch.zeros(1, 19, 2, 1, 1)
    logits[0, 1, 0] = 50.0
    logits[0, 5, 1] = 50.0
    weight = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    cross_entropy, _ = occupancy_loss(logits, labels, weight, torch.ones(18))
    assert cross_entropy < 1e-6
