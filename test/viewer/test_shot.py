"""What is kept of a moment, its colours, and which voxels are worth drawing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gdfusion_ros.labels import OCC3D
from gdfusion_ros.viewer.colors import FALSE_ALARM, GREY, MISSED, RIGHT, WRONG_CLASS, legend, voxel_colors
from gdfusion_ros.viewer.shot import Shot, status_lines, true_shot
from gdfusion_ros.viewer.voxels import Choice, box, chosen, split_by_shape, square

ALL = frozenset(range(17))
ROAD, WALL, CAR = 11, 15, 4


def test_a_shot_holds_what_is_predicted_and_what_is_missed(shots: list[Shot]) -> None:
    shot = shots[0]
    assert shot.predicted.sum() == 40 * 40 + 30 * 2 * 5 + 4 * 2 * 2
    # Two rows of the true car stick out of the predicted one.
    assert (~shot.predicted).sum() == 2 * 2 * 2
    assert set(shot.labels[~shot.predicted]) == {CAR}
    assert len(true_shot(shot).cells) == shot.predicted.sum()
    assert (true_shot(shot).labels == CAR).sum() == 16


def test_each_way_of_colouring(shots: list[Shot], shot_without_truth: Shot) -> None:
    shot = shots[0]
    np.testing.assert_array_equal(voxel_colors(shot), OCC3D.palette()[shot.labels])
    errors = voxel_colors(shot, "error")
    assert (errors[~shot.predicted] == MISSED).all()
    car = shot.predicted & (shot.labels == CAR)
    assert (errors[car] == FALSE_ALARM).all(axis=1).sum() == 8
    assert (errors[car] == RIGHT).all(axis=1).sum() == 8
    assert (errors[shot.labels == ROAD] == RIGHT).all()
    flow = voxel_colors(shot, "flow")
    assert (flow[shot.labels == ROAD] == GREY).all()
    # Forward is the hue 0: red.
    red, green, blue = flow[car][0]
    assert red > 200
    assert max(green, blue) < 100
    assert len({tuple(color) for color in voxel_colors(shot, "confidence")}) <= 2
    for unknown in ("confidence", "flow", "error"):
        assert (voxel_colors(shot_without_truth, unknown) == GREY).all()  # type: ignore[arg-type]


def test_the_legend_has_every_colour_that_a_voxel_can_have_at_a_corner_of_its_scale() -> None:
    assert legend(OCC3D)["car"] == OCC3D[CAR].color
    assert len(legend(OCC3D)) == 17
    assert legend(OCC3D, "error") == {
        "right": RIGHT,
        "other class": WRONG_CLASS,
        "nothing there": FALSE_ALARM,
        "missed": MISSED,
        "not known": GREY,
    }
    ahead, left = legend(OCC3D, "flow")["ahead"], legend(OCC3D, "flow")["to the left"]
    assert ahead[0] > 200 > 60 > max(ahead[1:])
    assert left[1] > 200
    sure, unsure = legend(OCC3D, "confidence")["100%"], legend(OCC3D, "confidence")["0%"]
    assert sure[1] > 200 > 10 > sure[0]
    assert unsure[0] > 200 > 10 > unsure[1]


def test_the_status_says_latency_and_why_history_began_anew(shots: list[Shot]) -> None:
    shot = replace(shots[0], sequence=3, timings_ms={"inference": 80.4, "total": 95.5, "load": 3.0})
    text = "\n".join(status_lines(replace(shot, restart_reason="camera_was_missing")))
    assert "sequence 3, 0 frames of history, 2 restarts" in text
    assert "history starts anew: camera was missing" in text
    assert "latency: image to grid 96 ms, inference 80 ms" in text
    assert "latency" not in "\n".join(status_lines(replace(shot, timings_ms={})))


def test_classes_and_heights_are_chosen(shots: list[Shot]) -> None:
    shot = shots[0]
    assert chosen(shot, Choice(ALL)).sum() == shot.predicted.sum()
    assert chosen(shot, Choice(ALL, errors=True)).all()
    assert set(shot.labels[chosen(shot, Choice(ALL - {CAR}))]) == set(shot.labels) - {CAR}
    # The wall is five cells high above the ground's one: a cut at three metres leaves two of them.
    low = chosen(shot, Choice(frozenset({WALL}), height=3.0))
    assert low.sum() == 30 * 2 * 2


def test_only_open_faces_are_drawn_and_flat_ground_as_squares(shots: list[Shot]) -> None:
    shot = shots[0]
    mask = chosen(shot, Choice(ALL))
    boxes, ground = split_by_shape(shot, mask)
    assert not set(boxes) & set(ground)
    assert (shot.cells[ground][:, 2] == 0).all()
    # The grid's rim (4 * 40 - 4 cells) is open at the side; ground under wall and car is hidden.
    hidden = 30 * 2 + 4 * 2
    assert len(ground) == 40 * 40 - (4 * 40 - 4) - hidden
    assert len(boxes) == 4 * 40 - 4 + 30 * 2 * 5 + 16
    nothing, none = split_by_shape(shot, np.zeros(len(mask), bool))
    assert len(nothing) == len(none) == 0


def test_what_was_inside_shows_when_what_hid_it_is_switched_off() -> None:
    labels = np.full((5, 5, 5), 15, np.uint8)
    labels[2, 2, 2] = CAR
    cells = np.argwhere(labels != 17).astype(np.int16)
    from gdfusion_ros.grid import VoxelGrid

    shot = Shot(
        cells=cells,
        labels=labels.ravel(),
        predicted=np.ones(125, bool),
        grid=VoxelGrid((0, 0, 0), (1, 1, 1), (5, 5, 5)),
        label_set=OCC3D,
        stamp_ns=0,
        world_from_ego=np.eye(4),
    )
    assert CAR not in shot.labels[np.concatenate(split_by_shape(shot, chosen(shot, Choice(ALL))))]
    boxes, ground = split_by_shape(shot, chosen(shot, Choice(frozenset({CAR}))))
    assert shot.labels[boxes].tolist() == [CAR]
    assert len(ground) == 0


def test_a_box_and_a_square_look_outwards() -> None:
    for vertices, faces in (box((1.0, 2.0, 4.0)), square((1.0, 2.0, 4.0))):
        for triangle in faces:
            a, b, c = vertices[triangle]
            assert np.cross(b - a, c - a) @ (a + b + c) > 0
    vertices, faces = box((1.0, 2.0, 4.0))
    np.testing.assert_allclose(np.ptp(vertices, axis=0), (1.0, 2.0, 4.0))
    assert faces.shape == (12, 3)
