"""Training from folders in nuScenes' format, made up from the world."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_up_nuscenes import write_nuscenes

from gdfusion_ros.cli.main import main
from gdfusion_ros.errors import UserError
from gdfusion_ros.grid import OCC3D
from gdfusion_ros.model.config import DepthBins, GridConfig, ImageConfig, load_config
from gdfusion_ros.model.networks.small import SmallArchitecture
from gdfusion_ros.sources.world import WorldSource
from gdfusion_ros.training.nuscenes import UNKNOWN_DEPTH, NuScenesSequences
from gdfusion_ros.training.recipe import LossWeights, Recipe, Stage
from gdfusion_ros.training.train import WEIGHTS, Trainer

EGO_FROM_LIDAR = np.array([[0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1.0]])
LOSSES = LossWeights(jaccard=0.0, depth=0.05, flow=0.0)
STAGE = Stage("streams", history=True, steps=3, share=1.0, batch=1, rate=2e-4, constant=True, losses=LOSSES)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two scenes of three key frames, with Occ3D's labels and a LiDAR that sees a wall 8 m ahead."""
    folder = tmp_path_factory.mktemp("nuscenes")
    wall = np.stack(np.meshgrid([7.06], np.linspace(-2, 2, 40), np.linspace(-1, 1, 20)), -1).reshape(-1, 3)
    points = (wall @ EGO_FROM_LIDAR[:3, :3]).astype(np.float32)
    scenes, truths = {}, {}
    for seed, name in ((1, "scene-0001"), (2, "scene-0002")):
        frames = []
        for k, (frame, truth) in enumerate(WorldSource(seed, 3, image_size=(90, 160), grid=OCC3D).pairs()):
            frames.append(
                dataclasses.replace(
                    frame,
                    scene=name,
                    lidar_points=points,
                    ego_from_lidar=EGO_FROM_LIDAR,
                    world_from_ego_at_lidar=frame.world_from_ego,
                )
            )
            truths[name, k] = truth
        scenes[name] = frames
    tokens = write_nuscenes(folder, scenes)
    for (name, k), token in tokens.items():
        target = folder / "gts" / name / token
        target.mkdir(parents=True)
        truth = truths[name, k]
        mask = truth.visible.astype(np.uint8)
        np.savez(target / "labels.npz", semantics=truth.labels, mask_lidar=mask, mask_camera=mask)
    return folder


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(
        load_config("gdfusion-small"),
        image=ImageConfig(32, 64),
        grid=GridConfig((-40.0, 40.0, 0.4), (-40.0, 40.0, 0.4), (-1.0, 5.4, 0.4)),
        depth=DepthBins(1.0, 41.0, 4.0),
        architecture=SmallArchitecture((8, 8, 8, 8), 8, 2, (8, 8, 8), 8),
    )


def test_scenes_become_sequences_with_lidar_depth_and_camera_mask(dataset, config):
    sequences = NuScenesSequences(dataset, dataset / "gts", config, frames=3)
    assert len(sequences) == 2
    sequence = sequences[0]
    assert sequence.images.shape == (3, 6, 32, 64, 3)
    assert sequence.labels.shape == (3, 200, 200, 16)
    assert 0 < sequence.visible.mean() < 1
    front = sequence.depth[0, config.cameras.index("CAM_FRONT")]
    seen = front[front != UNKNOWN_DEPTH]
    # The wall is 8 m ahead of the rear axle, the front camera 1.7 m.
    assert seen.size > 0
    assert np.abs(seen * 0.2 - 6.3).max() < 0.5
    assert (sequence.depth[0, config.cameras.index("CAM_BACK")] == UNKNOWN_DEPTH).all()


def test_a_network_trains_for_a_few_steps(dataset, config, tmp_path):
    recipe = Recipe("gdfusion-small", "folder", sequences=1, frames=3, stages=(STAGE,))
    sequences = NuScenesSequences(dataset, dataset / "gts", config, frames=3)
    trainer = Trainer(recipe, tmp_path, config=config, nuscenes=sequences)
    assert trainer.run()
    assert (tmp_path / WEIGHTS).is_file()
    assert len(trainer.loader) == 2


def test_a_scene_shorter_than_the_recipe_asks_is_refused(dataset, config):
    with pytest.raises(UserError, match="3 key frames"):
        NuScenesSequences(dataset, dataset / "gts", config, frames=5)[0]


def test_labels_of_another_grid_are_refused(dataset):
    with pytest.raises(UserError, match="grid"):
        NuScenesSequences(dataset, dataset / "gts", load_config("gdfusion-small"), frames=3)[0]


def test_a_recipe_for_nuscenes_says_which_folders_it_needs(tmp_path, capsys):
    assert main(["train", "bevdetocc-gf", "--out", str(tmp_path)]) == 1
    assert "--nuscenes" in capsys.readouterr().err
