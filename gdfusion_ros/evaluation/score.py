"""All scores of one run: grids against ground truth, frame by frame, and the summary that is printed and stored."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gdfusion_ros.errors import UserError
from gdfusion_ros.evaluation.flow import ClassFlowError, FlowScore, velocities
from gdfusion_ros.evaluation.ground_truth import GroundTruth
from gdfusion_ros.evaluation.miou import ConfusionMatrix
from gdfusion_ros.evaluation.rayiou import RayScore
from gdfusion_ros.frame import Flow, Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import LabelSet
from gdfusion_ros.rays import Floats


def on_grid(occupancy: Occupancy, grid: VoxelGrid) -> Occupancy:
    """The occupancy looked up at the centres of another grid's cells; unknown outside of its own.

    Raises UserError when the grids lie in different frames.
    """
    if occupancy.grid == grid:
        return occupancy
    if occupancy.grid.frame != grid.frame:
        raise UserError(
            f"{occupancy.model} predicts in the {occupancy.grid.frame} frame, the ground truth lies in the "
            f"{grid.frame} frame; evaluate it with labels of its own kind"
        )
    axes = []
    for axis in range(3):
        centers = grid.minimum[axis] + (np.arange(grid.shape[axis]) + 0.5) * grid.cell_size[axis]
        axes.append(
            np.floor((centers - occupancy.grid.minimum[axis]) / occupancy.grid.cell_size[axis]).astype(int)
        )
    inside = [(index >= 0) & (index < size) for index, size in zip(axes, occupancy.grid.shape, strict=True)]
    at = np.ix_(*(index.clip(0, size - 1) for index, size in zip(axes, occupancy.grid.shape, strict=True)))
    there = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    flow = occupancy.flow
    return replace(
        occupancy,
        grid=grid,
        labels=np.where(there, occupancy.labels[at], 255).astype(np.uint8),
        confidence=None if occupancy.confidence is None else np.where(there, occupancy.confidence[at], 0),
        flow=None if flow is None else Flow(flow.kind, flow.vectors[at], flow.valid[at] & there),
    )


class Scores:
    """Everything that is measured against ground truth, over any number of frames.

    The main scores count the voxels that cameras see, where the ground truth says which those are.
    """

    def __init__(self, label_set: LabelSet, frame_seconds: float = 0.5) -> None:
        """``frame_seconds`` turns a history displacement into a velocity."""
        self.label_set = label_set
        self.frame_seconds = frame_seconds
        self.frames = 0
        self.seen = ConfusionMatrix(label_set)
        """Voxels under the camera mask, or all where there is none."""
        self.everywhere = ConfusionMatrix(label_set)
        self.hidden = ConfusionMatrix(label_set)
        """Voxels hidden now but seen within the last frames."""
        self.flow = FlowScore()
        self.class_flow = ClassFlowError(label_set.movable_ids)
        self.rays = RayScore(self.seen.occupied_ids, label_set.movable_ids)
        self._has_flow = False

    def add(self, occupancy: Occupancy, truth: GroundTruth, origins: Floats | None = None) -> ConfusionMatrix:
        """Count one frame; gives the frame's own confusion matrix. ``origins`` (N, 3) start RayIoU's rays.

        Raises UserError when the grids or label sets do not fit.
        """
        if occupancy.label_set != truth.label_set:
            raise UserError(
                f"{occupancy.model} has labels {occupancy.label_set.name}, the ground truth {truth.label_set.name}"
            )
        occupancy = on_grid(occupancy, truth.grid)
        own = ConfusionMatrix(self.label_set)
        own.add(occupancy.labels, truth.labels, truth.seen)
        self.seen.merge(own)
        self.everywhere.add(occupancy.labels, truth.labels)
        if truth.hidden is not None:
            self.hidden.add(occupancy.labels, truth.labels, truth.hidden)
        velocity = None
        if occupancy.flow is not None and truth.velocity is not None:
            velocity = velocities(occupancy.flow, self.frame_seconds)
            self._add_flow(velocity, truth, truth.velocity)
        if origins is not None and len(origins):
            self.rays.add(occupancy.labels, truth, origins, velocity)
        self.frames += 1
        return own

    def _add_flow(
        self, velocity: npt.NDArray[np.float32], truth: GroundTruth, true: npt.NDArray[np.float32]
    ) -> None:
        self._has_flow = True
        there = truth.occupied
        self.flow.add(velocity, true, there if truth.seen is None else there & truth.seen)
        self.class_flow.add(velocity, true, truth.labels)

    def summary(self, occurring_only: bool = False) -> dict[str, Any]:
        """Shares in percent, velocities in metres per second; what could not be measured is None.

        ``miou`` is the mean over all classes that occur or are predicted, as the data sets' benchmarks have it; with
        ``occurring_only`` over those that occur in the ground truth: a made-up world does not have them all.
        """
        ids = self.seen.present_ids if occurring_only else self.seen.occupied_ids
        movable = [i for i in ids if i in self.label_set.movable_ids]
        hidden = self.hidden.present_ids if occurring_only else None
        result: dict[str, Any] = {
            "frames": self.frames,
            "miou": percent(self.seen.miou(ids)),
            "iou": percent(self.seen.occupied_iou),
            "miou_movable": percent(self.seen.miou(movable)),
            "miou_hidden": percent(self.hidden.miou(hidden)),
            "iou_hidden": percent(self.hidden.occupied_iou),
            "miou_everywhere": percent(self.everywhere.miou(ids)),
            "iou_everywhere": percent(self.everywhere.occupied_iou),
            "per_class": {self.label_set[i].name: percent(iou) for i, iou in self.seen.ious(ids).items()},
        }
        flow = self.flow if self._has_flow else FlowScore()
        result |= {
            "flow_epe_moving": number(flow.epe_moving),
            "flow_zero_epe_moving": number(flow.zero_epe_moving),
            "flow_epe_static": number(flow.epe_static),
            "mave_voxels": number(self.class_flow.mean),
        }
        if self.rays.truth.sum():
            at = self.rays.at_thresholds
            result |= {
                "rayiou": percent(self.rays.rayiou),
                "rayiou_1m": percent(at[0]),
                "rayiou_2m": percent(at[1]),
                "rayiou_4m": percent(at[2]),
                "mave": number(self.rays.mave),
                "occ_score": percent(self.rays.occ_score),
            }
        return result


def percent(share: float) -> float | None:
    """A share of 1 in percent, None for NaN: JSON knows no NaN."""
    return None if math.isnan(share) else 100.0 * share


def number(value: float) -> float | None:
    """The number, None for NaN."""
    return None if math.isnan(value) else value
