"""Flow errors against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gdfusion_ros.evaluation.flow import ClassFlowError, FlowScore, velocities
from gdfusion_ros.frame import Flow, FlowKind


def field(*vectors: tuple[float, float, float]) -> np.ndarray:
    return np.array(vectors, dtype=np.float32).reshape(-1, 1, 1, 3)


def test_moving_and_static_voxels_are_scored_apart() -> None:
    truth = field((3, 4, 0), (0, 0, 0), (10, 0, 0))
    guess = field((3, 0, 0), (0, 1, 0), (10, 0, 0))
    score = FlowScore()
    score.add(guess, truth, np.array([True, True, False]).reshape(3, 1, 1))
    assert score.epe_moving == 4.0
    assert score.zero_epe_moving == 5.0
    assert score.epe_static == 1.0


def test_only_the_components_that_are_annotated_count() -> None:
    score = FlowScore()
    score.add(field((1, 0, 9)), field((1, 1, 0))[..., :2], np.ones((1, 1, 1), bool))
    assert score.epe_moving == 1.0


def test_nothing_seen_is_nan_and_not_zero() -> None:
    assert math.isnan(FlowScore().epe_moving)
    assert math.isnan(FlowScore().epe_static)
    assert math.isnan(ClassFlowError((4,)).mean)


def test_a_history_displacement_points_back_in_time() -> None:
    flow = Flow(
        FlowKind.HISTORY_DISPLACEMENT, field((-2, 0, 0), (9, 9, 9)), np.array([True, False]).reshape(2, 1, 1)
    )
    np.testing.assert_array_equal(velocities(flow, 0.5), field((4, 0, 0), (0, 0, 0)))


def test_a_velocity_is_taken_as_it_is() -> None:
    flow = Flow(FlowKind.VELOCITY, field((-2, 0, 1)), np.ones((1, 1, 1), bool))
    np.testing.assert_array_equal(velocities(flow, 0.5), field((-2, 0, 1)))


def test_mave_is_the_mean_over_classes_that_were_seen() -> None:
    score = ClassFlowError((4, 7, 10))
    labels = np.array([4, 4, 7, 11], np.uint8).reshape(4, 1, 1)
    truth = field((1, 0, 0), (0, 0, 0), (0, 3, 0), (5, 5, 5))
    score.add(field((0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)), truth, labels)
    assert score.per_class[4] == 0.5
    assert score.per_class[7] == 3.0
    assert math.isnan(score.per_class[10])
    assert score.mean == pytest.approx(1.75)
