"""Rigid transforms as 4x4 float64 matrices, named ``target_from_source``.

Frames follow REP-103 and REP-105: the ego frame (``base_link``) has x forward, y left and z up; a camera's
optical frame has x right, y down and z forward. Quaternions are ordered (w, x, y, z).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pyquaternion import Quaternion

Matrix = npt.NDArray[np.float64]

UNIT_TOLERANCE = 1e-3
"""How far a quaternion's norm may be from 1 before it is refused."""


def transform(translation: Sequence[float], rotation_wxyz: Sequence[float]) -> Matrix:
    """The 4x4 matrix of a translation in metres and a unit quaternion (w, x, y, z).

    Raises ValueError when a number is not finite or the quaternion is not of unit length.
    """
    t = np.asarray(translation, dtype=np.float64)
    q = np.asarray(rotation_wxyz, dtype=np.float64)
    if not (np.isfinite(t).all() and np.isfinite(q).all()):
        raise ValueError(f"transform is not finite: translation {t.tolist()}, rotation {q.tolist()}")
    if abs(np.linalg.norm(q) - 1.0) > UNIT_TOLERANCE:
        raise ValueError(f"rotation is not a unit quaternion: {q.tolist()}")
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(q).rotation_matrix
    matrix[:3, 3] = t
    return matrix


def inverse(target_from_source: Matrix) -> Matrix:
    """``source_from_target`` of affine transforms (..., 4, 4).

    Not by transposing the rotation: in a matrix that went through float32 it is orthogonal to 1e-7 only, and at the
    coordinates of a city that is a millimetre. Nor by ``np.linalg.inv``: the OpenBLAS in numpy's wheels then wakes a
    thread for every core, even for a 4x4 matrix, and they spin until the next frame comes.
    """
    linear = target_from_source[..., :3, :3]
    # Rows and columns go on cyclically, so that the cofactor of each entry is made of those right and below of it.
    cyclic = np.concatenate([linear, linear[..., :2, :]], axis=-2)
    cyclic = np.concatenate([cyclic, cyclic[..., :2]], axis=-1)
    cofactors = cyclic[..., 1:4, 1:4] * cyclic[..., 2:, 2:] - cyclic[..., 1:4, 2:] * cyclic[..., 2:, 1:4]
    determinant = (linear[..., 0, :] * cofactors[..., 0, :]).sum(-1)
    inverted = cofactors.swapaxes(-1, -2) / determinant[..., None, None]
    result = np.zeros_like(target_from_source)
    result[..., :3, :3] = inverted
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", inverted, target_from_source[..., :3, 3])
    result[..., 3, 3] = 1.0
    return result


def transformed(target_from_source: Matrix, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Points (P, 3) in the target's frame. A product of matrices would wake OpenBLAS's threads: see ``inverse``."""
    turned = np.einsum("pj,ij->pi", points, target_from_source[:3, :3])
    return np.asarray(turned + target_from_source[:3, 3])


def quaternion(target_from_source: Matrix) -> npt.NDArray[np.float64]:
    """The rotation's unit quaternion (w, x, y, z), with w >= 0."""
    q = Quaternion(matrix=target_from_source[:3, :3], rtol=1e-3, atol=1e-3).unit.elements
    return q if q[0] >= 0 else -q


def interpolate(first: Matrix, second: Matrix, fraction: float) -> Matrix:
    """The rigid transform at ``fraction`` (0 first, 1 second): translation linear, rotation along the great arc."""
    matrix = np.eye(4)
    q = Quaternion.slerp(Quaternion(quaternion(first)), Quaternion(quaternion(second)), fraction)
    matrix[:3, :3] = q.rotation_matrix
    matrix[:3, 3] = (1.0 - fraction) * first[:3, 3] + fraction * second[:3, 3]
    return matrix
