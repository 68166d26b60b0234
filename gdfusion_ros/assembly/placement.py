"""Where each camera of a frame was when it exposed."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from gdfusion_ros.assembly.calibration import Calibration, CalibrationError
from gdfusion_ros.assembly.matching import Shot
from gdfusion_ros.assembly.rig import CameraTopics, Rig
from gdfusion_ros.assembly.transforms import TransformBuffer, TransformError
from gdfusion_ros.geometry import Matrix


class PlacementError(LookupError):
    """A frame that cannot be placed (yet). Names whose transform or calibration is wanting."""

    def __init__(self, where: str, reason: str, text: str, may_come: bool) -> None:
        super().__init__(text)
        self.where, self.reason, self.may_come = where, reason, may_come


@dataclass(frozen=True)
class PlacedView:
    """One camera's place and its intrinsics for the image at hand."""

    width: int
    height: int
    intrinsics: Matrix
    ego_from_camera: Matrix
    world_from_ego: Matrix
    """At the camera's own exposure."""


@dataclass(frozen=True)
class Placement:
    """The poses of a frame."""

    world_from_ego: Matrix
    """At the anchor's exposure."""
    views: Mapping[str, PlacedView]
    ego_from_lidar: Matrix | None


class CalibrationHistory:
    """A camera's calibration and its changes. An image gets the one that was valid when it was taken."""

    def __init__(self, fixed: Calibration | None = None) -> None:
        self._fixed = fixed
        self._changes: deque[tuple[int, Calibration]] = deque(maxlen=8)

    def add(self, stamp: int, calibration: Calibration) -> bool:
        """Remember a calibration; False when it is the last one again."""
        if self._changes and self._changes[-1][1] == calibration:
            return False
        self._changes.append((stamp, calibration))
        return True

    def at(self, stamp: int, size: tuple[int, int] | None) -> Calibration | None:
        """The calibration for an image of a size (width, height); the calibration file's wherever there is one.

        Of those that were valid at the stamp, the newest that fits the image's shape: a CameraInfo for another
        shape leaves the last good one in force. When none fits, the newest.
        """
        if self._fixed is not None:
            return self._fixed
        valid = [calibration for since, calibration in reversed(self._changes) if since <= stamp]
        if not valid:
            return self._changes[0][1] if self._changes else None
        if size is None:
            return valid[0]
        return next((calibration for calibration in valid if calibration.fits(*size)), valid[0])

    def forget_times(self) -> None:
        """Take what is known as valid for all times: the clock has jumped back."""
        known = [(0, calibration) for _, calibration in self._changes]
        self._changes.clear()
        self._changes.extend(known)


def place(
    rig: Rig,
    stamp: int,
    shots: Mapping[str, Shot | None],
    calibrations: Mapping[str, CalibrationHistory],
    transforms: TransformBuffer,
) -> Placement:
    """Place every camera at its own exposure: camera -> fixed frame there, base -> fixed frame at the anchor's.

    A camera without an image (None) is placed at the anchor's time. Raises PlacementError when something is
    wanting; no transform is ever taken to be the identity.
    """
    views = {}
    for topics in rig.cameras:
        shot = shots[topics.name]
        views[topics.name] = _place_view(rig, topics, shot, stamp, calibrations[topics.name], transforms)
    world_from_ego = _lookup(transforms, rig.fixed_frame, rig.base_frame, stamp, rig.base_frame)
    return Placement(world_from_ego, views, _ego_from_lidar(rig, stamp, transforms))


def _place_view(
    rig: Rig,
    topics: CameraTopics,
    shot: Shot | None,
    anchor_ns: int,
    history: CalibrationHistory,
    transforms: TransformBuffer,
) -> PlacedView:
    name = topics.name
    stamp = anchor_ns if shot is None else shot.stamp_ns
    size = None if shot is None else (shot.width, shot.height)
    calibration = history.at(stamp, size)
    if calibration is None:
        text = f"no CameraInfo on {topics.info}"
        raise PlacementError(name, "no_calibration", text, may_come=True)
    width, height = size or (calibration.width, calibration.height)
    try:
        intrinsics = calibration.for_image(width, height)
    except CalibrationError as error:
        raise PlacementError(name, "no_calibration", str(error), may_come=False) from None
    on_file = rig.on_file.get(name)
    if on_file is not None and on_file.ego_from_camera is not None:
        ego_from_camera = on_file.ego_from_camera
    else:
        frame = (
            topics.frame or calibration.frame or ("" if shot is None else str(shot.message.header.frame_id))
        )
        ego_from_camera = _lookup(transforms, rig.base_frame, frame, stamp, name)
    world_from_ego = _lookup(transforms, rig.fixed_frame, rig.base_frame, stamp, name)
    return PlacedView(width, height, intrinsics, ego_from_camera, world_from_ego)


def _lookup(transforms: TransformBuffer, target: str, source: str, stamp: int, where: str) -> Matrix:
    try:
        return transforms.lookup(target, source, stamp)
    except TransformError as error:
        raise PlacementError(where, "no_transform", str(error), error.may_come) from None


def _ego_from_lidar(rig: Rig, stamp: int, transforms: TransformBuffer) -> Matrix | None:
    if not rig.lidar_frame:
        return None
    try:
        return transforms.lookup(rig.base_frame, rig.lidar_frame, stamp)
    except TransformError:
        return None  # only networks whose grid lies in the LiDAR frame need it, and those say so
