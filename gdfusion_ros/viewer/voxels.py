"""Which voxels a screen has to draw, and how: cells with an open face only, ground as single squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdfusion_ros.viewer.shot import Shot

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """What of a shot is shown."""

    labels: frozenset[int]
    """Classes that are on."""
    height: float = float("inf")
    """Metres above the grid's lower edge up to which voxels are shown."""
    errors: bool = False
    """Also show what is there and was not predicted."""


def chosen(shot: Shot, choice: Choice) -> Mask:
    """(N,) the voxels that the choice leaves."""
    mask = shot.label_set.table(choice.labels)[shot.labels]
    upper = shot.cells[:, 2] * shot.grid.cell_size[2]
    mask &= upper < choice.height
    return mask if choice.errors else mask & shot.predicted


def split_by_shape(shot: Shot, mask: Mask) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of the chosen voxels that show as boxes, and of those that show their upper face only (flat ground).

    Voxels with neighbours around and above are in neither: nobody looks from below the ground. A box has twelve
    triangles and a square two, and most of what is seen is ground.
    """
    cells = shot.cells[mask].astype(np.intp)
    solid = np.zeros(
        np.asarray(shot.grid.shape) + 2, dtype=bool
    )  # a rim of empty cells spares the bounds checks
    x, y, z = (cells + 1).T
    solid[x, y, z] = True
    sides = solid[x - 1, y, z] & solid[x + 1, y, z] & solid[x, y - 1, z] & solid[x, y + 1, z]
    above = solid[x, y, z + 1]
    index = np.flatnonzero(mask)
    return index[~sides], index[sides & ~above]


def box(size: tuple[float, float, float]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32]]:
    """Vertices (24, 3) and triangles (12, 3) of a box around the origin; four vertices a face give it sharp edges."""
    corners: list[npt.NDArray[np.float64]] = []
    faces: list[list[int]] = []
    for axis in range(3):
        for side in (-1, 1):
            first = len(corners)
            u, v = (axis + 1) % 3, (axis + 2) % 3
            for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                corner = np.zeros(3)
                corner[axis], corner[u], corner[v] = side, a, b
                corners.append(corner)
            order = ((0, 1, 2), (0, 2, 3)) if side > 0 else ((0, 2, 1), (0, 3, 2))
            faces += [[first + k for k in triangle] for triangle in order]
    vertices = np.array(corners) * np.asarray(size) / 2
    return vertices.astype(np.float32), np.array(faces, dtype=np.uint32)


def square(size: tuple[float, float, float]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32]]:
    """Vertices (4, 3) and triangles (2, 3) of a box's upper face."""
    x, y, z = (value / 2 for value in size)
    vertices = np.array([[-x, -y, z], [x, -y, z], [x, y, z], [-x, y, z]], dtype=np.float32)
    return vertices, np.array([[0, 1, 2], [0, 2, 3]], dtype=np.uint32)
