"""Real nuScenes key frames: from a folder with a `frames.json`, or from the data set itself with its devkit.

`frames.json` holds, under `frames`, one entry a key frame with `cameras` (name -> file, width, height,
intrinsic, sensor2ego, ego2global at the camera's own exposure, timestamp_us), `ego2global_lidar_time` and
perhaps `lidar`. Translations are metres, quaternions (w, x, y, z), times microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView, Image
from gdfusion_ros.geometry import Matrix, transform

ANCHOR = "CAM_FRONT"
"""The camera whose exposure a frame's time and ego pose are."""


class FolderSource:
    """Iterates the key frames of a folder. `len` gives their number."""

    def __init__(self, folder: str | Path) -> None:
        """Reads `frames.json`; images are read when their frame's turn comes.

        Raises UserError when the folder is not of this form.
        """
        self.folder = Path(folder)
        index = self.folder / "frames.json"
        try:
            content = json.loads(index.read_text())
            self._frames: list[dict[str, Any]] = content["frames"]
        except OSError:
            raise UserError(f"{self.folder} has no readable frames.json: not a folder of frames") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{index} is not a list of frames in JSON") from None
        self.scene = str(content.get("scene", self.folder.name))
        self._lidar: dict[str, Any] | None = content.get("lidar_sensor2ego")

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[CameraFrame]:
        for number, entry in enumerate(self._frames):
            try:
                yield self._frame(entry)
            except (KeyError, TypeError, ValueError) as error:
                what = f"{type(error).__name__}: {error}"
                raise UserError(f"{self.folder / 'frames.json'}: frame {number} is broken ({what})") from None

    def _frame(self, entry: dict[str, Any]) -> CameraFrame:
        views = tuple(self._view(name, camera) for name, camera in entry["cameras"].items())
        anchor = next((view for view in views if view.name == ANCHOR), views[0])
        lidar = entry.get("lidar")
        lidar_pose = lidar["sensor2ego"] if lidar else self._lidar
        return CameraFrame(
            stamp_ns=anchor.stamp_ns,
            views=views,
            world_from_ego=anchor.world_from_ego,
            world_from_ego_at_lidar=_pose(entry["ego2global_lidar_time"]),
            ego_from_lidar=_pose(lidar_pose) if lidar_pose else None,
            lidar_points=self._points(lidar["file"]) if lidar else None,
            scene=self.scene,
        )

    def _view(self, name: str, camera: dict[str, Any]) -> CameraView:
        encoded = self._read(camera["file"])
        image = decode(encoded, self.folder / camera["file"])
        if image.shape[:2] != (camera["height"], camera["width"]):
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise UserError(
                f"{self.folder / camera['file']} is {size}, but frames.json says "
                f"{camera['width']}x{camera['height']}"
            )
        return CameraView(
            name=name,
            image=image,
            intrinsics=np.asarray(camera["intrinsic"], dtype=np.float64).reshape(3, 3),
            ego_from_camera=_pose(camera["sensor2ego"]),
            world_from_ego=_pose(camera["ego2global"]),
            stamp_ns=int(camera["timestamp_us"]) * 1000,
            encoded=encoded,
        )

    def _read(self, file: str) -> bytes:
        path = (self.folder / file).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise UserError(f"{self.folder / 'frames.json'} names {file}, which lies outside its folder")
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None

    def _points(self, file: str) -> npt.NDArray[np.float32]:
        return lidar_points(self._read(file))[:, :3].copy()


CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"
LIDAR_FIELDS = ("x", "y", "z", "intensity", "ring")
"""Columns of nuScenes' LiDAR files, float32."""


@dataclass(frozen=True)
class Sample:
    """Which key frame of the data set a frame is."""

    scene: str
    token: str
    world_from_lidar: Matrix
    """(4, 4) at the sweep's time."""


def open_nuscenes(root: str | Path, version: str) -> Any:
    """The data set, opened with the devkit; UserError when it is not there or the devkit is not installed."""
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError:
        raise UserError("nuScenes needs its devkit: pip install nuscenes-devkit") from None
    tables = Path(root) / version
    if not tables.is_dir():
        raise UserError(f"there is no {version} in {root}: its tables should be in {tables}")
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (OSError, ValueError, KeyError, AssertionError, IndexError) as error:
        raise UserError(f"the tables in {tables} cannot be read: {type(error).__name__} {error}") from None


