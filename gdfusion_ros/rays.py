"""Rays through a voxel grid: where the first occupied cell is, and which cells lie on the way.

The walk from cell to cell is Amanatides and Woo's (1987), compiled by numba: a frame of RayIoU casts some 220,000
rays. Depths are exact distances from the origin to where the ray enters the first occupied cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from gdfusion_ros.grid import VoxelGrid

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Hits:
    """Where rays ended, one entry a ray."""

    depth: Floats
    """(N,) metres to the face through which the first occupied cell is entered (0 when the origin lies in one);
    for rays that hit nothing, to where they leave the grid."""
    cell: npt.NDArray[np.int32]
    """(N, 3) the cell hit; -1 where nothing was."""

    @property
    def hit(self) -> npt.NDArray[np.bool_]:
        """(N,) whether anything was hit."""
        return self.cell[:, 0] >= 0


def first_hits(occupied: npt.NDArray[np.bool_], grid: VoxelGrid, origins: Floats, directions: Floats) -> Hits:
    """Cast rays (N, 3) of unit length from origins (N, 3), both in the grid's frame in metres.

    ``occupied`` is (X, Y, Z). An origin outside the grid is fine: its ray begins where it enters the grid.
    """
    depth = np.empty(len(directions))
    cell = np.empty((len(directions), 3), dtype=np.int32)
    _first_hits(
        np.ascontiguousarray(occupied),
        np.asarray(grid.minimum),
        np.asarray(grid.cell_size),
        np.ascontiguousarray(origins, dtype=np.float64),
        np.ascontiguousarray(directions, dtype=np.float64),
        depth,
        cell,
    )
    return Hits(depth, cell)


def passed_cells(
    occupied: npt.NDArray[np.bool_], grid: VoxelGrid, origin: Floats, points: Floats
) -> tuple[int, int]:
    """Cells crossed before the cell of each point (M, 3), seen from ``origin`` (3,), and how many of them are free.

    Neither the point's own cell nor the one before it counts, since a surface seldom ends at a cell's face. Cells
    crossed by several rays count once for each.
    """
    crossed, free = _passed_cells(
        np.ascontiguousarray(occupied),
        np.asarray(grid.minimum),
        np.asarray(grid.cell_size),
        np.ascontiguousarray(origin, dtype=np.float64),
        np.ascontiguousarray(points, dtype=np.float64),
    )
    return int(crossed), int(free)


@numba.njit(cache=True)
def _enter(origin, direction, low, high):  # type: ignore[no-untyped-def]
    """Distances at which a ray enters and leaves the box; enter > leave when it misses."""
    near, far = 0.0, np.inf
    for axis in range(3):
        if direction[axis] == 0.0:
            if origin[axis] < low[axis] or origin[axis] >= high[axis]:
                return 1.0, 0.0
            continue
        a = (low[axis] - origin[axis]) / direction[axis]
        b = (high[axis] - origin[axis]) / direction[axis]
        near = max(near, min(a, b))
        far = min(far, max(a, b))
    return near, far


@numba.njit(cache=True)
def _start(origin, direction, near, low, size, shape, cell, step, t_next, t_step):  # type: ignore[no-untyped-def]
    """Fill in the walk's first cell and, per axis, the direction, the distance to the next face and between faces."""
    for axis in range(3):
        at = (origin[axis] + near * direction[axis] - low[axis]) / size[axis]
        cell[axis] = min(max(int(np.floor(at)), 0), shape[axis] - 1)
        if direction[axis] > 0.0:
            step[axis] = 1
            t_next[axis] = (low[axis] + (cell[axis] + 1) * size[axis] - origin[axis]) / direction[axis]
            t_step[axis] = size[axis] / direction[axis]
        elif direction[axis] < 0.0:
            step[axis] = -1
            t_next[axis] = (low[axis] + cell[axis] * size[axis] - origin[axis]) / direction[axis]
            t_step[axis] = -size[axis] / direction[axis]
        else:
            step[axis] = 0
            t_next[axis] = np.inf
            t_step[axis] = np.inf


@numba.njit(cache=True)
def _first_hits(occupied, low, size, origins, directions, depth, hit):  # type: ignore[no-untyped-def]
    shape = np.array(occupied.shape)
    high = low + shape * size
    cell = np.empty(3, np.int64)
    step = np.empty(3, np.int64)
    t_next = np.empty(3)
    t_step = np.empty(3)
    for ray in range(len(directions)):
        hit[ray] = -1
        near, far = _enter(origins[ray], directions[ray], low, high)
        depth[ray] = far
        if near > far:
            depth[ray] = 0.0
            continue
        _start(origins[ray], directions[ray], near, low, size, shape, cell, step, t_next, t_step)
        t = near
        while True:
            if occupied[cell[0], cell[1], cell[2]]:
                depth[ray] = t
                hit[ray, 0] = cell[0]
                hit[ray, 1] = cell[1]
                hit[ray, 2] = cell[2]
                break
            axis = 0
            if t_next[1] < t_next[axis]:
                axis = 1
            if t_next[2] < t_next[axis]:
                axis = 2
            t = t_next[axis]
            cell[axis] += step[axis]
            t_next[axis] += t_step[axis]
            if cell[axis] < 0 or cell[axis] >= shape[axis]:
                break


@numba.njit(cache=True)
def _passed_cells(occupied, low, size, origin, points):  # type: ignore[no-untyped-def]
    shape = np.array(occupied.shape)
    high = low + shape * size
    cell = np.empty(3, np.int64)
    step = np.empty(3, np.int64)
    t_next = np.empty(3)
    t_step = np.empty(3)
    direction = np.empty(3)
    crossed = 0
    free = 0
    for ray in range(len(points)):
        distance = np.sqrt(((points[ray] - origin) ** 2).sum())
        if distance == 0.0:
            continue
        for axis in range(3):
            direction[axis] = (points[ray, axis] - origin[axis]) / distance
        near, far = _enter(origin, direction, low, high)
        if near > far:
            continue
        _start(origin, direction, near, low, size, shape, cell, step, t_next, t_step)
        # One cell behind the walk, so that the last cell before the point's own is never counted.
        waiting = -1
        while True:
            axis = 0
            if t_next[1] < t_next[axis]:
                axis = 1
            if t_next[2] < t_next[axis]:
                axis = 2
            if t_next[axis] > distance:
                break
            if waiting >= 0:
                crossed += 1
                free += waiting
            waiting = 0 if occupied[cell[0], cell[1], cell[2]] else 1
            cell[axis] += step[axis]
            t_next[axis] += t_step[axis]
            if cell[axis] < 0 or cell[axis] >= shape[axis]:
                # The point lies outside: the cell at the rim is far from it and counts.
                crossed += 1
                free += waiting
                break
    return crossed, free
