"""What a camera's rays hit: columns of the city, the ground, and the boxes of objects.

A ray is ``origin + t * direction`` with a direction whose component along the optical axis is one, so ``t`` is
the depth. The city is walked column by column (Amanatides and Woo 1987); a column's 64 bits say at once whether
the ray's stretch of heights meets anything solid.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from gdfusion_ros.sources.world.city import COLUMN_CELL, COLUMN_CELLS, LAYERS

NOTHING, GROUND, COLUMN, PART = range(4)
"""What a pixel shows."""
FAR = 90.0
"""Metres beyond which the city is not drawn."""
_MASK = COLUMN_CELLS - 1


@numba.njit(cache=True, nogil=True)
def cast_city(
    columns: npt.NDArray[np.uint64],
    origin: npt.NDArray[np.float64],
    directions: npt.NDArray[np.float64],
    depth: npt.NDArray[np.float32],
    what: npt.NDArray[np.uint8],
    face: npt.NDArray[np.uint8],
) -> None:
    """Fill ``depth``, ``what`` and ``face`` (0 x, 1 y, 2 z: the axis of the surface's normal) for every pixel.

    ``origin`` (3,) has x and y in the torus's first period; ``directions`` is (H, W, 3) in the world frame.
    """
    height, width = depth.shape
    for v in range(height):
        for u in range(width):
            dx, dy, dz = directions[v, u]
            length = np.sqrt(dx * dx + dy * dy + dz * dz)
            limit = FAR / length
            hit = NOTHING
            if dz < -1e-9:
                ground = -origin[2] / dz
                if ground < 2.0 * limit:
                    hit = GROUND
                    limit = min(limit, ground)
                    depth[v, u] = ground
                    face[v, u] = 2
            t, axis = _walk(columns, origin, dx, dy, dz, limit)
            if t >= 0.0:
                hit = COLUMN
                depth[v, u] = t
                face[v, u] = axis
            elif hit == NOTHING:
                depth[v, u] = np.inf
            what[v, u] = hit


@numba.njit(cache=True, nogil=True, inline="always")
def _walk(
    columns: npt.NDArray[np.uint64],
    origin: npt.NDArray[np.float64],
    dx: float,
    dy: float,
    dz: float,
    limit: float,
) -> tuple[float, int]:
    """Depth and normal axis of the first solid cell before ``limit``, or (-1, 0)."""
    x, y = origin[0] / COLUMN_CELL, origin[1] / COLUMN_CELL
    ix, iy = int(np.floor(x)), int(np.floor(y))
    step_x, step_y = (1 if dx > 0 else -1), (1 if dy > 0 else -1)
    pace_x = COLUMN_CELL / abs(dx) if abs(dx) > 1e-12 else 1e30
    pace_y = COLUMN_CELL / abs(dy) if abs(dy) > 1e-12 else 1e30
    next_x = pace_x * ((ix + 1 - x) if dx > 0 else (x - ix))
    next_y = pace_y * ((iy + 1 - y) if dy > 0 else (y - iy))
    t, axis = 0.0, 0
    while t < limit:
        leave = min(next_x, next_y, limit)
        bits = columns[ix & _MASK, iy & _MASK]
        if bits != np.uint64(0):
            z_in, z_out = (origin[2] + t * dz) / COLUMN_CELL, (origin[2] + leave * dz) / COLUMN_CELL
            first = int(np.floor(z_in))
            last = int(np.floor(z_out))
            low, high = max(min(first, last), 0), min(max(first, last), LAYERS - 1)
            if low <= high:
                span = (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(LAYERS - 1 - (high - low))) << np.uint64(
                    low
                )
                if bits & span:
                    if 0 <= first < LAYERS and (bits >> np.uint64(first)) & np.uint64(1):
                        return t, axis
                    layer = low if dz > 0 else high
                    move = 1 if dz > 0 else -1
                    while not (bits >> np.uint64(layer)) & np.uint64(1):
                        layer += move
                    edge = layer if dz > 0 else layer + 1
                    return (edge * COLUMN_CELL - origin[2]) / dz, 2
        if dz > 0 and origin[2] + t * dz > LAYERS * COLUMN_CELL:
            return -1.0, 0
        if next_x < next_y:
            t, axis = next_x, 0
            next_x += pace_x
            ix += step_x
        else:
            t, axis = next_y, 1
            next_y += pace_y
            iy += step_y
    return -1.0, 0


@numba.njit(cache=True, nogil=True)
def cast_parts(
    center: npt.NDArray[np.float64],
    cosine: npt.NDArray[np.float64],
    sine: npt.NDArray[np.float64],
    half: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    camera_from_world: npt.NDArray[np.float64],
    focal: npt.NDArray[np.float64],
    directions: npt.NDArray[np.float64],
    depth: npt.NDArray[np.float32],
    what: npt.NDArray[np.uint8],
    face: npt.NDArray[np.uint8],
    part: npt.NDArray[np.int32],
) -> None:
    """Put every part in front of what the pixels show so far. ``focal`` is (fx, fy, cx, cy) of these pixels."""
    height, width = depth.shape
    for k in range(len(center)):
        u0, u1, v0, v1 = _rectangle(
            center[k], cosine[k], sine[k], half[k], origin, camera_from_world, focal, width, height
        )
        if u0 > u1 or v0 > v1:
            continue
        ox, oy, oz = origin[0] - center[k, 0], origin[1] - center[k, 1], origin[2] - center[k, 2]
        c, s = cosine[k], sine[k]
        px, py = c * ox + s * oy, -s * ox + c * oy
        for v in range(v0, v1 + 1):
            for u in range(u0, u1 + 1):
                wx, wy, wz = directions[v, u]
                dx, dy = c * wx + s * wy, -s * wx + c * wy
                near, far, axis = 0.0, float(depth[v, u]), 0
                for a in range(3):
                    o, d = (px, dx) if a == 0 else (py, dy) if a == 1 else (oz, wz)
                    if abs(d) < 1e-12:
                        if abs(o) > half[k, a]:
                            far = -1.0
                        continue
                    t0, t1 = (-half[k, a] - o) / d, (half[k, a] - o) / d
                    if t0 > t1:
                        t0, t1 = t1, t0
                    if t0 > near:
                        near, axis = t0, a
                    far = min(far, t1)
                if 0.05 < near < far:
                    depth[v, u] = near
                    what[v, u] = PART
                    face[v, u] = axis
                    part[v, u] = k


@numba.njit(cache=True, nogil=True)
def _rectangle(center, cosine, sine, half, origin, camera_from_world, focal, width, height):  # type: ignore[no-untyped-def]
    """The pixels that a box may cover: (u0, u1, v0, v1), empty where u0 > u1."""
    u0, u1, v0, v1, behind = 1e9, -1e9, 1e9, -1e9, 0
    for corner in range(8):
        lx = half[0] if corner & 1 else -half[0]
        ly = half[1] if corner & 2 else -half[1]
        lz = half[2] if corner & 4 else -half[2]
        x = center[0] + cosine * lx - sine * ly - origin[0]
        y = center[1] + sine * lx + cosine * ly - origin[1]
        z = center[2] + lz - origin[2]
        depth = camera_from_world[2, 0] * x + camera_from_world[2, 1] * y + camera_from_world[2, 2] * z
        if depth < 0.1:
            behind += 1
            continue
        u = (
            focal[0]
            * (camera_from_world[0, 0] * x + camera_from_world[0, 1] * y + camera_from_world[0, 2] * z)
            / depth
        )
        v = (
            focal[1]
            * (camera_from_world[1, 0] * x + camera_from_world[1, 1] * y + camera_from_world[1, 2] * z)
            / depth
        )
        u0, u1 = min(u0, u + focal[2]), max(u1, u + focal[2])
        v0, v1 = min(v0, v + focal[3]), max(v1, v + focal[3])
    if behind == 8:
        return 1, 0, 1, 0
    if behind > 0:  # it reaches past the camera: any pixel may show it
        return 0, width - 1, 0, height - 1
    return max(int(u0), 0), min(int(u1) + 1, width - 1), max(int(v0), 0), min(int(v1) + 1, height - 1)
