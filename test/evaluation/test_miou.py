"""The confusion matrix against hand-worked cases and a brute-force twin."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gdfusion_ros.evaluation.miou import ConfusionMatrix
from gdfusion_ros.labels import OCC3D, SURROUNDOCC, LabelSet

CAR, ROAD, FREE = 4, 11, 17


def brute_force(frames: list, label_set: LabelSet) -> tuple[dict[int, float], float, float, float]:
    """IoU by class, mIoU, mIoU of movable classes and occupied IoU, voxel by voxel in plain Python."""
    known = {label.id for label in label_set.labels}
    hit, false, missed = (dict.fromkeys(known, 0) for _ in range(3))
    both = either = 0
    for predicted, truth, mask in frames:
        for p, t, m in zip(
            predicted.ravel().tolist(), truth.ravel().tolist(), mask.ravel().tolist(), strict=True
        ):
            if not m or t not in known:
                continue
            if p == t:
                hit[t] += 1
            else:
                missed[t] += 1
                if p in known:
                    false[p] += 1
            full, guess = t != label_set.free, p in known and p != label_set.free
            both += full and guess
            either += full or guess
    ious = {}
    for i in known - {label_set.free}:
        union = hit[i] + false[i] + missed[i]
        ious[i] = hit[i] / union if union else float("nan")

    def mean(values: list[float]) -> float:
        there = [v for v in values if not math.isnan(v)]
        return sum(there) / len(there) if there else float("nan")

    return (
        ious,
        mean(list(ious.values())),
        mean([ious[i] for i in label_set.movable_ids]),
        both / either if either else float("nan"),
    )


def test_a_case_worked_by_hand() -> None:
    truth = np.array([CAR, CAR, CAR, ROAD, ROAD, FREE, FREE, 255], dtype=np.uint8).reshape(2, 2, 2)
    predicted = np.array([CAR, CAR, FREE, ROAD, CAR, FREE, ROAD, CAR], dtype=np.uint8).reshape(2, 2, 2)
    matrix = ConfusionMatrix(OCC3D)
    matrix.add(predicted, truth)
    # Car: 2 hits, 1 missed (free), 1 false (on road). Road: 1 hit, 1 missed, 1 false (in free space).
    assert matrix.ious()[CAR] == 2 / 4
    assert matrix.ious()[ROAD] == 1 / 3
    assert matrix.miou() == pytest.approx((2 / 4 + 1 / 3) / 2, abs=1e-15)
    assert matrix.miou_movable == 2 / 4
    # Occupied: 4 of the 5 true voxels found, one false.
    assert matrix.occupied_iou == 4 / 6
    assert math.isnan(matrix.ious()[0])
    assert FREE not in matrix.ious()
    assert matrix.present_ids == (CAR, ROAD)


def test_only_voxels_under_the_mask_count() -> None:
    truth = np.array([CAR, FREE], dtype=np.uint8).reshape(2, 1, 1)
    predicted = np.array([CAR, CAR], dtype=np.uint8).reshape(2, 1, 1)
    seen = np.array([True, False]).reshape(2, 1, 1)
    matrix = ConfusionMatrix(OCC3D)
    matrix.add(predicted, truth, seen)
    assert matrix.miou() == 1.0
    assert matrix.occupied_iou == 1.0


def test_an_unknown_prediction_misses_the_true_class_and_raises_no_false_alarm() -> None:
    matrix = ConfusionMatrix(OCC3D)
    matrix.add(np.array([CAR, 255, 255], np.uint8), np.array([CAR, CAR, FREE], np.uint8))
    assert matrix.ious()[CAR] == 1 / 2
    assert matrix.occupied_iou == 1 / 2


def test_labels_shifted_by_one_score_nothing() -> None:
    truth = np.repeat(np.arange(16, dtype=np.uint8), 10)
    matrix = ConfusionMatrix(OCC3D)
    matrix.add(truth + 1, truth)
    assert matrix.miou() == 0.0


@pytest.mark.parametrize("label_set", [OCC3D, SURROUNDOCC])
def test_it_equals_brute_force_on_200_random_small_grids(label_set: LabelSet) -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        frames = []
        matrix = ConfusionMatrix(label_set)
        ids = [*rng.integers(0, 18, 4), label_set.free, 255]
        for _ in range(rng.integers(1, 4)):
            shape = tuple(rng.integers(1, 6, 3))
            predicted = rng.choice(ids, shape).astype(np.uint8)
            truth = rng.choice(ids, shape).astype(np.uint8)
            mask = rng.random(shape) < 0.7
            frames.append((predicted, truth, mask))
            matrix.add(predicted, truth, mask)
        ious, miou, movable, occupied = brute_force(frames, label_set)
        np.testing.assert_array_equal(
            [matrix.ious()[i] for i in sorted(ious)], [ious[i] for i in sorted(ious)]
        )
        np.testing.assert_allclose(
            [matrix.miou(), matrix.miou_movable, matrix.occupied_iou], [miou, movable, occupied], rtol=1e-14
        )


def test_merged_halves_equal_the_whole() -> None:
    rng = np.random.default_rng(3)
    whole, parts = ConfusionMatrix(OCC3D), [ConfusionMatrix(OCC3D) for _ in range(2)]
    for k in range(4):
        predicted, truth = rng.integers(0, 18, (2, 5, 5, 5)).astype(np.uint8)
        whole.add(predicted, truth)
        parts[k % 2].add(predicted, truth)
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(parts[0].counts, whole.counts)
    with pytest.raises(ValueError, match="differ"):
        whole.merge(ConfusionMatrix(SURROUNDOCC))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        ConfusionMatrix(OCC3D).add(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
