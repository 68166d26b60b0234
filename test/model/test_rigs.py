"""Every family with any rig, image size and grid of a model file, and several streams in one batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import plugged_config, tiny_config, tiny_frame
from torch import Tensor

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.model import OccupancyModel, build_network
from gdfusion_ros.model.network import NetworkInput
from gdfusion_ros.model.weights import randomise

TINY = (
    "bevdetocc-gf",
    "fbocc-gf",
    "alocc3d-gf",
    "alocc2d-gf",
    "bevdetocc-sf",
    "alocc2d-mini",
    "alocc-flow-2d",
)
PLUGGED = ("surroundocc-gf", "openoccupancy-gf", "cotr", "cotr-gf")
LIDAR = np.array([[0.0, 1, 0, 0.9], [-1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1]])


def config_of(name: str) -> ModelConfig:
    return tiny_config(name) if name in TINY else plugged_config(name)


def model_of(config: ModelConfig) -> OccupancyModel:
    network = build_network(config)
    randomise(network, 0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.split(".")[-1] == "gain":
                parameter.fill_(0.5)
    return OccupancyModel(config, network, "test")


def drive(cameras: tuple[str, ...], seed: int = 0) -> Iterator[CameraFrame]:
    for i in range(2):
        yield replace(tiny_frame(10 * seed + i, cameras, speed=0.6 + seed), ego_from_lidar=LIDAR)


@pytest.mark.parametrize(("name", "cameras"), zip(TINY + PLUGGED, itertools.cycle((1, 7))))
def test_a_rig_may_have_any_number_of_cameras(name: str, cameras: int) -> None:
    config = replace(config_of(name), cameras=tuple(f"camera {i}" for i in range(cameras)))
    model, state = model_of(config), None
    for frame in drive(config.cameras):
        prediction, state = model(frame, state)
    assert prediction.labels.shape == model.grid.shape


@pytest.mark.parametrize("name", TINY + PLUGGED[1:2])
def test_images_and_grids_may_have_any_size_that_a_model_file_allows(name: str) -> None:
    config = replace(config_of(name), cameras=("left", "right"))
    grid = replace(config.grid, x=(-13.0, 13.0, 1.0), y=(-9.0, 2.0, 1.0))
    model, state = (
        model_of(replace(config, image=replace(config.image, height=96, width=160), grid=grid)),
        None,
    )
    for frame in drive(config.cameras):
        prediction, state = model(frame, state)
    up = config.grid.upsampling
    assert prediction.labels.shape[:2] == (26 * up[0], 11 * up[1])


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("surroundocc-gf", {"x": (-10.0, 10.0, 2.0)}, "cannot be made 4 times coarser"),
        ("cotr-gf", {"y": (-9.0, 9.0, 1.0)}, "multiples of 4 cells"),
        ("alocc-flow-2d", {"upsampling": (1, 1, 2)}, "compares layers 4 to 9"),
    ],
)
def test_a_grid_that_a_network_cannot_have_is_named(name: str, change: dict[str, Any], what: str) -> None:
    config = config_of(name)
    with pytest.raises(UserError, match=what):
        build_network(replace(config, grid=replace(config.grid, **change)))


def inputs(model: OccupancyModel, seed: int) -> list[NetworkInput]:
    found, before = [], None
    for frame in drive(model.cameras, seed):
        poses = model.ego_poses(frame)
        found.append(model.network_input(frame, poses, before))
        before = poses
    return found


def joined(first: Any, second: Any) -> Any:
    """Two samples as one batch, tensor by tensor."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if is_dataclass(first):
        return replace(
            first, **{f.name: joined(getattr(first, f.name), getattr(second, f.name)) for f in fields(first)}
        )
    return first


@pytest.mark.parametrize("name", TINY + PLUGGED)
def test_a_batch_of_two_streams_gives_what_each_gives_alone(name: str) -> None:
    model = model_of(replace(config_of(name), cameras=("left", "right")))
    first, second = inputs(model, 0), inputs(model, 1)
    states: list[Any] = [None, None, None]
    for a, b in zip(first, second, strict=True):
        with torch.inference_mode():
            results = [model.network(x, states[i]) for i, x in enumerate((a, b, joined(a, b)))]
        states = [state for _, state in results]
        for i in (0, 1):
            alone, together = results[i][0].logits[0], results[2][0].logits[i]
            error = (together - alone).abs() / alone.abs().max()
            # Single cells may flip at the discontinuities of the motion cue.
            assert float(error.flatten().kthvalue(int(0.99 * error.numel())).values) < 1e-4
