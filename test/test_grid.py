"""Which metre belongs to which cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdfusion_ros.grid import OCC3D, OPENOCCUPANCY, SURROUNDOCC, VoxelGrid


def test_the_public_grids_have_their_published_extents():
    assert OCC3D.shape == (200, 200, 16)
    assert OCC3D.maximum == pytest.approx((40.0, 40.0, 5.4))
    assert SURROUNDOCC.shape == (200, 200, 16)
    assert SURROUNDOCC.maximum == pytest.approx((50.0, 50.0, 3.0))
    assert OPENOCCUPANCY.shape == (512, 512, 40)
    assert OPENOCCUPANCY.maximum == pytest.approx((51.2, 51.2, 3.0))
    assert (OCC3D.frame, SURROUNDOCC.frame, OPENOCCUPANCY.frame) == ("ego", "lidar", "lidar")


def test_the_worked_example_of_the_message_holds():
    cells, inside = OCC3D.index([10.1, -3.0, 0.5])
    assert inside
    assert cells.tolist() == [125, 92, 3]
    assert OCC3D.centers(cells) == pytest.approx([10.2, -3.0, 0.4])


def test_the_lower_faces_belong_to_the_grid_and_the_upper_ones_do_not():
    grid = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 2))
    _, inside = grid.index([[0.0, 0.0, 0.0], [2.0, 1.0, 1.0], [1.0, 1.0, 2.0], [-1e-9, 0.0, 0.0]])
    assert inside.tolist() == [True, False, False, False]


def test_points_outside_get_an_index_that_is_safe_to_look_up():
    cells, inside = OCC3D.index([[1000.0, 0.0, 0.0], [np.nan, 0.0, 0.0]])
    assert not inside.any()
    assert cells.tolist() == [[0, 0, 0], [0, 0, 0]]


@given(st.tuples(st.integers(0, 199), st.integers(0, 199), st.integers(0, 15)))
def test_the_centre_of_a_cell_lies_in_that_cell(cell):
    cells, inside = OCC3D.index(OCC3D.centers(cell))
    assert inside
    assert tuple(cells.tolist()) == cell


def test_the_number_of_cells_is_the_product_of_the_shape():
    assert OCC3D.cells == 640_000


@pytest.mark.parametrize(
    ("cell_size", "shape"),
    [((0.0, 1.0, 1.0), (1, 1, 1)), ((1.0, 1.0, 1.0), (1, 0, 1)), ((1.0, -1.0, 1.0), (1, 1, 1))],
)
def test_a_grid_without_cells_is_refused(cell_size, shape):
    with pytest.raises(ValueError, match="positive size"):
        VoxelGrid((0.0, 0.0, 0.0), cell_size, shape)
