"""Exact ground truth over any voxel grid: labels, velocities, what the cameras see now, and what they saw before."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from gdfusion_ros.geometry import Matrix
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.sources.world.cast import COLUMN, FAR, GROUND, PART
from gdfusion_ros.sources.world.city import (
    COLUMN_CELL,
    COLUMN_CELLS,
    GROUND_CELL,
    GROUND_CELLS,
    GROUND_CLASS,
    LAYERS,
    City,
)
from gdfusion_ros.sources.world.layout import PERIOD
from gdfusion_ros.sources.world.objects import KINDS, PartTable, Thing
from gdfusion_ros.sources.world.traffic import Poses

SAMPLES = (0.02, 0.5, 0.98)
"""Where a cell is sampled along each axis, in cells: whatever reaches into it is in it, and so a camera never sees a
surface in a free cell. In cells of 0.8 m nothing that the world is made of fits between two samples."""
_GROUND_DEPTH = 0.05
"""The ground's label goes to the cell that holds the point this far below the surface, in metres."""


@dataclass(frozen=True)
class GroundTruth:
    """What is true at a frame's anchor exposure, over a grid in the ego frame of that instant."""

    grid: VoxelGrid
    labels: npt.NDArray[np.uint8]
    """(X, Y, Z) ids of labels.OCC3D."""
    velocity: npt.NDArray[np.float32]
    """(X, Y, Z, 3) metres per second over ground in the grid's axes; zero where nothing moves."""
    visible: npt.NDArray[np.bool_]
    """(X, Y, Z): a camera ray passes through the cell or ends in it."""
    hidden_seen_before: npt.NDArray[np.bool_]
    """(X, Y, Z): not visible now, but this part of the world was visible in an earlier frame of the sequence."""
    depth: tuple[npt.NDArray[np.float32], ...]
    """Per view (H, W): metres along the optical axis, infinite where the sky is."""
    pixel_labels: tuple[npt.NDArray[np.uint8], ...]
    """Per view (H, W): id of what the pixel shows, free where the sky is."""
    weather: str


