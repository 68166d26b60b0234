"""The transform buffer answers as tf2 does, and never with a guess."""

from __future__ import annotations

import numpy as np
import pytest
from driving import SECOND, START, ego_from_camera, ego_pose, stamped_transform

from gdfusion_ros.assembly.transforms import TransformBuffer, TransformError
from gdfusion_ros.geometry import inverse, transform


@pytest.fixture
def buffer() -> TransformBuffer:
    """A drive of two seconds at ten poses a second, with one camera."""
    buffer = TransformBuffer()
    buffer.set("base_link", "CAM_FRONT", 0, ego_from_camera("CAM_FRONT"), static=True)
    for i in range(21):
        buffer.set("odom", "base_link", START + i * SECOND // 10, ego_pose(i / 10))
    return buffer


def test_a_stored_transform_comes_back_as_it_was(buffer):
    assert np.array_equal(buffer.lookup("odom", "base_link", START + SECOND), ego_pose(1.0))


def test_between_two_stamps_it_is_interpolated_along_the_great_arc(buffer):
    found = buffer.lookup("odom", "base_link", START + SECOND + 37_000_000)
    assert np.allclose(found, ego_pose(1.037), atol=1e-4)


def test_half_a_turn_is_interpolated_as_a_rotation_and_not_as_numbers():
    buffer = TransformBuffer()
    buffer.set("a", "b", START, np.eye(4))
    buffer.set("a", "b", START + SECOND // 2, transform((2, 0, 0), (np.cos(1.0), 0, 0, np.sin(1.0))))
    found = buffer.lookup("a", "b", START + SECOND // 4)
    assert np.allclose(found, transform((1, 0, 0), (np.cos(0.5), 0, 0, np.sin(0.5))))


def test_chains_are_composed_in_both_directions(buffer):
    stamp = START + SECOND
    expected = ego_pose(1.0) @ ego_from_camera("CAM_FRONT")
    assert np.allclose(buffer.lookup("odom", "CAM_FRONT", stamp), expected)
    assert np.allclose(buffer.lookup("CAM_FRONT", "odom", stamp), inverse(expected))


def test_static_transforms_hold_at_any_time(buffer):
    assert np.array_equal(buffer.lookup("base_link", "CAM_FRONT", 0), ego_from_camera("CAM_FRONT"))


def test_a_sibling_is_reached_over_the_common_parent(buffer):
    buffer.set("base_link", "CAM_BACK", 0, ego_from_camera("CAM_BACK"), static=True)
    found = buffer.lookup("CAM_BACK", "CAM_FRONT", 0)
    assert np.allclose(found, inverse(ego_from_camera("CAM_BACK")) @ ego_from_camera("CAM_FRONT"))


def test_the_future_is_not_extrapolated_but_may_come(buffer):
    with pytest.raises(TransformError, match="too old") as error:
        buffer.lookup("odom", "base_link", START + 3 * SECOND)
    assert error.value.may_come


def test_what_is_before_the_first_transform_never_comes(buffer):
    with pytest.raises(TransformError, match="too new") as error:
        buffer.lookup("odom", "base_link", START - 1)
    assert not error.value.may_come


def test_frames_that_are_not_connected_are_named(buffer):
    with pytest.raises(TransformError, match="map and CAM_FRONT"):
        buffer.lookup("map", "CAM_FRONT", START)


def test_old_transforms_are_forgotten():
    buffer = TransformBuffer(cache_ns=SECOND)
    for i in range(30):
        buffer.set("odom", "base_link", START + i * SECOND // 10, np.eye(4))
    with pytest.raises(TransformError):
        buffer.lookup("odom", "base_link", START + SECOND)
    assert np.array_equal(buffer.lookup("odom", "base_link", START + 2 * SECOND), np.eye(4))


def test_transforms_that_come_in_another_order_are_sorted():
    buffer = TransformBuffer()
    for i in (0, 3, 1, 2):
        buffer.set("odom", "base_link", START + i * SECOND // 10, ego_pose(i / 10))
    for i in range(4):
        found = buffer.lookup("odom", "base_link", START + i * SECOND // 10)
        assert np.array_equal(found, ego_pose(i / 10))


def test_a_clock_that_jumps_back_clears_what_was_known(buffer):
    buffer.set("odom", "base_link", START - 60 * SECOND, np.eye(4))
    with pytest.raises(TransformError):
        buffer.lookup("odom", "base_link", START + SECOND)
    assert np.array_equal(buffer.lookup("odom", "base_link", START - 60 * SECOND), np.eye(4))
    assert np.array_equal(buffer.lookup("base_link", "CAM_FRONT", 0), ego_from_camera("CAM_FRONT"))


@pytest.mark.parametrize(
    ("matrix", "change"),
    [
        ("rotation", lambda m: setattr(m.transform.rotation, "w", 2.0)),
        ("rotation", lambda m: setattr(m.transform.rotation, "x", np.nan)),
        ("translation", lambda m: setattr(m.transform.translation, "x", np.inf)),
        ("names", lambda m: setattr(m, "child_frame_id", "")),
        ("names", lambda m: setattr(m, "child_frame_id", "odom")),
        ("stamp", lambda m: setattr(m.header.stamp, "sec", -1)),
    ],
)
def test_broken_transforms_are_refused(matrix, change):
    message = stamped_transform(START, "odom", "base_link", ego_pose(0.0))
    change(message)
    buffer = TransformBuffer()
    with pytest.raises(ValueError, match=r"\w"):
        buffer.set_message(message, static=False)


def test_a_loop_of_frames_is_named_and_does_not_hang():
    buffer = TransformBuffer()
    buffer.set("a", "b", 0, np.eye(4), static=True)
    buffer.set("b", "c", 0, np.eye(4), static=True)
    buffer.set("c", "a", 0, np.eye(4), static=True)
    with pytest.raises(TransformError, match="loop"):
        buffer.lookup("x", "a", 0)
