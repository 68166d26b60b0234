"""Camera rigs: where the cameras sit, what they see, and when they expose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gdfusion_ros.geometry import Matrix


@dataclass(frozen=True)
class RigCamera:
    """One pinhole camera of a rig."""

    name: str
    width: int
    height: int
    intrinsics: Matrix
    """(3, 3) pinhole matrix in pixels of the full image."""
    ego_from_camera: Matrix
    """(4, 4) optical frame (x right, y down, z forward) to ego frame, in metres."""
    exposure_offset: float
    """Seconds between the anchor's exposure and this camera's."""


@dataclass(frozen=True)
class Rig:
    """Cameras around a vehicle; the anchor's exposure is the time that a frame is valid for."""

    name: str
    cameras: tuple[RigCamera, ...]
    anchor: str

    def __post_init__(self) -> None:
        if self.anchor not in [camera.name for camera in self.cameras]:
            raise ValueError(f"rig {self.name} has no camera {self.anchor} to be its anchor")

    def with_cameras(self, names: Sequence[str]) -> Rig:
        """The rig with just the cameras of these names, in this order. Raises ValueError for one that it has not."""
        cameras = {camera.name: camera for camera in self.cameras}
        for name in names:
            if name not in cameras:
                raise ValueError(f"the rig {self.name} has no camera {name}; it has {', '.join(cameras)}")
        anchor = self.anchor if self.anchor in names else names[0]
        return Rig(self.name, tuple(cameras[name] for name in names), anchor)

    def jittered(self, rng: np.random.Generator) -> Rig:
        """The same rig as another car would carry it: mounted a few centimetres and degrees elsewhere.

        Networks trained on jittered rigs read the calibration instead of learning one rig by heart.
        """
        cameras = []
        for camera in self.cameras:
            intrinsics = camera.intrinsics.copy()
            intrinsics[:2, :2] *= rng.uniform(0.96, 1.04)
            intrinsics[:2, 2] += rng.normal(0.0, 8.0, 2)
            nudge = np.eye(4)
            nudge[:3, :3] = _rotation(*np.radians(rng.normal(0.0, (1.5, 0.7, 0.5))))
            pose = camera.ego_from_camera.copy()
            pose[:3, :3] = nudge[:3, :3] @ pose[:3, :3]
            pose[:3, 3] += rng.normal(0.0, 0.05, 3)
            cameras.append(replace(camera, intrinsics=intrinsics, ego_from_camera=pose))
        return replace(self, cameras=tuple(cameras))


def pinhole(
    name: str,
    focal: float,
    center: tuple[float, float],
    position: tuple[float, float, float],
    yaw_degrees: float,
    exposure_offset: float = 0.0,
    size: tuple[int, int] = (1600, 900),
    pitch_degrees: float = 0.0,
) -> RigCamera:
    """A camera that looks along ``yaw_degrees`` (0 forward, 90 left), ``pitch_degrees`` downwards."""
    intrinsics = np.array([[focal, 0.0, center[0]], [0.0, focal, center[1]], [0.0, 0.0, 1.0]])
    # Columns are the optical axes (right, down, forward) of a camera that looks along ego x.
    ego_from_optical = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    pose = np.eye(4)
    pose[:3, :3] = _rotation(np.radians(yaw_degrees), np.radians(pitch_degrees), 0.0) @ ego_from_optical
    pose[:3, 3] = position
    return RigCamera(name, size[0], size[1], intrinsics, pose, exposure_offset)


def _rotation(yaw: float, pitch: float, roll: float) -> Matrix:
    """The rotation matrix of yaw about z, then pitch about y, then roll about x, in radians."""
    cy, sy, cp, sp, cr, sr = (
        np.cos(yaw),
        np.sin(yaw),
        np.cos(pitch),
        np.sin(pitch),
        np.cos(roll),
        np.sin(roll),
    )
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


# nuScenes' layout in round numbers. The shutters follow the LiDAR's sweep, clockwise from the front left.
NUSCENES = Rig(
    "nuscenes",
    (
        pinhole("CAM_FRONT_LEFT", 1266.0, (824.0, 476.0), (1.55, 0.50, 1.51), 55.0, -0.0076),
        pinhole("CAM_FRONT", 1266.0, (816.0, 491.0), (1.70, 0.00, 1.51), 0.0, 0.0),
        pinhole("CAM_FRONT_RIGHT", 1266.0, (808.0, 493.0), (1.55, -0.50, 1.50), -55.0, 0.0078),
        pinhole("CAM_BACK_LEFT", 1266.0, (800.0, 490.0), (1.04, 0.48, 1.58), 109.0, 0.0350),
        pinhole("CAM_BACK", 809.0, (829.0, 482.0), (0.03, 0.00, 1.58), 180.0, 0.0251),
        pinhole("CAM_BACK_RIGHT", 1266.0, (808.0, 499.0), (1.04, -0.48, 1.56), -110.0, 0.0157),
    ),
    anchor="CAM_FRONT",
)
