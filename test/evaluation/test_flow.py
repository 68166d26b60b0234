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


def test_velocities_that_nobody_annotated_count_nowhere() -> None:
    truth, guess = field((3, 4, 0), (np.nan, 0, 0), (np.inf, 0, 0)), field((0, 0, 0), (0, 0, 0), (0, 0, 0))
    score, by_class = FlowScore(), ClassFlowError((4,))
    score.add(guess, truth, np.ones((3, 1, 1), bool))
    by_class.add(guess, truth, np.full((3, 1, 1), 4, np.uint8))
    assert (score.epe_moving, score.moving_voxels, by_class.mean) == (5.0, 1, 5.0)


def test_the_class_errors_equal_brute_force_on_200_random_small_grids() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        shape = tuple(rng.integers(1, 6, 3))
        labels = rng.choice([4, 7, 11, 17, 255], shape).astype(np.uint8)
        guess = rng.normal(size=(*shape, 3)).astype(np.float32)
        truth = rng.normal(size=(*shape, 2)).astype(np.float32)
        score, errors = ClassFlowError((4, 7)), {4: [], 7: []}
        score.add(guess, truth, labels)
        for at in np.ndindex(shape):
            if labels[at] in errors:
                errors[labels[at]].append(math.dist(guess[at][:2].tolist(), truth[at].tolist()))
        means = [sum(values) / len(values) for values in errors.values() if values]
        expected = sum(means) / len(means) if means else math.nan
        assert score.mean == pytest.approx(expected, rel=1e-12, nan_ok=True)


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
