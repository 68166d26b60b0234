"""Pictures made without a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from gdfusion_ros import grid as grids
from gdfusion_ros.frame import CameraFrame, Occupancy
from gdfusion_ros.labels import OCC3D, SURROUNDOCC
from gdfusion_ros.viewer.picture import ABOVE, render, render_occupancy, save_png, sheet, shot_sheet
from gdfusion_ros.viewer.shot import Shot


def hue_share(picture: np.ndarray, color: tuple[int, int, int]) -> float:
    """Share of pixels whose colour is the given one at any brightness."""
    pixels = picture.reshape(-1, 3).astype(float)
    direction = np.array(color, float) / np.linalg.norm(color)
    length = np.linalg.norm(pixels, axis=1)
    return float(((pixels @ direction > 0.985 * length) & (length > 40)).mean())


def occupancy_of(labels: np.ndarray, grid: grids.VoxelGrid, label_set: object = OCC3D) -> Occupancy:
    return Occupancy(labels, grid, label_set, 0, 1, 0, (), (), "made-up", "none", np.eye(4))  # type: ignore[arg-type]


def test_a_street_shows_its_colours_from_behind_and_from_above(shots: list[Shot]) -> None:
    for viewpoint in (None, ABOVE):
        picture = (
            render(shots[0], (320, 180)) if viewpoint is None else render(shots[0], (320, 180), viewpoint)
        )
        assert picture.shape == (180, 320, 3)
        assert picture.dtype == np.uint8
        assert hue_share(picture, (0, 207, 191)) > 0.02  # road
        assert hue_share(picture, (112, 180, 60)) > 0.03  # grass


def test_ahead_is_up_and_left_is_left() -> None:
    labels = np.full(grids.OCC3D.shape, 17, np.uint8)
    labels[160:180, 150:170, 0:3] = 16  # vegetation, ahead to the left
    picture = render_occupancy(occupancy_of(labels, grids.OCC3D), (200, 200), ABOVE)
    rows, columns = np.nonzero((picture[..., 1] > 90) & (picture[..., 0] < 60))
    assert rows.mean() < 100
    assert columns.mean() < 100


def test_a_grid_in_the_lidar_frame_is_turned_the_same_way() -> None:
    labels = np.zeros(grids.SURROUNDOCC.shape, np.uint8)
    labels[30:50, 150:170, 4:8] = 16  # x right is negative: left; y forward
    picture = render_occupancy(occupancy_of(labels, grids.SURROUNDOCC, SURROUNDOCC), (200, 200), ABOVE)
    rows, columns = np.nonzero((picture[..., 1] > 90) & (picture[..., 0] < 60))
    assert rows.mean() < 100
    assert columns.mean() < 100


def test_what_stands_in_front_hides_what_is_behind() -> None:
    labels = np.full(grids.OCC3D.shape, 17, np.uint8)
    labels[150:152, 60:140, 0:16] = 16
    behind = labels.copy()
    behind[156:160, 95:105, 0:3] = 4
    views = [render_occupancy(occupancy_of(grid, grids.OCC3D), (160, 90)) for grid in (labels, behind)]
    assert np.abs(views[0].astype(int) - views[1]).max() < 60


def test_the_sheet_has_cameras_grid_truth_and_legend(shots: list[Shot], shot_without_truth: Shot) -> None:
    alone = shot_sheet(shot_without_truth, width=600)
    both = shot_sheet(shots[0], width=600, title="a title")
    for picture in (alone, both):
        assert picture.shape[1] == 600
        assert hue_share(picture[:120], (200, 30, 30)) > 0.2  # the front camera above
    assert hue_share(both, (255, 158, 0)) > 0
    frameless = shot_sheet(replace(shots[0], pictures={}), width=400)
    assert frameless.shape[1] == 400


def test_sheets_of_frames_and_saved_pictures_are_the_same(
    tmp_path: Path, moment: tuple[CameraFrame, Occupancy, np.ndarray]
) -> None:
    frame, occupancy, truth = moment
    picture = sheet(frame, occupancy, width=480, truth=truth)
    save_png(picture, tmp_path / "a" / "sheet.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "sheet.png")), picture)
