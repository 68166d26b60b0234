"""One moment to look at: the occupied voxels with all that is known of them, and the cameras' pictures, kept small."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gdfusion_ros.frame import CameraFrame, CameraView, FlowKind, Image, Occupancy
from gdfusion_ros.geometry import Matrix, inverse
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import UNKNOWN, LabelSet

PICTURE_WIDTH = 480


@dataclass(frozen=True)
class Picture:
    """A camera's image, scaled down for the screen, and where the camera sits."""

    image: Image
    """(H, W, 3) uint8, RGB."""
    ego_from_camera: Matrix | None = None
    """(4, 4), None where the recording does not say."""
    field_of_view: float = 0.9
    """Vertical, in radians."""


@dataclass(frozen=True)
class Shot:
    """The N voxels worth drawing, in the order of their cells, one array entry each."""

    cells: npt.NDArray[np.int16]
    """(N, 3) cell indices."""
    labels: npt.NDArray[np.uint8]
    """(N,) what to draw: the predicted label; where nothing was predicted but something is, the true one."""
    predicted: npt.NDArray[np.bool_]
    """(N,) whether the voxel is occupied in the prediction."""
    grid: VoxelGrid
    label_set: LabelSet
    stamp_ns: int
    world_from_ego: Matrix
    model: str = ""
    weights: str = ""
    sequence: int = 1
    history_frames: int = 0
    confidence: npt.NDArray[np.uint8] | None = None
    """(N,) probability, 255 = 1."""
    vectors: npt.NDArray[np.float16] | None = None
    """(N, 3) flow: metres or metres per second, as ``flow_kind`` says."""
    vectors_valid: npt.NDArray[np.bool_] | None = None
    flow_kind: FlowKind | None = None
    truth: npt.NDArray[np.uint8] | None = None
    """(N,) true labels, where there is ground truth."""
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    """By camera."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by stage; ``total`` is the time from the images' arrival at the node to the grid."""
    restart_reason: str = ""
    """Why the sequence began with this grid, if it did and anybody said."""

    def centers(self) -> npt.NDArray[np.float32]:
        """(N, 3) centres of the voxels in metres, in the grid's frame."""
        return self.grid.centers(self.cells).astype(np.float32)

    def with_pictures(self, pictures: Mapping[str, Picture]) -> Shot:
        """The same shot with other pictures."""
        return replace(self, pictures=pictures)


def make_shot(
    occupancy: Occupancy, frame: CameraFrame | None = None, truth: npt.NDArray[np.uint8] | None = None
) -> Shot:
    """The shot of an occupancy, with the frame's pictures, and the true labels (X, Y, Z) where there are some."""
    predicted = _occupied(occupancy.labels, occupancy.label_set)
    drawn = predicted if truth is None else predicted | _occupied(truth, occupancy.label_set)
    at = np.nonzero(drawn)
    flow = occupancy.flow
    labels = occupancy.labels[at]
    here = predicted[at]
    return Shot(
        cells=np.stack(at, axis=1).astype(np.int16),
        labels=labels if truth is None else np.where(here, labels, truth[at]),
        predicted=here,
        grid=occupancy.grid,
        label_set=occupancy.label_set,
        stamp_ns=occupancy.stamp_ns,
        world_from_ego=occupancy.world_from_ego,
        model=occupancy.model,
        weights=occupancy.weights,
        sequence=occupancy.sequence,
        history_frames=occupancy.history_frames,
        confidence=None if occupancy.confidence is None else occupancy.confidence[at],
        vectors=None if flow is None else flow.vectors[at].astype(np.float16),
        vectors_valid=None if flow is None else flow.valid[at] & here,
        flow_kind=None if flow is None else flow.kind,
        truth=None if truth is None else truth[at],
        pictures={}
        if frame is None
        else {view.name: picture(view) for view in frame.views if not view.missing},
        timings_ms=dict(occupancy.timings_ms),
    )


