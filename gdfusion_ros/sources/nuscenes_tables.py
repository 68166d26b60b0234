"""nuScenes as it is published: key frames through the devkit, scene by scene, with what finds their labels again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView, Image
from gdfusion_ros.geometry import Matrix, transform

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
ANCHOR = "CAM_FRONT"
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
    """Iterates CameraFrames of scenes; ``pairs`` gives them with their names, ``world_from_lidars`` a scene's LiDAR."""

    def __init__(self, dataroot: str | Path, version: str | None = None, scenes: Sequence[str] = ()) -> None:
        """Reads the tables; ``version`` None is the first that is there, no ``scenes`` means all.

        Raises UserError when the devkit or the tables are missing, or a scene is unknown.
        """
        try:
            from nuscenes import NuScenes
        except ImportError:
            raise UserError("nuScenes needs its devkit: pip install 'gdfusion_ros[nuscenes]'") from None
        self.dataroot = Path(dataroot)
        self.version = version or next((v for v in VERSIONS if (self.dataroot / v).is_dir()), VERSIONS[0])
        try:
            self._tables: Any = NuScenes(self.version, str(self.dataroot), verbose=False)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            words = " ".join(str(error).split())[:200]
            raise UserError(f"{self.dataroot} is no nuScenes folder with {self.version}: {words}") from error
        names = [scene["name"] for scene in self._tables.scene]
        for name in scenes:
            if name not in names:
                raise UserError(f"{self.version} has no scene {name}; it has {names[0]} .. {names[-1]}")
        self.scenes = tuple(scenes) or tuple(names)
        self._scenes = [scene for scene in self._tables.scene if scene["name"] in self.scenes]

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
            for sample in self._samples(scene):
                yield self._names(scene, sample), self._frame(scene, sample)

    def world_from_lidars(self, scene_name: str) -> list[Matrix]:
        """(4, 4) LiDAR poses at all key frames of a scene: where RayIoU's rays begin."""
        scene = next(scene for scene in self._scenes if scene["name"] == scene_name)
        poses = []
        for sample in self._samples(scene):
            data = self._tables.get("sample_data", sample["data"][LIDAR])
            poses.append(self._ego(data) @ self._sensor(data))
        return poses

    def _samples(self, scene: dict[str, Any]) -> Iterator[dict[str, Any]]:
        token = scene["first_sample_token"]
        while token:
            sample = self._tables.get("sample", token)
            yield sample
            token = sample["next"]

    def _names(self, scene: dict[str, Any], sample: dict[str, Any]) -> KeyFrame:
        lidar = self._tables.get("sample_data", sample["data"][LIDAR])
        return KeyFrame(
            scene["name"], scene["token"], sample["token"], lidar["token"], Path(lidar["filename"]).name
        )

    def _frame(self, scene: dict[str, Any], sample: dict[str, Any]) -> CameraFrame:
        lidar = self._tables.get("sample_data", sample["data"][LIDAR])
        views = tuple(self._view(name, sample) for name in CAMERAS)
        anchor = views[CAMERAS.index(ANCHOR)]
        return CameraFrame(
            stamp_ns=anchor.stamp_ns,
            views=views,
            world_from_ego=anchor.world_from_ego,
            world_from_ego_at_lidar=self._ego(lidar),
            ego_from_lidar=self._sensor(lidar),
            lidar_points=self._points(lidar["filename"]),
            scene=scene["name"],
        )

    def _view(self, name: str, sample: dict[str, Any]) -> CameraView:
        data = self._tables.get("sample_data", sample["data"][name])
        sensor = self._tables.get("calibrated_sensor", data["calibrated_sensor_token"])
        encoded = self._read(data["filename"])
        return CameraView(
            name=name,
            image=self._decode(data["filename"], encoded),
            intrinsics=np.asarray(sensor["camera_intrinsic"], dtype=np.float64),
            ego_from_camera=self._sensor(data),
            world_from_ego=self._ego(data),
            stamp_ns=int(data["timestamp"]) * 1000,
            encoded=encoded,
        )

    def _sensor(self, data: dict[str, Any]) -> Matrix:
        sensor = self._tables.get("calibrated_sensor", data["calibrated_sensor_token"])
        return transform(sensor["translation"], sensor["rotation"])

    def _ego(self, data: dict[str, Any]) -> Matrix:
        pose = self._tables.get("ego_pose", data["ego_pose_token"])
        return transform(pose["translation"], pose["rotation"])

    def _points(self, file: str) -> np.ndarray | None:
        """(N, 3) of a sweep; None when the sweeps were not downloaded: only the images are needed."""
        path = self.dataroot / file
        if not path.is_file():
            return None
        return np.fromfile(path, dtype=np.float32).reshape(-1, 5)[:, :3].copy()

    def _read(self, file: str) -> bytes:
        try:
            return (self.dataroot / file).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {self.dataroot / file}: {error.strerror}") from None

    def _decode(self, file: str, encoded: bytes) -> Image:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
        if image is None:
            raise UserError(f"{self.dataroot / file} cannot be decoded as an image")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
