"""The node's output messages back into an Occupancy. Takes messages of rclpy (live) and of rosbags (recorded) alike."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from gdfusion_ros.assembly.messages import Message, payload, stamp_ns
from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.geometry import Matrix
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import LABEL_SETS

MAX_CELLS = 64_000_000
"""Larger grids are refused: a message of a few bytes could ask for any amount of memory."""
ZLIB = 1


def occupancy_of(
    message: Message, world_from_ego: Matrix | None = None, flow_message: Message | None = None
) -> Occupancy:
    """A SemanticOccupancy, with the VoxelFlow that belongs to it if there is one, as an Occupancy.

    The message says nothing of the ego pose; the identity stands for it unless it is given. Raises ValueError when a
    message contradicts itself, is too large, or its label set is not known here.
    """
    if message.label_set not in LABEL_SETS:
        raise ValueError(f"the label set {message.label_set!r} is not known")
    grid = _grid(message)
    model, _, weights = str(message.model_id).partition(" ")
    cameras = tuple(str(name) for name in message.cameras)
    return Occupancy(
        labels=_cells(message, message.labels, grid),
        grid=grid,
        label_set=LABEL_SETS[message.label_set],
        stamp_ns=stamp_ns(message.header.stamp),
        sequence=int(message.sequence),
        history_frames=int(message.history_frames),
        cameras=cameras,
        cameras_used=tuple(bool(int(message.cameras_used) >> i & 1) for i in range(len(cameras))),
        model=model,
        weights=weights,
        world_from_ego=np.eye(4) if world_from_ego is None else world_from_ego,
        confidence=_cells(message, message.confidence, grid) if len(message.confidence) else None,
        flow=None if flow_message is None else flow_of(flow_message),
    )


def flow_of(message: Message) -> Flow:
    """A VoxelFlow as a Flow over its grid. Raises ValueError when the message contradicts itself."""
    grid = _grid(message)
    vectors = np.stack(
        [np.asarray(getattr(message, axis), dtype=np.float32) for axis in ("vx", "vy", "vz")], axis=-1
    )
    numbers = np.arange(grid.cells) if message.dense else np.asarray(message.indices, dtype=np.int64)
    if len(numbers) != len(vectors) or (len(numbers) and numbers.max() >= grid.cells):
        raise ValueError(f"{len(vectors)} vectors for {len(numbers)} cells of {grid.cells}")
    if not np.isfinite(vectors).all():
        raise ValueError("a vector is not finite")
    # The message counts cells x fastest, then y, then z.
    x, y, _ = grid.shape
    at = (numbers % x, numbers // x % y, numbers // (x * y))
    field = np.zeros((*grid.shape, 3), dtype=np.float32)
    valid = np.zeros(grid.shape, dtype=bool)
    field[at] = vectors
    valid[at] = True
    return Flow(FlowKind(int(message.kind)), field, valid)


def _grid(message: Message) -> VoxelGrid:
    shape = (int(message.size_x), int(message.size_y), int(message.size_z))
    if min(shape) < 1 or math.prod(shape) > MAX_CELLS:
        raise ValueError(f"a grid of {shape} cells")
    corner, size = message.origin.position, message.cell_size
    numbers = (corner.x, corner.y, corner.z, size.x, size.y, size.z)
    if not all(math.isfinite(value) for value in numbers):
        raise ValueError("the grid's place is not finite")
    return VoxelGrid((corner.x, corner.y, corner.z), (size.x, size.y, size.z), shape)


def _cells(message: Message, data: Any, grid: VoxelGrid) -> npt.NDArray[np.uint8]:
    """(X, Y, Z) of a field with one byte a cell, as it is or packed."""
    content = payload(data)
    if message.encoding == ZLIB:
        try:
            content = payload(zlib.decompressobj().decompress(content.tobytes(), grid.cells + 1))
        except zlib.error as error:
            raise ValueError(f"a grid that cannot be unpacked: {error}") from error
    if len(content) != grid.cells:
        raise ValueError(f"{len(content)} values for {grid.cells} cells")
    x, y, z = grid.shape
    return content.reshape(z, y, x).transpose(2, 1, 0)
