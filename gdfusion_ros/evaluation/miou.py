"""Voxel scores from one confusion matrix that grows frame by frame (the usual Occ3D and SurroundOcc metrics)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from gdfusion_ros.labels import LabelSet

Counts = npt.NDArray[np.int64]


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of frames.

    Scores are formed from the counts of all frames together, not averaged over frames. Voxels whose truth is no
    id of the label set (255, or Occ3D's ids from 18 on) are left out; a prediction that is no id of the label set,
    such as 255 for unknown, is a miss for the true class and no false alarm for any.
    """

    def __init__(self, label_set: LabelSet) -> None:
        self.label_set = label_set
        self.ids = tuple(label.id for label in label_set.labels)
        n = len(self.ids)
        self.counts: Counts = np.zeros((n, n + 1), dtype=np.int64)
        """Rows: truth; columns: prediction, and one last column for predictions outside the label set."""
        self._row = np.full(256, n, dtype=np.int64)
        self._row[list(self.ids)] = np.arange(n)

    def add(
        self,
        predicted: npt.NDArray[np.uint8],
        truth: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Count the voxels of one frame, all arrays of one shape; with ``mask`` only where it is true."""
        if predicted.shape != truth.shape or (mask is not None and mask.shape != truth.shape):
            raise ValueError(f"shapes differ: predicted {predicted.shape}, truth {truth.shape}")
        if mask is not None:
            predicted, truth = predicted[mask], truth[mask]
        n = len(self.ids)
        # One pass over the bytes: a pair of ids is a number below 65,536.
        pairs = np.bincount(truth.ravel().astype(np.intp) * 256 + predicted.ravel(), minlength=65536)
        table = np.zeros((n + 1, n + 1), dtype=np.int64)
        np.add.at(table, (self._row[:, None], self._row[None, :]), pairs.reshape(256, 256))
        self.counts += table[:n]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix over the same labels."""
        if other.ids != self.ids:
            raise ValueError(f"label sets {self.label_set.name} and {other.label_set.name} differ")
        self.counts += other.counts

    def ious(self, ids: Iterable[int] | None = None) -> dict[int, float]:
        """TP / (TP + FP + FN) by class id, NaN for a class that is neither there nor predicted; free is left out."""
        n = len(self.ids)
        hits = np.diag(self.counts[:, :n]).astype(np.float64)
        union = self.counts.sum(axis=1) + self.counts[:, :n].sum(axis=0) - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = hits / union
        wanted = self.occupied_ids if ids is None else tuple(ids)
        return {label_id: float(iou[self._row[label_id]]) for label_id in wanted}

    @property
    def occupied_ids(self) -> tuple[int, ...]:
        """All classes but free."""
        return tuple(label_id for label_id in self.ids if label_id != self.label_set.free)

    @property
    def present_ids(self) -> tuple[int, ...]:
        """Classes but free that occur in the truth."""
        there = self.counts.sum(axis=1) > 0
        return tuple(i for i in self.occupied_ids if there[self._row[i]])

    def miou(self, ids: Iterable[int] | None = None) -> float:
        """Mean of the classes' IoU, those left out that are neither there nor predicted; NaN without any."""
        values = np.array(list(self.ious(ids).values()))
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    @property
    def miou_movable(self) -> float:
        """mIoU over the classes that can move (mIoU_D)."""
        return self.miou(self.label_set.movable_ids)

    @property
    def occupied_iou(self) -> float:
        """IoU of occupied against free, whatever the class."""
        free = self._row[self.label_set.free]
        n = len(self.ids)
        occupied = np.arange(n) != free
        hits = self.counts[occupied][:, :n][:, occupied].sum()
        missed = self.counts[occupied].sum() - hits
        false = self.counts[free, :n][occupied].sum()
        union = hits + missed + false
        return float(hits / union) if union else float("nan")
