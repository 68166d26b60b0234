"""Networks and frames small enough for a test of a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.model.blocks.depth import DepthNetConfig
from gdfusion_ros.model.blocks.encoders import EncoderConfig
from gdfusion_ros.model.config import DepthBins, GridConfig, ModelConfig, load_config
from gdfusion_ros.model.networks.surroundocc import SurroundOccArchitecture

CAMERAS = ("CAM_FRONT", "CAM_BACK")


def tiny_config(name: str = "bevdetocc-gf", **temporal: object) -> ModelConfig:
    """The named network with two cameras, small images and a coarse grid; ``temporal`` changes its history."""
    config = load_config(name)
    flat = config.grid.features.shape[2] == 1
    step = 8.0 if flat else 1.6
    up = (1, 1, 4) if flat else config.grid.upsampling
    a = config.architecture
    return replace(
        config,
        cameras=CAMERAS,
        image=replace(config.image, height=64, width=96),
        grid=GridConfig((-8.0, 8.0, 1.0), (-6.0, 6.0, 1.0), (-1.0, 5.4, 6.4 if flat else step), "ego", up),
        depth=DepthBins(1.0, 9.0, 1.0),
        temporal=replace(config.temporal, **temporal),
        architecture=replace(a, depth_net=replace(a.depth_net, channels=32, aspp_channels=8)),
    )


_PLUGGED_SIZES = {
    "surroundocc": {"height": 70, "width": 110},
    "openoccupancy": {"height": 64, "width": 128},
    "bevdetocc-gf": {"height": 64, "width": 128},
    "cotr": {"height": 64, "width": 128},
}


def plugged_config(name: str) -> ModelConfig:
    """A published network on small images and a coarse grid."""
    config = load_config(name)
    base = name if name in _PLUGGED_SIZES else name.removesuffix("-gf")
    config = replace(config, image=replace(config.image, **_PLUGGED_SIZES[base]))
    if base == "surroundocc":
        grid = replace(config.grid, x=(-16.0, 16.0, 2.0), y=(-8.0, 8.0, 2.0), z=(-4.0, 4.0, 2.0))
        return replace(config, grid=grid, architecture=SurroundOccArchitecture((64, 64, 128), (1, 1, 2)))
    if base == "openoccupancy":
        grid = replace(
            config.grid, x=(-16.0, 16.0, 2.0), y=(-8.0, 8.0, 2.0), z=(-4.0, 4.0, 2.0), upsampling=(2, 2, 2)
        )
        depth_net = DepthNetConfig(64, 32, stereo=False, deformable=True)
        return replace(config, grid=grid, architecture=replace(config.architecture, depth_net=depth_net))
    grid = replace(config.grid, x=(-16.0, 16.0, 2.0), y=(-16.0, 16.0, 2.0), z=(-4.0, 4.0, 1.0))
    depth_net = replace(config.architecture.depth_net, channels=32, aspp_channels=16)
    return replace(config, grid=grid, architecture=replace(config.architecture, depth_net=depth_net))


def small_voxels(config: ModelConfig) -> ModelConfig:
    """The same with fewer channels behind the lifting (BEVDetOcc)."""
    encoder = EncoderConfig(blocks=(1, 1, 1), channels=(8, 8, 8), strides=(1, 2, 2), outputs=8)
    return replace(config, architecture=replace(config.architecture, voxel_channels=8, encoder=encoder))


def tiny_frame(index: int = 0, cameras: tuple[str, ...] = CAMERAS, speed: float = 0.6) -> CameraFrame:
    """Frame ``index`` of a straight drive, with images of noise at 150 x 100 pixels."""
    rng = np.random.default_rng(index)
    world_from_ego = np.eye(4)
    world_from_ego[0, 3] = 1000.0 + speed * index
    views = []
    for n, name in enumerate(cameras):
        ego_from_camera = np.eye(4)
        # Optical axes along x, turned by n half turns about z.
        forward = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
        turn = np.diag([(-1.0) ** n, (-1.0) ** n, 1.0])
        ego_from_camera[:3, :3] = turn @ forward
        ego_from_camera[:3, 3] = (0.5, 0.0, 1.5)
        intrinsics = np.array([[80.0, 0.0, 75.0], [0.0, 80.0, 60.0], [0.0, 0.0, 1.0]])
        image = rng.integers(0, 255, (100, 150, 3), dtype=np.uint8)
        views.append(
            CameraView(name, image, intrinsics, ego_from_camera, world_from_ego, index * 500_000_000)
        )
    return CameraFrame(index * 500_000_000, tuple(views), world_from_ego, scene="tiny")
