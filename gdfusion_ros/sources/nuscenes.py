"""Real nuScenes key frames from a folder with a `frames.json`; the data set itself is in `nuscenes_tables`.

`frames.json` holds, under `frames`, one entry a key frame with `cameras` (name -> file, width, height,
intrinsic, sensor2ego, ego2global at the camera's own exposure, timestamp_us), `ego2global_lidar_time` and
perhaps `lidar`. Translations are metres, quaternions (w, x, y, z), times microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
LIDAR_FIELDS = ("x", "y", "z", "intensity", "ring")
"""Columns of nuScenes' LiDAR files, float32."""


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
            world_from_ego_at_lidar=pose(entry["ego2global_lidar_time"]),
            ego_from_lidar=pose(lidar_pose) if lidar_pose else None,
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
            ego_from_camera=pose(camera["sensor2ego"]),
            world_from_ego=pose(camera["ego2global"]),
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


def pose(entry: dict[str, Any]) -> Matrix:
    """The transform of an entry with a translation in metres and a rotation (w, x, y, z)."""
    return transform(entry["translation"], entry["rotation"])
