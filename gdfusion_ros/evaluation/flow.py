"""How right a motion field is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdfusion_ros.frame import Flow, FlowKind

MOVING = 0.2
"""Metres per second from which something counts as moving: below, annotation noise looks like motion."""


def velocities(flow: Flow, seconds: float) -> npt.NDArray[np.float32]:
    """(X, Y, Z, 3) metres per second over ground; zero where the field says nothing.

    A history displacement points from a voxel back to where it was ``seconds`` ago, so the velocity is its negative
    over that time. A missing vector counts as zero, so that a network cannot score by staying silent.
    """
    vectors = np.where(flow.valid[..., None], flow.vectors, 0.0)
    if flow.kind is FlowKind.HISTORY_DISPLACEMENT:
        vectors = -vectors / seconds
    return vectors.astype(np.float32)


@dataclass
class FlowScore:
    """End-point errors in metres per second, over voxels of all frames together."""

    moving_voxels: int = 0
    moving_error: float = 0.0
    zero_error: float = 0.0
    static_voxels: int = 0
    static_error: float = 0.0

    def add(
        self,
        predicted: npt.NDArray[np.float32],
        truth: npt.NDArray[np.float32],
        mask: npt.NDArray[np.bool_],
    ) -> None:
        """Count the voxels of one frame where ``mask`` is true: (X, Y, Z, 3) and (X, Y, Z, 2 or 3) velocities.

        Only as many components are compared as the truth has (OpenOcc annotates x and y), and only where it is finite.
        """
        mask = mask & np.isfinite(truth).all(axis=-1)
        components = truth.shape[-1]
        true = truth[mask].astype(np.float64)
        error = np.linalg.norm(predicted[mask][:, :components] - true, axis=-1)
        speed = np.linalg.norm(true, axis=-1)
        moving = speed > MOVING
        self.moving_voxels += int(moving.sum())
        self.moving_error += float(error[moving].sum())
        self.zero_error += float(speed[moving].sum())
        self.static_voxels += int((~moving).sum())
        self.static_error += float(error[~moving].sum())

    @property
    def epe_moving(self) -> float:
        """Mean error on voxels that move; NaN when none did."""
        return self.moving_error / self.moving_voxels if self.moving_voxels else float("nan")

    @property
    def zero_epe_moving(self) -> float:
        """What predicting zero everywhere would have scored on the same voxels."""
        return self.zero_error / self.moving_voxels if self.moving_voxels else float("nan")

    @property
    def epe_static(self) -> float:
        """Mean error on occupied voxels that stand still."""
        return self.static_error / self.static_voxels if self.static_voxels else float("nan")


class ClassFlowError:
    """Mean velocity error by class over all annotated voxels of that class (OpenOcc v2's AVE; mAVE is their mean)."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self._sum = dict.fromkeys(ids, 0.0)
        self._count = dict.fromkeys(ids, 0)

    def add(
        self,
        predicted: npt.NDArray[np.float32],
        truth: npt.NDArray[np.float32],
        labels: npt.NDArray[np.uint8],
    ) -> None:
        """Count one frame: velocities (..., components) beside the true labels (...) of the same places.

        Places whose true velocity is not finite are left out.
        """
        known = np.isfinite(truth).all(axis=-1)
        for label_id in self.ids:
            there = (labels == label_id) & known
            difference = predicted[there][:, : truth.shape[-1]].astype(np.float64) - truth[there]
            self._sum[label_id] += float(np.linalg.norm(difference, axis=-1).sum())
            self._count[label_id] += int(there.sum())

    @property
    def per_class(self) -> dict[int, float]:
        """Mean error in metres per second by class id, NaN where the class was not seen."""
        return {i: self._sum[i] / self._count[i] if self._count[i] else float("nan") for i in self.ids}

    @property
    def mean(self) -> float:
        """mAVE: the mean over the classes that were seen; NaN when none was."""
        values = np.array(list(self.per_class.values()))
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
