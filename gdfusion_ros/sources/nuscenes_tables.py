"""nuScenes as it is published: key frames through the devkit, scene by scene, with what finds their labels again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.geometry import Matrix
from gdfusion_ros.sources.nuscenes import ANCHOR, decode, lidar_points, pose

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"
VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")


@dataclass(frozen=True)
class KeyFrame:
    """Names that other data sets file their labels under."""

    scene: str
    """Such as scene-0103."""
    scene_token: str
    sample_token: str
    lidar_token: str
    lidar_file: str
    """The sweep's file name without its folder."""


class NuScenesSource:
    """Iterates the key frames of scenes; ``pairs`` gives them with their names. `len` gives their number.

    Frames carry their LiDAR points where the sweeps were downloaded.
    """

    def __init__(self, root: str | Path, version: str | None = None, scenes: Sequence[str] = ()) -> None:
        """Reads the tables; ``version`` None is the first that is there, no ``scenes`` means all.

        Raises UserError when the devkit or the tables are missing, or a scene is unknown.
        """
        self._nuscenes = open_nuscenes(root, version)
        self._scenes = scene_records(self._nuscenes, scenes)
        self.scenes = tuple(str(scene["name"]) for scene in self._scenes)

    def __len__(self) -> int:
        return sum(int(scene["nbr_samples"]) for scene in self._scenes)

    def __iter__(self) -> Iterator[CameraFrame]:
        for _, frame in self.pairs():
            yield frame

    def pairs(self, only: str | None = None) -> Iterator[tuple[KeyFrame, CameraFrame]]:
        """Every key frame with its names, scene by scene in the order of time; with ``only``, those of one scene."""
        for scene in self._scenes:
            if only not in (None, scene["name"]):
                continue
            for sample in samples(self._nuscenes, scene):
                yield self._names(scene, sample), self._frame(scene, sample)

    def world_from_lidars(self, scene_name: str) -> list[Matrix]:
        """(4, 4) LiDAR poses at all key frames of a scene: where RayIoU's rays begin."""
        scene = next(scene for scene in self._scenes if scene["name"] == scene_name)
        sweeps = [self._data(sample["data"][LIDAR]) for sample in samples(self._nuscenes, scene)]
        return [ego_pose(self._nuscenes, sweep) @ sensor_pose(self._nuscenes, sweep) for sweep in sweeps]

    def _data(self, token: str) -> dict[str, Any]:
        record: dict[str, Any] = self._nuscenes.get("sample_data", token)
        return record

    def _names(self, scene: dict[str, Any], sample: dict[str, Any]) -> KeyFrame:
        sweep = self._data(sample["data"][LIDAR])
        return KeyFrame(
            scene["name"], scene["token"], sample["token"], sweep["token"], Path(sweep["filename"]).name
        )

    def _frame(self, scene: dict[str, Any], sample: dict[str, Any]) -> CameraFrame:
        views = tuple(self._view(sample["data"][name]) for name in CAMERAS)
        anchor = views[CAMERAS.index(ANCHOR)]
        sweep = self._data(sample["data"][LIDAR])
        # The sweeps are a download of their own, and only some networks need them.
        there = (Path(self._nuscenes.dataroot) / sweep["filename"]).is_file()
        points = lidar_points(read_file(self._nuscenes, sweep))[:, :3].copy() if there else None
        return CameraFrame(
            stamp_ns=anchor.stamp_ns,
            views=views,
            world_from_ego=anchor.world_from_ego,
            world_from_ego_at_lidar=ego_pose(self._nuscenes, sweep),
            ego_from_lidar=sensor_pose(self._nuscenes, sweep),
            lidar_points=points,
            scene=scene["name"],
        )

    def _view(self, token: str) -> CameraView:
        record = self._data(token)
        encoded = read_file(self._nuscenes, record)
        return CameraView(
            name=record["channel"],
            image=decode(encoded, Path(self._nuscenes.dataroot) / record["filename"]),
            intrinsics=intrinsics(self._nuscenes, record),
            ego_from_camera=sensor_pose(self._nuscenes, record),
            world_from_ego=ego_pose(self._nuscenes, record),
            stamp_ns=int(record["timestamp"]) * 1000,
            encoded=encoded,
        )


def open_nuscenes(root: str | Path, version: str | None = None) -> Any:
    """The data set, opened with the devkit; ``version`` None is the first that is there.

    Raises UserError when the data set is not there or the devkit is not installed.
    """
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError:
        raise UserError("nuScenes needs its devkit: pip install nuscenes-devkit") from None
    version = version or next((name for name in VERSIONS if (Path(root) / name).is_dir()), VERSIONS[0])
    tables = Path(root) / version
    if not tables.is_dir():
        raise UserError(f"there is no {version} in {root}: its tables should be in {tables}")
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (OSError, ValueError, KeyError, AssertionError, IndexError) as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(f"the tables in {tables} cannot be read: {type(error).__name__} {words}") from None


def scene_records(nuscenes: Any, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The scenes of these names, or all; UserError names one that is not there."""
    known = {str(record["name"]): record for record in nuscenes.scene}
    for name in names:
        if name not in known:
            some = ", ".join(list(known)[:5])
            raise UserError(f"{nuscenes.version} has no scene {name}; it has {len(known)}: {some}, ...")
    return [known[name] for name in (names or known)]


def samples(nuscenes: Any, scene: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The key frames of a scene, in the order of time."""
    token = scene["first_sample_token"]
    while token:
        sample = nuscenes.get("sample", token)
        yield sample
        token = sample["next"]


def ego_pose(nuscenes: Any, record: dict[str, Any]) -> Matrix:
    """world_from_ego when this sample_data was taken."""
    return pose(nuscenes.get("ego_pose", record["ego_pose_token"]))


def sensor_pose(nuscenes: Any, record: dict[str, Any]) -> Matrix:
    """ego_from_sensor of the sensor that took this sample_data."""
    return pose(nuscenes.get("calibrated_sensor", record["calibrated_sensor_token"]))


def intrinsics(nuscenes: Any, record: dict[str, Any]) -> Matrix:
    """(3, 3) of the camera that took this sample_data."""
    calibrated = nuscenes.get("calibrated_sensor", record["calibrated_sensor_token"])
    return np.asarray(calibrated["camera_intrinsic"], dtype=np.float64).reshape(3, 3)


def read_file(nuscenes: Any, record: dict[str, Any]) -> bytes:
    """The bytes of a sample_data's file; UserError when it is not there."""
    path = Path(nuscenes.dataroot) / record["filename"]
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; was this part of nuScenes downloaded?"
        ) from None
