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
    """``source_from_target`` of rigid transforms (..., 4, 4).

    Where a frame passes through, this stands for ``np.linalg.inv``: with the OpenBLAS in numpy's wheels that wakes a
    thread for every core, even for a 4x4 matrix, and they spin until the next frame comes.
    """
    result = np.zeros_like(target_from_source)
    rotation = target_from_source[..., :3, :3].swapaxes(-1, -2)
    result[..., :3, :3] = rotation
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, target_from_source[..., :3, 3])
    result[..., 3, 3] = 1.0
    return result


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