def scene_records(nuscenes: Any, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The scenes of these names, or all; UserError names one that is not there."""
    known = {str(record["name"]): record for record in nuscenes.scene}
    for name in names:
        if name not in known:
            some = ", ".join(list(known)[:5])
            raise UserError(f"{nuscenes.version} has no scene {name}; it has {len(known)}: {some}, ...")
    return [known[name] for name in (names or known)]


class NuScenesSource:
    """Iterates the key frames of scenes of nuScenes. ``samples`` tells which they are; `len` gives their number."""

    def __init__(
        self,
        root: str | Path,
        version: str = "v1.0-mini",
        scenes: Sequence[str] = (),
        lidar: bool = False,
        nuscenes: Any | None = None,
    ) -> None:
        """All scenes unless named. With ``lidar`` frames carry their points. Raises UserError.

        ``nuscenes`` is a data set that is open already.
        """
        self.nuscenes = nuscenes or open_nuscenes(root, version)
        self.lidar = lidar
        self.samples: list[Sample] = []
        for scene in scene_records(self.nuscenes, scenes):
            token = scene["first_sample_token"]
            while token:
                sample = self.nuscenes.get("sample", token)
                sweep = self.nuscenes.get("sample_data", sample["data"][LIDAR])
                pose = ego_pose(self.nuscenes, sweep) @ sensor_pose(self.nuscenes, sweep)
                self.samples.append(Sample(scene["name"], token, pose))
                token = sample["next"]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[CameraFrame]:
        for sample in self.samples:
            yield self._frame(sample)

    def _frame(self, sample: Sample) -> CameraFrame:
        data = self.nuscenes.get("sample", sample.token)["data"]
        views = tuple(self._view(data[name]) for name in CAMERAS)
        anchor = next(view for view in views if view.name == ANCHOR)
        sweep = self.nuscenes.get("sample_data", data[LIDAR])
        points = None
        if self.lidar:
            points = lidar_points(read_file(self.nuscenes, sweep))[:, :3].copy()
        return CameraFrame(
            stamp_ns=anchor.stamp_ns,
            views=views,
            world_from_ego=anchor.world_from_ego,
            world_from_ego_at_lidar=ego_pose(self.nuscenes, sweep),
            ego_from_lidar=sensor_pose(self.nuscenes, sweep),
            lidar_points=points,
            scene=sample.scene,
        )

    def _view(self, token: str) -> CameraView:
        record = self.nuscenes.get("sample_data", token)
        encoded = read_file(self.nuscenes, record)
        return CameraView(
            name=record["channel"],
            image=decode(encoded, record["filename"]),
            intrinsics=intrinsics(self.nuscenes, record),
            ego_from_camera=sensor_pose(self.nuscenes, record),
            world_from_ego=ego_pose(self.nuscenes, record),
            stamp_ns=int(record["timestamp"]) * 1000,
            encoded=encoded,
        )


def ego_pose(nuscenes: Any, record: dict[str, Any]) -> Matrix:
    """world_from_ego when this sample_data was taken."""
    return _pose(nuscenes.get("ego_pose", record["ego_pose_token"]))


def sensor_pose(nuscenes: Any, record: dict[str, Any]) -> Matrix:
    """ego_from_sensor of the sensor that took this sample_data."""
    return _pose(nuscenes.get("calibrated_sensor", record["calibrated_sensor_token"]))


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


def lidar_points(content: bytes) -> npt.NDArray[np.float32]:
    """(N, 5) of a LiDAR file: x, y, z, intensity, ring."""
    return np.frombuffer(content, dtype=np.float32).reshape(-1, len(LIDAR_FIELDS))


def decode(encoded: bytes, name: object) -> Image:
    """(H, W, 3) RGB; UserError names the file that is no image."""
    # The same decoder as the node's (assembly.codec), so that both see the same pixels; equal to PIL's.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
    if image is None:
        raise UserError(f"{name} cannot be decoded as an image")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _pose(entry: dict[str, Any]) -> Matrix:
    return transform(entry["translation"], entry["rotation"])
