"""Files of ground truth as the data sets publish them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gdfusion_ros import grid as grids
from gdfusion_ros.errors import UserError
from gdfusion_ros.evaluation.ground_truth import GroundTruth, read_occ3d, read_openoccupancy, read_surroundocc
from gdfusion_ros.labels import OCC3D, OPENOCC


def write_occ3d(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_occ3d_files_hold_labels_and_two_masks(tmp_path: Path) -> None:
    semantics = np.full((200, 200, 16), 17, np.uint8)
    semantics[125, 92, 3] = 4
    semantics[0, 0, 0] = 18
    camera = np.zeros((200, 200, 16), np.uint8)
    camera[125] = 1
    path = write_occ3d(
        tmp_path / "labels.npz", semantics=semantics, mask_camera=camera, mask_lidar=1 - camera
    )
    truth = read_occ3d(path)
    assert truth.labels[125, 92, 3] == 4
    assert truth.labels[0, 0, 0] == 255
    assert truth.seen is not None
    assert truth.seen_by_lidar is not None
    assert truth.seen.dtype == bool
    assert truth.seen[125].all()
    assert not truth.seen[124].any()
    assert not truth.seen_by_lidar[125].any()
    assert truth.occupied.sum() == 1
    # The worked example of SemanticOccupancy.msg: the point (10.1, -3.0, 0.5) m lies in this cell.
    assert truth.grid.index([10.1, -3.0, 0.5])[0].tolist() == [125, 92, 3]


def test_openocc_files_hold_a_flow_too(tmp_path: Path) -> None:
    semantics = np.full((200, 200, 16), 16, np.uint8)
    flow = np.zeros((200, 200, 16, 2), np.float16)
    flow[3, 4, 5] = (1.5, -2.0)
    truth = read_occ3d(write_occ3d(tmp_path / "labels.npz", semantics=semantics, flow=flow), OPENOCC)
    assert truth.velocity is not None
    assert truth.velocity[3, 4, 5].tolist() == [1.5, -2.0]
    assert truth.seen is None
    assert not truth.occupied.any()


def test_surroundocc_files_are_rows_of_x_y_z_label_and_noise_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "name.pcd.bin.npy"
    np.save(path, np.array([[1, 2, 3, 4], [10, 20, 5, 16], [7, 7, 7, 0]]))
    truth = read_surroundocc(path)
    assert (truth.labels[1, 2, 3], truth.labels[10, 20, 5], truth.labels[7, 7, 7]) == (4, 16, 255)
    assert (truth.labels == 0).sum() == 200 * 200 * 16 - 3
    assert truth.grid is grids.SURROUNDOCC
    gdfusion = read_surroundocc(path, OCC3D, noise=17)
    assert (gdfusion.labels[1, 2, 3], gdfusion.labels[7, 7, 7], gdfusion.labels[0, 0, 0]) == (4, 17, 17)


def test_openoccupancy_files_are_rows_of_z_y_x_and_the_label_last(tmp_path: Path) -> None:
    path = tmp_path / "token.npy"
    np.save(path, np.array([[1.0, 200, 300, 0, 0, 0, 11], [39, 0, 5, 0, 0, 0, 0]]))
    truth = read_openoccupancy(path)
    assert truth.labels.shape == (512, 512, 40)
    assert truth.labels[300, 200, 1] == 11
    assert truth.labels[5, 0, 39] == 255
    np.save(path, np.array([[1, 200, 300, 11]]))
    assert read_openoccupancy(path).labels[300, 200, 1] == 11


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([[200, 0, 0, 4]]), "outside"),
        (np.array([[-1, 0, 0, 4]]), "outside"),
        (np.array([[0, 0, 0, 17]]), "labels"),
        (np.zeros((3, 3)), "not \\(n, 4\\)"),
        (np.array([{"no": "pickle"}], dtype=object), "cannot read"),
    ],
)
def test_files_of_another_form_are_refused_in_one_line(
    tmp_path: Path, rows: np.ndarray, message: str
) -> None:
    path = tmp_path / "wrong.npy"
    np.save(path, rows, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        read_surroundocc(path)


def test_a_missing_broken_or_foreign_npz_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_occ3d(tmp_path / "absent.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04broken")
    with pytest.raises(UserError, match="cannot read"):
        read_occ3d(tmp_path / "broken.npz")
    with pytest.raises(UserError, match="no 'semantics'"):
        read_occ3d(write_occ3d(tmp_path / "foreign.npz", labels=np.zeros(3)))
    with pytest.raises(UserError, match="has shape"):
        read_occ3d(write_occ3d(tmp_path / "small.npz", semantics=np.zeros((2, 2, 2))))
    whole = np.zeros(grids.OCC3D.shape, np.uint8)
    with pytest.raises(UserError, match="flow has shape"):
        read_occ3d(write_occ3d(tmp_path / "flow.npz", semantics=whole, flow=np.zeros((*whole.shape, 3))))


def test_masks_must_fit_the_grid() -> None:
    with pytest.raises(ValueError, match="seen has shape"):
        GroundTruth(np.zeros(grids.OCC3D.shape, np.uint8), grids.OCC3D, OCC3D, seen=np.zeros((2, 2, 2), bool))
