"""Occupancies as ROS messages. Fields and byte orders are documented in msg/*.msg."""

from __future__ import annotations

import zlib
from array import array
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header

from gdfusion_ros.frame import Flow, Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import UNKNOWN, LabelSet
from gdfusion_ros.msg import Label, LabelInfo, SemanticOccupancy, VoxelFlow

Cells = Literal["all", "occupied", "movable"]

_CELLS = {
    "all": VoxelFlow.CELLS_ALL,
    "occupied": VoxelFlow.CELLS_OCCUPIED,
    "movable": VoxelFlow.CELLS_MOVABLE,
}


def time_message(stamp_ns: int) -> Time:
    """Nanoseconds as a builtin_interfaces/Time."""
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def byte_array(values: npt.NDArray[np.uint8] | bytes) -> array[int]:
    """A uint8[] field. rclpy takes an `array` as it is; a numpy array it would walk element by element (45 ms)."""
    result = array("B")
    result.frombytes(values if isinstance(values, bytes) else values.data)
    return result


def signed_byte_array(values: npt.NDArray[np.int8]) -> array[int]:
    """An int8[] field."""
    result = array("b")
    result.frombytes(np.ascontiguousarray(values).tobytes())
    return result


def occupied(occupancy: Occupancy) -> npt.NDArray[np.bool_]:
    """(X, Y, Z): cells that are neither free nor unknown."""
    return (occupancy.labels != occupancy.label_set.free) & (occupancy.labels != UNKNOWN)


def header(occupancy: Occupancy, frame: str) -> Header:
    """The header of everything that is made of an occupancy: the anchor's exposure time."""
    return Header(stamp=time_message(occupancy.stamp_ns), frame_id=frame)


def occupancy_message(
    occupancy: Occupancy, frame: str, encoding: Literal["raw", "zlib"] = "raw", confidence: bool = True
) -> SemanticOccupancy:
    """The semantic grid as a message, in ``frame``."""
    origin, cell_size = _geometry(occupancy.grid)
    pack = _PACK[encoding]
    message = SemanticOccupancy(
        header=header(occupancy, frame),
        origin=origin,
        cell_size=cell_size,
        encoding=SemanticOccupancy.ENCODING_ZLIB if encoding == "zlib" else SemanticOccupancy.ENCODING_RAW,
        labels=pack(occupancy.labels),
        free_label=occupancy.label_set.free,
        label_set=occupancy.label_set.name,
        label_set_version=occupancy.label_set.version,
        model_id=model_id(occupancy),
        sequence=occupancy.sequence,
        history_frames=occupancy.history_frames,
        cameras=list(occupancy.cameras),
        cameras_used=sum(1 << i for i, used in enumerate(occupancy.cameras_used) if used),
    )
    message.size_x, message.size_y, message.size_z = occupancy.grid.shape
    if confidence and occupancy.confidence is not None:
        message.confidence = pack(occupancy.confidence)
    return message


def flow_message(occupancy: Occupancy, flow: Flow, frame: str, cells: Cells = "occupied") -> VoxelFlow:
    """The flow as a message: the valid vectors of all, occupied or movable cells; sparse unless all cells have one."""
    origin, cell_size = _geometry(occupancy.grid)
    chosen = flow.valid
    if cells == "occupied":
        chosen = chosen & occupied(occupancy)
    elif cells == "movable":
        chosen = chosen & occupancy.label_set.table(occupancy.label_set.movable_ids)[occupancy.labels]
    # Cell numbers as the message counts them, x fastest.
    numbers = np.flatnonzero(np.ascontiguousarray(chosen.transpose(2, 1, 0)))
    rows = 3 * _array_order(occupancy.grid.shape)[numbers]
    flat = flow.vectors.reshape(-1)
    vectors = [np.take(flat, rows + axis) for axis in range(3)]
    finite = np.isfinite(vectors[0]) & np.isfinite(vectors[1]) & np.isfinite(vectors[2])
    if not finite.all():  # broken weights: what is not known is left out, as the message promises
        numbers, vectors = numbers[finite], [vector[finite] for vector in vectors]
    dense = cells == "all" and len(numbers) == occupancy.grid.cells
    message = VoxelFlow(
        header=header(occupancy, frame),
        origin=origin,
        cell_size=cell_size,
        kind=flow.kind.value,
        cells=_CELLS[cells],
        dense=dense,
        model_id=model_id(occupancy),
    )
    message.size_x, message.size_y, message.size_z = occupancy.grid.shape
    message.vx, message.vy, message.vz = (_typed("f", vector) for vector in vectors)
    if not dense:
        message.indices = _typed("I", numbers.astype(np.uint32))
    return message


def label_info_message(label_set: LabelSet, stamp: Time) -> LabelInfo:
    """What the ids stand for."""
    return LabelInfo(
        header=Header(stamp=stamp),
        label_set=label_set.name,
        version=label_set.version,
        free_label=label_set.free,
        unknown_label=UNKNOWN,
        labels=[
            Label(
                id=label.id,
                name=label.name,
                color=_color(label.color, 0.0 if label.id == label_set.free else 1.0),
                movable=label.movable,
                ground=label.ground,
            )
            for label in sorted(label_set.labels, key=lambda one: one.id)
        ],
    )


