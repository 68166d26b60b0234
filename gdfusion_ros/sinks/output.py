"""Occupancies as an output recording: what the node would have published, made offline and without ROS."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from gdfusion_ros.assembly.messages import SECOND
from gdfusion_ros.frame import Flow, Occupancy
from gdfusion_ros.geometry import Matrix, quaternion
from gdfusion_ros.labels import UNKNOWN, LabelSet
from gdfusion_ros.sinks.recording import Recording, message_types

RAW, ZLIB = 0, 1
CELLS_OCCUPIED = 1


class OccupancyRecorder:
    """Writes occupancies into a recording: grid, flow of the occupied cells, label info, and /tf with the ego pose."""

    def __init__(
        self, recording: Recording, name: str = "/gdfusion", frame: str = "base_link", world: str = "odom"
    ) -> None:
        """``name`` stands before the topics, as the node's does; ``frame`` is the grid's, ``world`` the fixed one."""
        self._recording = recording
        self._name, self._frame, self._world = name, frame, world
        self._types: Any = message_types().types
        self._label_set: LabelSet | None = None

    def write(self, occupancy: Occupancy) -> None:
        """Write one occupancy, at its own stamp."""
        stamp = occupancy.stamp_ns
        if occupancy.label_set != self._label_set:
            self._label_set = occupancy.label_set
            self._put("label_info", "LabelInfo", self._label_info(occupancy.label_set, stamp), stamp)
        self._pose(occupancy.world_from_ego, stamp)
        self._put("occupancy", "SemanticOccupancy", self._grid(occupancy), stamp)
        if occupancy.flow is not None:
            self._put("flow", "VoxelFlow", self._flow(occupancy, occupancy.flow), stamp)

    def _grid(self, occupancy: Occupancy) -> Any:
        confidence = occupancy.confidence
        return self._types["gdfusion_ros/msg/SemanticOccupancy"](
            header=self._header(occupancy.stamp_ns, self._frame),
            **self._geometry(occupancy),
            encoding=ZLIB,
            labels=_packed(occupancy.labels),
            confidence=np.zeros(0, np.uint8) if confidence is None else _packed(confidence),
            free_label=occupancy.label_set.free,
            label_set=occupancy.label_set.name,
            label_set_version=occupancy.label_set.version,
            model_id=f"{occupancy.model} {occupancy.weights}",
            sequence=occupancy.sequence,
            history_frames=occupancy.history_frames,
            cameras=list(occupancy.cameras),
            cameras_used=sum(1 << i for i, used in enumerate(occupancy.cameras_used) if used),
        )

    def _flow(self, occupancy: Occupancy, flow: Flow) -> Any:
        occupied = (occupancy.labels != occupancy.label_set.free) & (occupancy.labels != UNKNOWN)
        # Messages count cells x fastest, then y, then z.
        known = flow.valid & np.isfinite(flow.vectors).all(axis=-1)
        numbers = np.flatnonzero((occupied & known).transpose(2, 1, 0))
        x, y, _ = occupancy.grid.shape
        vectors = flow.vectors[numbers % x, numbers // x % y, numbers // (x * y)]
        return self._types["gdfusion_ros/msg/VoxelFlow"](
            header=self._header(occupancy.stamp_ns, self._frame),
            **self._geometry(occupancy),
            kind=flow.kind.value,
            cells=CELLS_OCCUPIED,
            dense=False,
            indices=numbers.astype(np.uint32),
            vx=np.ascontiguousarray(vectors[:, 0], dtype=np.float32),
            vy=np.ascontiguousarray(vectors[:, 1], dtype=np.float32),
            vz=np.ascontiguousarray(vectors[:, 2], dtype=np.float32),
            model_id=f"{occupancy.model} {occupancy.weights}",
        )

    def _label_info(self, label_set: LabelSet, stamp: int) -> Any:
        color = self._types["std_msgs/msg/ColorRGBA"]
        label = self._types["gdfusion_ros/msg/Label"]
        return self._types["gdfusion_ros/msg/LabelInfo"](
            header=self._header(stamp, ""),
            label_set=label_set.name,
            version=label_set.version,
            free_label=label_set.free,
            unknown_label=UNKNOWN,
            labels=[
                label(
                    id=one.id,
                    name=one.name,
                    color=color(
                        *(value / 255.0 for value in one.color), 0.0 if one.id == label_set.free else 1.0
                    ),
                    movable=one.movable,
                    ground=one.ground,
                )
                for one in sorted(label_set.labels, key=lambda one: one.id)
            ],
        )

    def _pose(self, world_from_ego: Matrix, stamp: int) -> None:
        types = self._types
        x, y, z = (float(value) for value in world_from_ego[:3, 3])
        turn = [float(value) for value in quaternion(world_from_ego)]
        transform = types["geometry_msgs/msg/TransformStamped"](
            header=self._header(stamp, self._world),
            child_frame_id=self._frame,
            transform=types["geometry_msgs/msg/Transform"](
                translation=types["geometry_msgs/msg/Vector3"](x, y, z),
                rotation=types["geometry_msgs/msg/Quaternion"](x=turn[1], y=turn[2], z=turn[3], w=turn[0]),
            ),
        )
        message = types["tf2_msgs/msg/TFMessage"](transforms=[transform])
        self._recording.write("/tf", "tf2_msgs/msg/TFMessage", message, stamp)

    def _geometry(self, occupancy: Occupancy) -> dict[str, Any]:
        types = self._types
        corner = types["geometry_msgs/msg/Point"](*(float(value) for value in occupancy.grid.minimum))
        unturned = types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
        return {
            "origin": types["geometry_msgs/msg/Pose"](position=corner, orientation=unturned),
            "cell_size": types["geometry_msgs/msg/Vector3"](
                *(float(value) for value in occupancy.grid.cell_size)
            ),
            **dict(zip(("size_x", "size_y", "size_z"), occupancy.grid.shape, strict=True)),
        }

    def _header(self, stamp: int, frame: str) -> Any:
        time = self._types["builtin_interfaces/msg/Time"](sec=stamp // SECOND, nanosec=stamp % SECOND)
        return self._types["std_msgs/msg/Header"](stamp=time, frame_id=frame)

    def _put(self, topic: str, kind: str, message: Any, stamp: int) -> None:
        self._recording.write(f"{self._name}/{topic}", f"gdfusion_ros/msg/{kind}", message, stamp)


def _packed(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A byte a cell, x fastest, as one zlib stream."""
    return np.frombuffer(
        zlib.compress(np.ascontiguousarray(values.transpose(2, 1, 0)).tobytes(), 1), np.uint8
    )
