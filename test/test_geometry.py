"""Rigid transforms and their interpolation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdfusion_ros.geometry import interpolate, inverse, quaternion, transform, transformed

HALF = 0.5**0.5
numbers = st.floats(-100, 100)
rotations = (
    st.tuples(*[st.floats(-1, 1)] * 4)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: tuple(np.asarray(q) / np.linalg.norm(q)))
)
transforms = st.builds(lambda t, q: transform(t, q), st.tuples(numbers, numbers, numbers), rotations)


def test_a_quarter_turn_about_z_takes_forward_to_left():
    parent_from_child = transform((1.0, 2.0, 3.0), (HALF, 0.0, 0.0, HALF))
    assert parent_from_child @ [1.0, 0.0, 0.0, 1.0] == pytest.approx([1.0, 3.0, 3.0, 1.0])


@given(transforms)
def test_the_inverse_undoes_a_transform(a_from_b):
    assert inverse(a_from_b) @ a_from_b == pytest.approx(np.eye(4), abs=1e-9)


@given(rotations)
def test_a_transform_that_was_rounded_to_float32_is_undone_at_the_coordinates_of_a_city(rotation):
    a_from_b = transform((1600.0, 900.0, 0.0), rotation).astype(np.float32).astype(np.float64)
    assert inverse(a_from_b) @ a_from_b == pytest.approx(np.eye(4), abs=1e-9)


@given(transforms, st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=4))
def test_points_are_transformed_one_by_one(a_from_b, points):
    expected = [(a_from_b @ [*point, 1.0])[:3] for point in points]
    assert transformed(a_from_b, np.array(points)) == pytest.approx(np.array(expected), abs=1e-9)


@given(st.lists(transforms, min_size=6, max_size=6))
def test_a_stack_of_transforms_is_inverted_one_by_one(stack):
    expected = [np.linalg.inv(a_from_b) for a_from_b in stack]
    assert inverse(np.reshape(stack, (2, 3, 4, 4))) == pytest.approx(
        np.reshape(expected, (2, 3, 4, 4)), abs=1e-9
    )


@given(st.tuples(numbers, numbers, numbers), rotations)
def test_a_matrix_gives_back_the_quaternion_that_made_it_up_to_sign(translation, rotation):
    q = quaternion(transform(translation, rotation))
    assert q[0] >= 0
    assert abs(np.dot(q, rotation)) == pytest.approx(1.0, abs=1e-9)


@given(transforms, transforms)
def test_interpolation_begins_at_the_first_and_ends_at_the_second(first, second):
    assert interpolate(first, second, 0.0) == pytest.approx(first, abs=1e-6)
    assert interpolate(first, second, 1.0) == pytest.approx(second, abs=1e-6)


def test_half_of_a_quarter_turn_is_an_eighth():
    first = transform((0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
    second = transform((2.0, 0.0, 0.0), (HALF, 0.0, 0.0, HALF))
    middle = interpolate(first, second, 0.5)
    assert middle[:3, 3] == pytest.approx([1.0, 0.0, 0.0])
    assert middle[:2, 0] == pytest.approx([HALF, HALF])


def test_interpolation_takes_the_short_way_round():
    angle = np.deg2rad(170)
    first = transform((0.0, 0.0, 0.0), (np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)))
    second = transform((0.0, 0.0, 0.0), (np.cos(angle / 2), 0.0, 0.0, -np.sin(angle / 2)))
    assert interpolate(first, second, 0.5)[:2, 0] == pytest.approx([-1.0, 0.0], abs=1e-9)


@pytest.mark.parametrize("rotation", [(0.0, 0.0, 0.0, 0.0), (1.1, 0.0, 0.0, 0.0)])
def test_a_quaternion_that_is_not_of_unit_length_is_refused(rotation):
    with pytest.raises(ValueError, match="not a unit quaternion"):
        transform((0.0, 0.0, 0.0), rotation)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        transform((bad, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="not finite"):
        transform((0.0, 0.0, 0.0), (1.0, bad, 0.0, 0.0))
