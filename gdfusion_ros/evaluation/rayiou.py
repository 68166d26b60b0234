"""RayIoU (SparseOcc, ECCV 2024): how right the first thing is that a LiDAR-like ray meets.

Where mIoU rewards thick walls behind visible surfaces, rays see surfaces only. A ray counts for a class when
prediction and truth meet that class first, at depths that differ by less than 1, 2 or 4 m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gdfusion_ros.evaluation.ground_truth import GroundTruth
from gdfusion_ros.geometry import Matrix, inverse
from gdfusion_ros.rays import Floats, Hits, first_hits

THRESHOLDS = (1.0, 2.0, 4.0)
"""Metres that the depths may differ by."""
FLOW_THRESHOLD = 2.0
"""Metres for the rays whose flow is compared (mAVE of true positives)."""
MAX_ORIGINS = 8
ORIGIN_REACH = 39.0
"""Metres from the ego vehicle, along x and y, within which another frame's LiDAR is taken as an origin."""


def ray_pitches() -> Floats:
    """Elevation angles in radians, ascending: those that meet flat ground at whole distances, then on upwards.

    Ten angles look down, -(pi/2 - atan(k + 1)), k = 0..9; the last difference goes on until 0.21 rad is reached.
    """
    pitches = [-(math.pi / 2 - math.atan(k + 1)) for k in range(10)]
    while pitches[-1] < 0.21:
        pitches.append(pitches[-1] + (pitches[-1] - pitches[-2]))
    return np.array(pitches)


def ray_directions() -> Floats:
    """Unit vectors (39 x 360, 3): every pitch at whole degrees of azimuth, pitch by pitch."""
    pitch, azimuth = np.meshgrid(ray_pitches(), np.deg2rad(np.arange(360)), indexing="ij")
    return np.stack(
        [np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)], axis=-1
    ).reshape(-1, 3)


def ray_origins(world_from_lidars: Sequence[Matrix], world_from_ego: Matrix) -> Floats:
    """LiDAR positions (N, 3) of a scene's frames in the current ego frame: those near enough, at most eight.

    More than eight are thinned evenly from the first to the last, so that rays start where the vehicle was and will
    be, not only where it is.
    """
    ego_from_world = inverse(world_from_ego)
    origins = np.array([(ego_from_world @ lidar)[:3, 3] for lidar in world_from_lidars]).reshape(-1, 3)
    near = origins[(np.abs(origins[:, :2]) < ORIGIN_REACH).all(axis=1)]
    if len(near) > MAX_ORIGINS:
        near = near[np.round(np.linspace(0, len(near) - 1, MAX_ORIGINS)).astype(int)]
    return near


class RayScore:
    """RayIoU, mAVE on true-positive rays and OccScore over any number of frames."""

    def __init__(self, classes: Sequence[int], movable: Sequence[int]) -> None:
        self.classes = tuple(classes)
        """Class ids to average over: all but free."""
        self.movable = tuple(movable)
        n = len(self.classes)
        self.truth = np.zeros(n, dtype=np.int64)
        self.predicted = np.zeros(n, dtype=np.int64)
        self.hits = np.zeros((len(THRESHOLDS), n), dtype=np.int64)
        self._flow_sum = np.zeros(len(self.movable))
        self._flow_count = np.zeros(len(self.movable), dtype=np.int64)
        self._directions = ray_directions()

    def add(
        self,
        predicted: npt.NDArray[np.uint8],
        truth: GroundTruth,
        origins: Floats,
        velocity: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Cast one frame's rays from ``origins`` (N, 3) in the grid's frame.

        Rays whose truth meets nothing are left out. Unannotated voxels stop no ray. With ``velocity`` (X, Y, Z, 3)
        and a truth that has velocities, each read at its own hit, their differences count too.
        """
        set_ = truth.label_set
        origin = np.repeat(origins, len(self._directions), axis=0)
        direction = np.tile(self._directions, (len(origins), 1))
        seen = first_hits(truth.occupied, truth.grid, origin, direction)
        kept = seen.hit
        solid = set_.table(self.classes)[predicted]
        guess = first_hits(solid, truth.grid, origin[kept], direction[kept])
        seen = Hits(seen.depth[kept], seen.cell[kept])
        true_label = truth.labels[tuple(seen.cell.T)]
        label = np.where(guess.hit, predicted[tuple(guess.cell.T)], set_.free)
        error = np.abs(guess.depth - seen.depth)
        for k, label_id in enumerate(self.classes):
            is_true, is_guess = true_label == label_id, label == label_id
            self.truth[k] += is_true.sum()
            self.predicted[k] += is_guess.sum()
            both = is_true & is_guess
            for t, threshold in enumerate(THRESHOLDS):
                self.hits[t, k] += (both & (error < threshold)).sum()
        if velocity is not None and truth.velocity is not None:
            good = (label == true_label) & guess.hit & (error < FLOW_THRESHOLD)
            self._add_flow(
                velocity[tuple(guess.cell[good].T)], truth.velocity[tuple(seen.cell[good].T)], label[good]
            )

    def _add_flow(self, predicted: npt.NDArray, truth: npt.NDArray, label: npt.NDArray) -> None:
        known = np.isfinite(truth).all(axis=-1)
        difference = np.linalg.norm(predicted[:, : truth.shape[-1]].astype(np.float64) - truth, axis=-1)
        for k, label_id in enumerate(self.movable):
            there = (label == label_id) & known
            self._flow_sum[k] += difference[there].sum()
            self._flow_count[k] += there.sum()

    def ious(self) -> npt.NDArray[np.float64]:
        """(3, classes): TP / (truth + predicted - TP) at each threshold, NaN for classes that no ray met."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.hits / (self.truth + self.predicted - self.hits)

    @property
    def at_thresholds(self) -> tuple[float, ...]:
        """Mean over the classes at 1, 2 and 4 m."""
        return tuple(_mean(row) for row in self.ious())

    @property
    def rayiou(self) -> float:
        """Mean over classes and thresholds."""
        return _mean(np.array(self.at_thresholds))

    @property
    def mave(self) -> float:
        """Mean over the movable classes of the velocity error on true-positive rays at 2 m; NaN without any."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return _mean(self._flow_sum / self._flow_count)

    @property
    def occ_score(self) -> float:
        """0.9 RayIoU + 0.1 max(1 - mAVE, 0); NaN without flow."""
        mave = self.mave
        return float("nan") if math.isnan(mave) else 0.9 * self.rayiou + 0.1 * max(1.0 - mave, 0.0)


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
