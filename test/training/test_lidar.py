"""Networks whose grid lies in the LiDAR frame, and all that cues were plugged into, can be trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gdfusion_ros.grid import SURROUNDOCC, VoxelGrid
from gdfusion_ros.model.config import ModelConfig, load_config
from gdfusion_ros.model.model import build_network
from gdfusion_ros.model.weights import randomise
from gdfusion_ros.training.batch import collate
from gdfusion_ros.training.data import Sequence, WorldSequences
from gdfusion_ros.training.lidar import EGO_FROM_LIDAR, ego_grid, in_grid_order
from gdfusion_ros.training.losses import depth_loss, occupancy_loss, world_class_weights

pytestmark = pytest.mark.timeout(900)
STEPS = 5


def test_a_cell_of_the_lidar_grid_is_the_same_place_in_the_ego_grid() -> None:
    grid = VoxelGrid.from_bounds((-6.0, 4.0, 1.0), (-3.0, 5.0, 2.0), (-1.0, 1.0, 0.5), "lidar")
    turned = ego_grid(grid)
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in turned.shape), indexing="ij"), axis=-1)
    centers = in_grid_order(turned.centers(indices), grid)

    own = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    expected = grid.centers(own) @ EGO_FROM_LIDAR[:3, :3].T + EGO_FROM_LIDAR[:3, 3]
    assert np.allclose(centers, expected)


def test_a_grid_in_the_ego_frame_stays_as_it_is() -> None:
    grid = VoxelGrid(SURROUNDOCC.minimum, SURROUNDOCC.cell_size, SURROUNDOCC.shape, "ego")
    array = np.arange(24).reshape(4, 3, 2)
    assert ego_grid(grid) == grid
    assert in_grid_order(array, grid) is array


def tiny(name: str) -> ModelConfig:
    """A published network on small images and a coarse grid, so that a step takes seconds."""
    config = load_config(name)
    if name == "surroundocc-gf":
        architecture = replace(config.architecture, channels=(64, 64, 128), layers=(1, 1, 1))
        grid = replace(config.grid, x=(-16.0, 16.0, 4.0), y=(-16.0, 16.0, 4.0), z=(-4.0, 4.0, 2.0))
    else:
        shrunk = replace(config.architecture.depth_net, channels=32, aspp_channels=16)
        architecture = replace(config.architecture, depth_net=shrunk)
        grid = replace(config.grid, x=(-16.0, 16.0, 2.0), y=(-16.0, 16.0, 2.0), z=(-4.0, 4.0, 1.0))
    if name == "openoccupancy-gf":
        grid = replace(grid, upsampling=(2, 2, 2))
    image = replace(config.image, height=64, width=128)
    return replace(config, image=image, grid=grid, architecture=architecture)


@pytest.mark.parametrize("name", ["surroundocc-gf", "openoccupancy-gf", "cotr-gf"])
def test_a_few_steps_lower_the_loss(name: str) -> None:
    torch.manual_seed(0)
    config = tiny(name)
    drawn: Sequence = WorldSequences(1, 2, (64, 128), grid=ego_grid(config.grid.output))[0]
    network = build_network(config)
    randomise(network, 0)
    network.eval()  # of two frames no batch statistics can be made
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)
    labels = config.labels.labels
    first, truth_of_first = collate([(drawn, 0)], config, 16)
    second, truth = collate([(drawn, 1)], config, 16, first=False)

    losses = []
    for _ in range(STEPS):
        with torch.no_grad():
            _, state = network(first, None)
        output, _ = network(second, state)
        loss = sum(
            occupancy_loss(
                output.logits, truth.labels, truth.weight, world_class_weights(labels), labels.free
            )
        )
        if output.depth is not None:
            loss = loss + depth_loss(output.depth, truth.depth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < losses[0]
    assert truth_of_first.labels.shape == truth.labels.shape
    gains = {name: p for name, p in network.named_parameters() if name.split(".")[-1] == "gain"}
    assert all(float(gain.detach().abs().max()) > 0 for gain in gains.values())


def test_the_lidar_frames_motion_is_what_the_model_makes_of_it() -> None:
    config = tiny("surroundocc-gf")
    drawn = WorldSequences(1, 2, (64, 128), grid=ego_grid(config.grid.output))[0]
    ego, _ = collate(
        [(drawn, 1)], replace(config, temporal=replace(config.temporal, warp="ego")), 16, first=False
    )
    own, _ = collate([(drawn, 1)], config, 16, first=False)

    expected = np.linalg.inv(EGO_FROM_LIDAR) @ ego.motion.previous_from_current[0].numpy() @ EGO_FROM_LIDAR
    assert np.allclose(own.motion.previous_from_current[0].numpy(), expected, atol=1e-4)
