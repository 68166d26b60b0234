"""Ground truth as one noun, and readers of the files that the data sets publish."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gdfusion_ros import grid as grids
from gdfusion_ros import labels as label_sets
from gdfusion_ros.errors import UserError
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import UNKNOWN, LabelSet

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GroundTruth:
    """What is really there, on one grid. Arrays have shape (X, Y, Z)."""

    labels: npt.NDArray[np.uint8]
    """Ids of ``label_set``; 255 where nobody annotated: such voxels count nowhere."""
    grid: VoxelGrid
    label_set: LabelSet
    seen: Mask | None = None
    """What the cameras see (Occ3D's ``mask_camera``); None where the data set has no such mask."""
    seen_by_lidar: Mask | None = None
    """What the LiDAR saw (Occ3D's ``mask_lidar``)."""
    hidden: Mask | None = None
    """Hidden from every camera now, but seen within the last frames: where memory can help."""
    velocity: npt.NDArray[np.float32] | None = None
    """(X, Y, Z, 2 or 3): metres per second over ground along the grid's axes, of what fills the voxel; not finite where
    nobody annotated one, which then counts nowhere."""

    def __post_init__(self) -> None:
        for name in ("labels", "seen", "seen_by_lidar", "hidden"):
            array = getattr(self, name)
            if array is not None and array.shape != self.grid.shape:
                raise ValueError(
                    f"ground truth: {name} has shape {array.shape}, the grid has {self.grid.shape}"
                )
        if self.velocity is not None and self.velocity.shape[:3] != self.grid.shape:
            raise ValueError(
                f"ground truth: velocity has shape {self.velocity.shape}, the grid {self.grid.shape}"
            )

    @property
    def occupied(self) -> Mask:
        """Where something is."""
        return (self.labels != self.label_set.free) & (self.labels != UNKNOWN)


def read_occ3d(path: Path, label_set: LabelSet = label_sets.OCC3D) -> GroundTruth:
    """Occ3D-nuScenes' ``gts/SCENE/TOKEN/labels.npz``: semantics, mask_lidar and mask_camera, (200, 200, 16) each.

    OpenOcc v2 keeps the same form with its own ids (pass ``labels.OPENOCC``) and a ``flow`` of (200, 200, 16, 2).
    """
    arrays = _load_npz(path)
    if "semantics" not in arrays:
        raise UserError(f"{path} holds {sorted(arrays)} and no 'semantics'; it is not a labels.npz of Occ3D")
    semantics = _shaped(path, "semantics", arrays["semantics"], grids.OCC3D.shape).astype(np.uint8)
    known = np.isin(semantics, [label.id for label in label_set.labels])
    masks = {
        field: _shaped(path, key, arrays[key], grids.OCC3D.shape).astype(bool)
        for field, key in (("seen", "mask_camera"), ("seen_by_lidar", "mask_lidar"))
        if key in arrays
    }
    truth = GroundTruth(np.where(known, semantics, UNKNOWN).astype(np.uint8), grids.OCC3D, label_set, **masks)
    if "flow" not in arrays:
        return truth
    flow = _shaped(path, "flow", arrays["flow"], (*grids.OCC3D.shape, 2))
    return replace(truth, velocity=flow.astype(np.float32))


def read_surroundocc(
    path: Path, label_set: LabelSet = label_sets.SURROUNDOCC, noise: int = UNKNOWN
) -> GroundTruth:
    """SurroundOcc's ``NAME.pcd.bin.npy``: rows (x, y, z, label) of occupied cells, LiDAR frame; the rest is free.

    ``noise`` is what label 0 in a file becomes: ignored as SurroundOcc does, or free as the GDFusion models trained
    on SurroundOcc's annotation are scored (``label_set=labels.OCC3D, noise=17``).
    """
    rows = _load_rows(path)
    return _from_rows(path, rows[:, :3], rows[:, 3], grids.SURROUNDOCC, label_set, noise)


def read_openoccupancy(
    path: Path, label_set: LabelSet = label_sets.SURROUNDOCC, noise: int = UNKNOWN
) -> GroundTruth:
    """OpenOccupancy's ``scene_TOKEN/occupancy/TOKEN.npy``: rows (z, y, x, ..., label) on 512 x 512 x 40 cells.

    Rows may carry a velocity between index and label (``z y x vx vy vz label``); only the first three and the last
    number are read.
    """
    rows = _load_rows(path)
    return _from_rows(path, rows[:, [2, 1, 0]], rows[:, -1], grids.OPENOCCUPANCY, label_set, noise)


def _from_rows(
    path: Path, cells: npt.NDArray, values: npt.NDArray, grid: VoxelGrid, label_set: LabelSet, noise: int
) -> GroundTruth:
    cells, values = cells.astype(np.int64), values.astype(np.int64)
    if len(cells) and ((cells < 0).any() or (cells >= np.asarray(grid.shape)).any()):
        raise UserError(f"{path} names cells outside {grid.shape}; is it the ground truth of another grid?")
    if len(values) and (values.min() < 0 or values.max() > 16):
        raise UserError(
            f"{path} has labels {values.min()}..{values.max()}, not 0..16; is it another data set's?"
        )
    labels = np.full(grid.shape, label_set.free, dtype=np.uint8)
    labels[tuple(cells.T)] = np.where(values == 0, noise, values)
    return GroundTruth(labels, grid, label_set)


def _load_npz(path: Path) -> dict[str, npt.NDArray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read ground truth {path}: {error}") from error


def _load_rows(path: Path) -> npt.NDArray:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read ground truth {path}: {error}") from error
    if rows.ndim != 2 or rows.shape[1] < 4:
        raise UserError(f"{path} has shape {rows.shape}, not (n, 4): rows of cell and label")
    return rows


def _shaped(path: Path, name: str, array: npt.NDArray, shape: tuple[int, ...]) -> npt.NDArray:
    if array.shape != shape:
        raise UserError(f"{path}: {name} has shape {array.shape}, not {shape}")
    return array