XYZ = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4")])
POINT = np.dtype(
    {
        "names": ["x", "y", "z", "rgb", "label", "confidence"],
        "formats": ["<f4", "<f4", "<f4", "<u4", "u1", "u1"],
        "offsets": [0, 4, 8, 12, 16, 17],
        "itemsize": 20,
    }
)


def points_message(occupancy: Occupancy, frame: str) -> PointCloud2:
    """The occupied cells' centres with colour (rgb as RViz packs it), label and confidence (255 where not given)."""
    cells = np.flatnonzero(occupied(occupancy))
    data, points = centers(cells, occupancy.grid, POINT)
    labels = np.take(occupancy.labels, cells)
    packed = np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    points["rgb"] = np.take(occupancy.label_set.palette().astype(np.uint32) @ packed, labels)
    points["label"] = labels
    points["confidence"] = 255 if occupancy.confidence is None else np.take(occupancy.confidence, cells)
    return cloud(data, POINT, occupancy, frame, as_float=("rgb",))


def centers(
    cells: npt.NDArray[np.int64], grid: VoxelGrid, dtype: np.dtype[np.void]
) -> tuple[array[int], npt.NDArray[np.void]]:
    """The data of a point cloud, and a view of it with x, y, z (metres) of the cells with these flat (X, Y, Z) indices.

    The rest of each point is zero, to be written through the view. Points are of whole words (4 bytes).
    """
    data = array("B", [0]) * (len(cells) * dtype.itemsize)
    words = np.frombuffer(data, dtype=np.uint32).reshape(len(cells), dtype.itemsize // 4)
    np.take(_all_centers(grid, dtype), cells, axis=0, out=words, mode="clip")  # "raise" would buffer
    return data, np.frombuffer(data, dtype=dtype)


@lru_cache(maxsize=4)
def _all_centers(grid: VoxelGrid, dtype: np.dtype[np.void]) -> npt.NDArray[np.uint32]:
    """(cells, words): every cell's centre as a point, made once: a grid's places are the same in each frame."""
    points = np.zeros(grid.shape, dtype=dtype)
    for axis in range(3):
        line = grid.minimum[axis] + (np.arange(grid.shape[axis]) + 0.5) * grid.cell_size[axis]
        points["xyz"[axis]] = np.expand_dims(line, tuple(other for other in range(3) if other != axis))
    return points.ravel().view(np.uint32).reshape(grid.cells, -1)


def cloud(
    data: array[int],
    dtype: np.dtype[np.void],
    occupancy: Occupancy,
    frame: str,
    as_float: tuple[str, ...] = (),
) -> PointCloud2:
    """A PointCloud2 of points of this form; fields in ``as_float`` are declared FLOAT32 whatever they hold."""
    assert dtype.fields is not None
    fields = [
        PointField(
            name=name,
            offset=offset,
            datatype=PointField.FLOAT32 if name in as_float else _POINT_TYPES[kind.str[1:]],
            count=1,
        )
        for name, (kind, offset, *_) in dtype.fields.items()
    ]
    return PointCloud2(
        header=header(occupancy, frame),
        height=1,
        width=len(data) // dtype.itemsize,
        fields=fields,
        is_bigendian=False,
        point_step=dtype.itemsize,
        row_step=len(data),
        data=data,
        is_dense=True,
    )


def model_id(occupancy: Occupancy) -> str:
    """The network and its weights in one string."""
    return f"{occupancy.model} {occupancy.weights}"


_POINT_TYPES = {
    "f4": PointField.FLOAT32,
    "u4": PointField.UINT32,
    "u2": PointField.UINT16,
    "u1": PointField.UINT8,
}


@lru_cache(maxsize=4)
def _array_order(shape: tuple[int, int, int]) -> npt.NDArray[np.intp]:
    """Flat (X, Y, Z) index by a message's cell number."""
    cells = np.arange(shape[0] * shape[1] * shape[2], dtype=np.intp).reshape(shape)
    return cells.transpose(2, 1, 0).ravel()


def _raw(values: npt.NDArray[np.uint8]) -> array[int]:
    return byte_array(np.ascontiguousarray(values.transpose(2, 1, 0)))


def _zlib(values: npt.NDArray[np.uint8]) -> array[int]:
    return byte_array(zlib.compress(np.ascontiguousarray(values.transpose(2, 1, 0)).tobytes(), 1))


_PACK = {"raw": _raw, "zlib": _zlib}


def _typed(code: Literal["I", "f"], values: npt.NDArray[np.generic]) -> array[int] | array[float]:
    result: array[int] | array[float] = array(code)
    result.frombytes(values.data.cast("B"))
    return result


def _geometry(grid: VoxelGrid) -> tuple[Pose, Vector3]:
    """Pose of the minimum corner and the size of a cell. Grids here lie along their frame's axes."""
    x, y, z = grid.minimum
    pose = Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(w=1.0))
    dx, dy, dz = grid.cell_size
    return pose, Vector3(x=dx, y=dy, z=dz)


def _color(rgb: tuple[int, int, int], alpha: float) -> ColorRGBA:
    r, g, b = (value / 255.0 for value in rgb)
    return ColorRGBA(r=r, g=g, b=b, a=alpha)