def with_latency(shot: Shot, message: Any) -> Shot:
    """The shot with what the node's ``~/latency`` says of it: milliseconds by stage, and why history began anew."""
    values = {pair.key: pair.value for status in message.status for pair in status.values}
    timings = dict(shot.timings_ms)
    for key, value in values.items():
        if key.endswith("_ms"):
            with suppress(ValueError):
                timings[key.removesuffix("_ms")] = float(value)
    return replace(shot, timings_ms=timings, restart_reason=values.get("sequence_started", ""))


def true_shot(shot: Shot) -> Shot:
    """What should have been predicted, of a shot with ground truth."""
    assert shot.truth is not None
    there = _occupied(shot.truth, shot.label_set)
    return replace(
        shot,
        cells=shot.cells[there],
        labels=shot.truth[there],
        predicted=np.ones(int(there.sum()), dtype=bool),
        confidence=None,
        vectors=None,
        vectors_valid=None,
        truth=None,
    )


TIMES = {"total": "image to grid", "inference": "inference"}
"""Stages that the status names, and what it calls them."""
SHOWN_ARROWS = 400
"""More flow arrows than this hide what they stand on; they are thinned evenly."""
SLOW = 0.5
"""Vectors shorter than this (metres, or metres per second) get no arrow."""


def flow_arrows(shot: Shot, index: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
    """(A, 2, 3) arrows from above a voxel to where it goes, of the voxels ``index`` (default: all)."""
    if shot.vectors is None or shot.vectors_valid is None:
        return np.zeros((0, 2, 3), dtype=np.float32)
    index = np.arange(len(shot.cells)) if index is None else index
    length = np.linalg.norm(shot.vectors[index].astype(np.float32), axis=1)
    index = index[shot.vectors_valid[index] & (length > SLOW)]
    index = index[:: max(1, -(-len(index) // SHOWN_ARROWS))]
    vectors = shot.vectors[index].astype(np.float32)
    # A displacement points to where a voxel was, a velocity to where it goes: both arrows show the way it goes.
    ahead = vectors * (-1.0 if shot.flow_kind is FlowKind.HISTORY_DISPLACEMENT else 0.5)
    start = shot.grid.centers(shot.cells[index]) + np.array([0.0, 0.0, shot.grid.cell_size[2]])
    return np.stack([start, start + ahead], axis=1).astype(np.float32)


def path_in_ego(positions: npt.NDArray[np.float64], world_from_ego: Matrix) -> npt.NDArray[np.float64]:
    """(N, 3) positions in the world as a path in an ego frame, a metre up: above the ground's cells."""
    ego_from_world = inverse(world_from_ego)
    return positions @ ego_from_world[:3, :3].T + ego_from_world[:3, 3] + (0.0, 0.0, 1.0)


def status_lines(shot: Shot) -> list[str]:
    """What is known of a shot, in words."""
    lines = [
        f"{shot.model} {shot.weights}",
        f"{shot.stamp_ns * 1e-9:.3f} s, {int(shot.predicted.sum()):,} voxels",
        f"sequence {shot.sequence}, {shot.history_frames} frames of history, {shot.sequence - 1} restarts",
    ]
    if shot.restart_reason:
        lines.append(f"history starts anew: {shot.restart_reason.replace('_', ' ')}")
    times = [f"{name} {shot.timings_ms[key]:.0f} ms" for key, name in TIMES.items() if key in shot.timings_ms]
    return [*lines, "latency: " + ", ".join(times)] if times else lines


def picture(view: CameraView) -> Picture:
    """A camera's view, small enough to send ten times a second."""
    focal = view.intrinsics[1, 1] * view.image_transform.scale
    field_of_view = float(2 * np.arctan(view.image.shape[0] / (2 * focal)))
    return Picture(shrunk(view.image), view.ego_from_camera, field_of_view)


def shrunk(image: Image) -> Image:
    """The image at the width that pictures have on the screen, if it is wider."""
    height, width = image.shape[:2]
    if width <= PICTURE_WIDTH:
        return image
    size = (PICTURE_WIDTH, max(1, round(height * PICTURE_WIDTH / width)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _occupied(labels: npt.NDArray[np.uint8], label_set: LabelSet) -> npt.NDArray[np.bool_]:
    return (labels != label_set.free) & (labels != UNKNOWN)
