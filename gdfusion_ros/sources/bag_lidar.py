"""LiDAR sweeps out of a recording, for the frames that a BagSource makes of it: a witness where there are no labels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gdfusion_ros.assembly.messages import SECOND, payload, stamp_ns
from gdfusion_ros.assembly.rig import Rig
from gdfusion_ros.assembly.transforms import TransformBuffer, TransformError
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.geometry import Matrix
from gdfusion_ros.sources.bag import open_bag

log = logging.getLogger(__name__)

POINTS = "sensor_msgs/msg/PointCloud2"
TOLERANCE_NS = SECOND // 10
"""A sweep farther in time from a frame than this is not the frame's."""
_FLOATS = {7: "f4", 8: "f8"}


def lidar_topics(path: str | Path) -> list[str]:
    """The topics of a recording that hold point clouds."""
    with open_bag(path) as reader:
        return sorted(c.topic for c in reader.connections if c.msgtype == POINTS)


def with_lidar(
    frames: Iterable[CameraFrame], path: str | Path, rig: Rig, topic: str
) -> Iterator[CameraFrame]:
    """The frames, each with the sweep nearest to it in time where there is one within 0.1 s.

    Sweeps are placed by the recording's transforms at their own stamps. Raises UserError when the recording has no
    such topic.
    """
    if topic not in lidar_topics(path):
        raise UserError(
            f"{path} has no point clouds on {topic}; it has them on {lidar_topics(path) or 'no topic'}"
        )
    sweeps = _sweeps(path, rig, topic)
    before, after = None, next(sweeps, None)
    for frame in frames:
        while after is not None and after[0] <= frame.stamp_ns:
            before, after = after, next(sweeps, None)
        near = [s for s in (before, after) if s is not None and abs(s[0] - frame.stamp_ns) <= TOLERANCE_NS]
        if not near:
            yield frame
            continue
        _, points, ego_from_lidar, world_from_ego = min(
            near, key=lambda sweep: abs(sweep[0] - frame.stamp_ns)
        )
        yield replace(
            frame, lidar_points=points, ego_from_lidar=ego_from_lidar, world_from_ego_at_lidar=world_from_ego
        )


def points_of(message: Any) -> npt.NDArray[np.float32]:
    """(N, 3) finite points of a PointCloud2 in its own frame.

    Raises ValueError when its fields or sizes contradict each other.
    """
    fields = {field.name: field for field in message.fields}
    for axis in "xyz":
        if axis not in fields or fields[axis].datatype not in _FLOATS:
            raise ValueError(f"a point cloud without a floating-point field {axis}")
    order = ">" if message.is_bigendian else "<"
    names = list("xyz")
    formats = [order + _FLOATS[fields[axis].datatype] for axis in names]
    offsets = [fields[axis].offset for axis in names]
    count, step = message.width * message.height, message.point_step
    data = payload(message.data)
    ends = [offset + np.dtype(kind).itemsize for offset, kind in zip(offsets, formats, strict=True)]
    if step < max(ends) or len(data) < count * step:
        raise ValueError(f"a point cloud of {count} points of {step} bytes in {len(data)} bytes")
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})
    cloud = np.frombuffer(data[: count * step].tobytes(), dtype)
    points = np.stack([cloud[axis].astype(np.float32) for axis in names], axis=1)
    return points[np.isfinite(points).all(axis=1)]


def _sweeps(
    path: str | Path, rig: Rig, topic: str
) -> Iterator[tuple[int, npt.NDArray[np.float32], Matrix, Matrix]]:
    """Stamp, points, ``ego_from_lidar`` and ``world_from_ego`` of each sweep, in the order recorded.

    A sweep waits for the transforms recorded after it, as the poses at its own time may come later.
    """
    buffer = TransformBuffer()
    waiting: list[tuple[int, str, npt.NDArray[np.float32]]] = []
    with open_bag(path) as reader:
        wanted = [c for c in reader.connections if c.topic in (topic, "/tf", "/tf_static")]
        for connection, _, data in reader.messages(wanted):
            message: Any = reader.deserialize(data, connection.msgtype)
            if connection.topic != topic:
                _remember(buffer, message, static=connection.topic == "/tf_static")
            else:
                try:
                    waiting.append(
                        (stamp_ns(message.header.stamp), message.header.frame_id, points_of(message))
                    )
                except ValueError as error:
                    log.warning("%s: %s; left out", topic, error)
            while waiting:
                stamp, frame_id, points = waiting[0]
                try:
                    ego_from_lidar = buffer.lookup(rig.base_frame, frame_id, stamp)
                    world_from_ego = buffer.lookup(rig.fixed_frame, rig.base_frame, stamp)
                except TransformError as error:
                    if error.may_come:
                        break
                    log.warning("sweep at %d ns left out: %s", waiting.pop(0)[0], error)
                    continue
                waiting.pop(0)
                yield stamp, points, ego_from_lidar, world_from_ego


def _remember(buffer: TransformBuffer, message: Any, static: bool) -> None:
    for one in message.transforms:
        try:
            buffer.set_message(one, static)
        except ValueError as error:
            log.warning("a transform is left out: %s", error)