@numba.njit(cache=True, nogil=True)
def static_labels(
    world_from_grid: npt.NDArray[np.float64],
    minimum: npt.NDArray[np.float64],
    cell: npt.NDArray[np.float64],
    columns: npt.NDArray[np.uint64],
    style_label: npt.NDArray[np.uint8],
    style: npt.NDArray[np.uint8],
    ground: npt.NDArray[np.uint8],
    ground_class: npt.NDArray[np.uint8],
    free: int,
    labels: npt.NDArray[np.uint8],
) -> None:
    """Fill ``labels`` (X, Y, Z) with city and ground: a cell is solid as soon as one of its samples is."""
    sx, sy, sz = labels.shape
    votes = np.zeros(256, np.int64)
    for i in range(sx):
        for j in range(sy):
            for k in range(sz):
                solid, label = 0, free
                for sample in range(27):
                    gx = minimum[0] + (i + SAMPLES[sample % 3]) * cell[0]
                    gy = minimum[1] + (j + SAMPLES[sample // 3 % 3]) * cell[1]
                    gz = minimum[2] + (k + SAMPLES[sample // 9]) * cell[2]
                    x, y, z = _apply(world_from_grid, gx, gy, gz)
                    layer = int(np.floor(z / COLUMN_CELL))
                    if layer < 0 or layer >= LAYERS:
                        continue
                    ix = int(np.floor(x / COLUMN_CELL)) & (COLUMN_CELLS - 1)
                    iy = int(np.floor(y / COLUMN_CELL)) & (COLUMN_CELLS - 1)
                    if (columns[ix, iy] >> np.uint64(layer)) & np.uint64(1):
                        solid += 1
                        votes[style_label[style[ix, iy]]] += 1
                if solid > 0:
                    best = 0
                    for c in range(free):
                        if votes[c] > best:
                            best, label = votes[c], c
                    votes[:] = 0
                else:
                    gx = minimum[0] + (i + 0.5) * cell[0]
                    gy = minimum[1] + (j + 0.5) * cell[1]
                    gz = minimum[2] + (k + 0.5) * cell[2]
                    x, y, z = _apply(world_from_grid, gx, gy, gz)
                    if abs(z + _GROUND_DEPTH) <= cell[2] / 2:
                        ix = int(np.floor(x / GROUND_CELL)) & (GROUND_CELLS - 1)
                        iy = int(np.floor(y / GROUND_CELL)) & (GROUND_CELLS - 1)
                        label = ground_class[ground[ix, iy]]
                labels[i, j, k] = label


@numba.njit(cache=True, nogil=True, inline="always")
def _apply(matrix, x, y, z):  # type: ignore[no-untyped-def]
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3],
        matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3],
    )


@numba.njit(cache=True, nogil=True)
def stamp_boxes(
    grid_from_box: npt.NDArray[np.float64],
    half: npt.NDArray[np.float64],
    box_label: npt.NDArray[np.uint8],
    box_velocity: npt.NDArray[np.float64],
    minimum: npt.NDArray[np.float64],
    cell: npt.NDArray[np.float64],
    labels: npt.NDArray[np.uint8],
    velocity: npt.NDArray[np.float32],
) -> None:
    """Write boxes (B, 4, 4), (B, 3) over ``labels``, later ones over earlier ones, as in ``static_labels``."""
    sx, sy, sz = labels.shape
    for b in range(len(half)):
        m = grid_from_box[b]
        first, last = np.zeros(3, np.int64), np.zeros(3, np.int64)
        for a in range(3):
            reach = abs(m[a, 0]) * half[b, 0] + abs(m[a, 1]) * half[b, 1] + abs(m[a, 2]) * half[b, 2]
            first[a] = int(np.floor((m[a, 3] - reach - minimum[a]) / cell[a]))
            last[a] = int(np.floor((m[a, 3] + reach - minimum[a]) / cell[a]))
        for i in range(max(first[0], 0), min(last[0], sx - 1) + 1):
            for j in range(max(first[1], 0), min(last[1], sy - 1) + 1):
                for k in range(max(first[2], 0), min(last[2], sz - 1) + 1):
                    inside = False
                    for sample in range(27):
                        x = minimum[0] + (i + SAMPLES[sample % 3]) * cell[0] - m[0, 3]
                        y = minimum[1] + (j + SAMPLES[sample // 3 % 3]) * cell[1] - m[1, 3]
                        z = minimum[2] + (k + SAMPLES[sample // 9]) * cell[2] - m[2, 3]
                        if (
                            abs(m[0, 0] * x + m[1, 0] * y + m[2, 0] * z) <= half[b, 0]
                            and abs(m[0, 1] * x + m[1, 1] * y + m[2, 1] * z) <= half[b, 1]
                            and abs(m[0, 2] * x + m[1, 2] * y + m[2, 2] * z) <= half[b, 2]
                        ):
                            inside = True
                    if inside:
                        labels[i, j, k] = box_label[b]
                        for a in range(3):
                            velocity[i, j, k, a] = box_velocity[b, a]


@numba.njit(cache=True, nogil=True)
def label_pixels(
    origin: npt.NDArray[np.float64],
    directions: npt.NDArray[np.float64],
    depth: npt.NDArray[np.float32],
    what: npt.NDArray[np.uint8],
    face: npt.NDArray[np.uint8],
    part: npt.NDArray[np.int32],
    part_label: npt.NDArray[np.uint8],
    style_label: npt.NDArray[np.uint8],
    style: npt.NDArray[np.uint8],
    ground: npt.NDArray[np.uint8],
    ground_class: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
) -> None:
    """Write the id of what each pixel shows into ``labels`` (H, W); where the sky is, they stay as they are.

    ``origin`` (3,), ``directions`` (H, W, 3), ``what``, ``face`` and ``part`` as the casts have them.
    """
    for v in range(labels.shape[0]):
        for u in range(labels.shape[1]):
            t = float(depth[v, u])
            x, y = origin[0] + t * directions[v, u, 0], origin[1] + t * directions[v, u, 1]
            if what[v, u] == PART:
                labels[v, u] = part_label[part[v, u]]
            elif what[v, u] == GROUND:
                ix = int(np.floor(x / GROUND_CELL)) & (GROUND_CELLS - 1)
                iy = int(np.floor(y / GROUND_CELL)) & (GROUND_CELLS - 1)
                labels[v, u] = ground_class[ground[ix, iy]]
            elif what[v, u] == COLUMN:
                # A touch beyond the surface, into the column that was hit.
                x += 0.05 * np.sign(directions[v, u, 0]) * (face[v, u] == 0)
                y += 0.05 * np.sign(directions[v, u, 1]) * (face[v, u] == 1)
                ix = int(np.floor(x / COLUMN_CELL)) & (COLUMN_CELLS - 1)
                iy = int(np.floor(y / COLUMN_CELL)) & (COLUMN_CELLS - 1)
                labels[v, u] = style_label[style[ix, iy]]


@numba.njit(cache=True, nogil=True)
def mark_rays(
    origin: npt.NDArray[np.float64],
    directions: npt.NDArray[np.float64],
    depth: npt.NDArray[np.float32],
    stride: int,
    visible: npt.NDArray[np.bool_],
) -> None:
    """Mark the cells that a camera's rays pass, up to and including the one they end in.

    ``origin`` (3,) and ``directions`` (H, W, 3) are in cells of the grid; every ``stride``-th pixel is followed.
    """
    sx, sy, sz = visible.shape
    step, pace, following, index = np.zeros(3, np.int64), np.zeros(3), np.zeros(3), np.zeros(3, np.int64)
    for v in range(0, depth.shape[0], stride):
        for u in range(0, depth.shape[1], stride):
            # A touch beyond the surface, so that the cell behind it is the one the ray ends in.
            limit = min(float(depth[v, u]), FAR) + 0.02
            for a in range(3):
                d = directions[v, u, a]
                index[a] = int(np.floor(origin[a]))
                step[a] = 1 if d > 0 else -1
                pace[a] = 1.0 / abs(d) if abs(d) > 1e-12 else 1e30
                following[a] = pace[a] * ((index[a] + 1 - origin[a]) if d > 0 else (origin[a] - index[a]))
            t = 0.0
            while t <= limit:
                if 0 <= index[0] < sx and 0 <= index[1] < sy and 0 <= index[2] < sz:
                    visible[index[0], index[1], index[2]] = True
                a = 0
                if following[1] < following[a]:
                    a = 1
                if following[2] < following[a]:
                    a = 2
                t = following[a]
                following[a] += pace[a]
                index[a] += step[a]
                if (step[a] < 0 and index[a] < 0) or (step[a] > 0 and index[a] >= visible.shape[a]):
                    break


@numba.njit(cache=True, nogil=True)
def seen_in(
    earlier_from_now: npt.NDArray[np.float64],
    earlier_visible: npt.NDArray[np.bool_],
    visible: npt.NDArray[np.bool_],
    hidden: npt.NDArray[np.bool_],
) -> None:
    """Mark in ``hidden`` the cells that are not visible now but were in one earlier frame.

    ``earlier_from_now`` (4, 4) maps cell coordinates to those of the earlier grid.
    """
    sx, sy, sz = visible.shape
    for i in range(sx):
        for j in range(sy):
            for k in range(sz):
                if visible[i, j, k] or hidden[i, j, k]:
                    continue
                x, y, z = _apply(earlier_from_now, i + 0.5, j + 0.5, k + 0.5)
                a, b, c = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
                if 0 <= a < sx and 0 <= b < sy and 0 <= c < sz and earlier_visible[a, b, c]:
                    hidden[i, j, k] = True


def label_grid(
    grid: VoxelGrid, city: City, things: list[Thing], parts: PartTable, poses: Poses, world_from_ego: Matrix
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Labels (X, Y, Z) and velocities (X, Y, Z, 3) of a grid in the ego frame at ``world_from_ego``."""
    minimum, cell = np.asarray(grid.minimum, dtype=np.float64), np.asarray(grid.cell_size, dtype=np.float64)
    labels = np.empty(grid.shape, dtype=np.uint8)
    velocity = np.zeros((*grid.shape, 3), dtype=np.float32)
    static_labels(
        world_from_ego, minimum, cell, city.columns, city.style_label, city.style, city.ground, GROUND_CLASS,
        OCC3D.free, labels,
    )  # fmt: skip
    centers, halves, owners = _truth_boxes(things, parts)
    position = poses.position - world_from_ego[:2, 3]
    position -= PERIOD * np.round(position / PERIOD)
    near = np.abs(position).max(1) < np.abs([grid.minimum[:2], grid.maximum[:2]]).max() * 1.5 + 8.0
    chosen = np.flatnonzero(near[owners])
    # Small things last: a pedestrian beside a bus keeps its cells.
    chosen = chosen[np.argsort([-np.prod(things[owners[b]].size) for b in chosen], kind="stable")]
    ego_from_world = world_from_ego[:3, :3].T
    boxes, moves = np.zeros((len(chosen), 4, 4)), np.zeros((len(chosen), 3))
    for row, b in enumerate(chosen):
        owner = owners[b]
        c, s = np.cos(poses.yaw[owner]), np.sin(poses.yaw[owner])
        turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        middle = np.array([*position[owner], -world_from_ego[2, 3]]) + turn @ centers[b]
        boxes[row, :3, :3] = ego_from_world @ turn
        boxes[row, :3, 3] = ego_from_world @ middle
        moves[row] = ego_from_world @ np.array([*poses.velocity[owner], 0.0])
    names = np.array([KINDS[things[owners[b]].kind].label for b in chosen], dtype=np.uint8)
    stamp_boxes(boxes, halves[chosen], names, moves, minimum, cell, labels, velocity)
    return labels, velocity


def _truth_boxes(
    things: list[Thing], parts: PartTable
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Centres, half sizes and owners of the boxes that labels are made of: parts, or whole small objects."""
    whole = np.array([KINDS[thing.kind].whole for thing in things], dtype=bool)
    by_part = ~whole[parts.owner] if len(parts.owner) else np.zeros(0, dtype=bool)
    small = np.flatnonzero(whole)
    sizes = np.array([things[i].size for i in small]).reshape(-1, 3)
    lift = sizes * np.array([0.0, 0.0, 0.5])
    return (
        np.concatenate([parts.center[by_part], lift]),
        np.concatenate([parts.half[by_part], sizes / 2]),
        np.concatenate([parts.owner[by_part].astype(np.int64), small]),
    )
