"""What training feeds a network is what inference feeds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gdfusion_ros.model.config import DepthBins, load_config
from gdfusion_ros.model.model import load_model
from gdfusion_ros.sources.world import TRAINING_SEEDS, WorldSource
from gdfusion_ros.training.batch import collate, depth_target
from gdfusion_ros.training.data import WorldSequences, _stack
from gdfusion_ros.training.losses import depth_loss, flow_loss, occupancy_loss


@pytest.fixture(scope="module")
def pairs():
    return [*WorldSource(TRAINING_SEEDS, 2).pairs()]


def test_a_batch_is_what_the_model_makes_of_the_frame(pairs):
    model = load_model("gdfusion-small", "random:0")
    batch, _ = collate([(_stack(pairs), 1)], model.config, 8, first=False)
    frames = [frame for frame, _ in pairs]
    expected = model.network_input(frames[1], model.ego_poses(frames[1]), model.ego_poses(frames[0]))
    assert torch.allclose(batch.images, expected.images, atol=1e-5)
    for name in ("intrinsics", "rotation", "translation", "image_rotation", "image_translation"):
        assert torch.allclose(getattr(batch.rig, name), getattr(expected.rig, name), atol=1e-4), name
    for name in ("previous_from_current", "previous_camera_from_camera"):
        assert torch.allclose(getattr(batch.motion, name), getattr(expected.motion, name), atol=1e-4), name


def test_targets_are_the_ground_truth_with_rows_of_y(pairs):
    _, targets = collate([(_stack(pairs), 1)], load_config("gdfusion-small"), 8, first=False)
    truth = pairs[1][1]
    assert np.array_equal(targets.labels[0].numpy(), truth.labels.swapaxes(0, 1))
    assert (targets.weight[0].numpy() == 1)[truth.visible.swapaxes(0, 1)].all()
    assert targets.velocity.shape == (1, 100, 100, 8, 2)


def test_a_stored_sequence_reads_back_as_it_was(tmp_path):
    drawn = WorldSequences(2, (32, 64), tmp_path)
    first, again = drawn[0], drawn[0]
    for name, array in vars(first).items():
        assert np.array_equal(array, getattr(again, name)), name


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
