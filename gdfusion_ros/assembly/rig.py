"""A rig: which cameras there are, which topics and frames they use. Read from config/topics/*.yaml or a file alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from gdfusion_ros.assembly.calibration import Calibration, CalibrationError, checked
from gdfusion_ros.errors import UserError
from gdfusion_ros.geometry import Matrix, transform
from gdfusion_ros.share import share_dir

MAX_CAMERAS = 32
"""A grid's message has a bit for each."""


@dataclass(frozen=True)
class CameraTopics:
    """Where one camera's messages come from."""

    name: str
    image: str
    """Topic of its images."""
    info: str = ""
    """Topic of its CameraInfo; empty when the rig's calibration file stands for it."""
    frame: str = ""
    """Its optical frame in TF; empty: the one that CameraInfo or the image's header names."""


@dataclass(frozen=True)
class CameraOnFile:
    """What a calibration file says of one camera, for rigs without CameraInfo or TF."""

    calibration: Calibration | None
    ego_from_camera: Matrix | None


@dataclass(frozen=True)
class Rig:
    """Cameras, topics and frames of a vehicle or a recording."""

    cameras: tuple[CameraTopics, ...]
    anchor: str
    """The camera whose images trigger frames."""
    transport: Literal["compressed", "raw"] = "compressed"
    base_frame: str = "base_link"
    fixed_frame: str = "odom"
    """The frame that does not move, in which the ego poses are given: odom or map."""
    motion: Literal["tf", "odometry"] = "tf"
    """Where the ego pose comes from: /tf, or nav_msgs/Odometry with only static transforms from TF."""
    odometry_topic: str = "/odom"
    lidar_frame: str = ""
    """The LiDAR's frame, for networks whose grid lies in it."""
    on_file: Mapping[str, CameraOnFile] = field(default_factory=dict)
    """Camera name -> calibration from a file."""

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        if not names:
            raise UserError("the rig has no cameras: name at least one under `cameras` in the topics file")
        if len(names) > MAX_CAMERAS:
            raise UserError(f"the rig has {len(names)} cameras, more than {MAX_CAMERAS}")
        if self.anchor not in names:
            raise UserError(f"the anchor camera {self.anchor!r} is not one of the rig's: {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The cameras' names, in the rig's order."""
        return tuple(camera.name for camera in self.cameras)


def find_topics(name: str) -> Path:
    """The topics file of a preset in config/topics/, or the path itself; UserError lists the presets."""
    presets = share_dir() / "config" / "topics"
    preset = presets / f"{name}.yaml"
    if preset.is_file():
        return preset
    path = Path(name)
    if path.is_file():
        return path
    names = ", ".join(sorted(file.stem for file in presets.glob("*.yaml")))
    raise UserError(f"there are no topics {name!r}: give a YAML file or one of the presets {names}")


_RIG_KEYS = {"anchor", "transport", "base_frame", "fixed_frame", "motion", "odometry_topic", "lidar_frame"}


def read_rig(path: Path, calibration: Path | None = None, **changes: str) -> Rig:
    """A rig from a topics file, with the settings in ``changes`` that are not empty instead of the file's.

    Raises UserError when the file cannot be read or says something that a rig has no place for.
    """
    content = _read_yaml(path, "topics file")
    cameras = content.pop("cameras", None)
    if not isinstance(cameras, dict) or not cameras:
        raise UserError(f"{path}: `cameras` must map camera names to their topics")
    unknown = set(content) - _RIG_KEYS
    if unknown:
        raise UserError(
            f"{path}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(_RIG_KEYS))}"
        )
    settings: dict[str, Any] = {key: str(value) for key, value in content.items()}
    settings.update({key: value for key, value in changes.items() if value})
    for key, allowed in (("transport", ("compressed", "raw")), ("motion", ("tf", "odometry"))):
        if settings.get(key, allowed[0]) not in allowed:
            raise UserError(f"{path}: {key} is {settings[key]!r}, but must be {' or '.join(allowed)}")
    topics = tuple(_camera_topics(path, name, entry) for name, entry in cameras.items())
    settings.setdefault("anchor", topics[0].name)
    on_file = read_calibration(calibration) if calibration else {}
    unplaced = [t.name for t in topics if not t.info and t.name not in on_file]
    if unplaced:
        raise UserError(
            f"{path}: {unplaced[0]} has no CameraInfo topic: give its intrinsics in a calibration file "
            "(parameter calibration)"
        )
    return Rig(topics, on_file=on_file, **settings)


def _camera_topics(path: Path, name: str, entry: object) -> CameraTopics:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise UserError(f"{path}: camera {name} needs an `image` topic")
    unknown = set(entry) - {"image", "info", "frame"}
    if unknown:
        raise UserError(f"{path}: camera {name} has the unknown key {sorted(unknown)[0]!r}")
    return CameraTopics(
        str(name), entry["image"], str(entry.get("info") or ""), str(entry.get("frame") or "")
    )


def read_calibration(path: Path) -> dict[str, CameraOnFile]:
    """Intrinsics and extrinsics by camera from a calibration file; UserError names the camera that is wrong.

    Each camera may have ``width``, ``height`` and ``intrinsics`` (nine numbers, row by row), and
    ``base_from_camera`` with ``translation`` (metres) and ``rotation_wxyz``.
    """
    cameras = _read_yaml(path, "calibration file").get("cameras")
    if not isinstance(cameras, dict):
        raise UserError(f"{path}: `cameras` must map camera names to their calibration")
    result = {}
    for name, entry in cameras.items():
        try:
            result[str(name)] = _camera_on_file(entry)
        except (CalibrationError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: camera {name}: {error}") from None
    return result


def _camera_on_file(entry: Mapping[str, Any]) -> CameraOnFile:
    calibration, extrinsics = None, None
    if "intrinsics" in entry:
        matrix = np.asarray(entry["intrinsics"], dtype=np.float64).reshape(3, 3)
        calibration = checked(int(entry["width"]), int(entry["height"]), matrix)
    if "base_from_camera" in entry:
        pose = entry["base_from_camera"]
        extrinsics = transform(pose["translation"], pose["rotation_wxyz"])
    return CameraOnFile(calibration, extrinsics)


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} {path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise UserError(f"the {what} {path} must hold a mapping")
    return content
