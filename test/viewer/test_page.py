"""The page's own part, without a browser: what is sent, how often, and where it listens."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from gdfusion_ros import grid as grids
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import Flow, FlowKind, Occupancy
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.viewer.page import Page
from gdfusion_ros.viewer.player import KEPT, LivePlayer, Player
from gdfusion_ros.viewer.shot import Shot, make_shot


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page(port=0)
    yield page
    page.server.stop()


def test_it_listens_on_this_machine_only(page: Page) -> None:
    assert page.url.startswith("http://127.0.0.1:")
    with pytest.raises(OSError, match=r"refused|unreachable"):
        socket.create_connection(("127.0.0.2", int(page.url.rsplit(":", 1)[1])), timeout=2)


def test_a_street_becomes_boxes_squares_arrows_and_a_track(page: Page, shots: list[Shot]) -> None:
    for number, shot in enumerate(shots):
        page.show(shot, number)
    drawn = page._drawn
    assert set(drawn) == {"boxes", "ground", "flow", "track", "cameras/CAM_FRONT", "cameras/CAM_BACK"}
    assert (
        len(drawn["boxes"].batched_positions) + len(drawn["ground"].batched_positions)
        < shots[4].predicted.sum()
    )
    # The vehicle moved two metres a frame: the path lies behind it.
    np.testing.assert_allclose(drawn["track"].points[0, 0], (-8.0, 0.0, 1.0), atol=1e-6)
    assert len(page._pictures) == 2
    assert "0 restarts" in page.status.content
    page.arrows.value = page.track.value = page.cameras.value = False
    page._redraw_on(None)
    assert set(page._drawn) == {"boxes", "ground"}


def test_a_grid_in_the_lidar_frame_is_looked_at_along_its_forward_axis(page: Page, shots: list[Shot]) -> None:
    page.show(shots[0], 0)
    assert page.server.initial_camera.position[0] < -20
    page.show(replace(shots[0], grid=replace(shots[0].grid, frame="lidar")), 1)
    assert page.server.initial_camera.position[1] < -20
    assert abs(page.server.initial_camera.position[0]) < 1e-9


def test_the_legend_follows_what_is_coloured_by(page: Page, shots: list[Shot]) -> None:
    page.show(shots[0], 0)
    assert "driveable_surface" in page.legend.content
    page.color_by.value = "error against ground truth"
    page._redraw_on(None)
    assert "nothing there" in page.legend.content
    assert "driveable_surface" not in page.legend.content


def test_the_height_cut_and_the_classes_leave_what_they_say(page: Page, shots: list[Shot]) -> None:
    page.show(shots[0], 0)
    page.height.value = 1.0
    page._redraw_on(None)
    upper = page._drawn["boxes"].batched_positions[:, 2].max()
    assert upper == pytest.approx(-0.5)
    for control in page._classes.values():
        control.value = False
    page._redraw_on(None)
    assert "boxes" not in page._drawn
    assert "ground" not in page._drawn


def test_a_player_steps_within_its_bounds_and_plays_to_the_end(page: Page, shots: list[Shot]) -> None:
    player = Player(page, shots, rate=30.0)
    player.move(-1)
    assert "frame 1 of 5" in page.status.content
    player.move(1)
    assert "frame 2 of 5" in page.status.content
    player.resume()
    end = time.monotonic() + 60
    while "frame 5 of 5" not in page.status.content and time.monotonic() < end:
        time.sleep(0.05)
    assert "frame 5 of 5" in page.status.content
    assert player.slider.value == 4
    player.close()


def test_a_live_player_keeps_a_bounded_past(page: Page, shots: list[Shot]) -> None:
    player = LivePlayer(page)
    small = replace(shots[0], pictures={})
    for number in range(KEPT + 5):
        player.add(replace(small, stamp_ns=number, history_frames=number))
    player.add(replace(small, stamp_ns=KEPT + 5, sequence=3, restart_reason="pose_jump"), age_ms=140.0)
    assert len(player.shots) == KEPT
    assert player.received == KEPT + 6
    for words in ("sequence 3", "2 restarts", "pose jump", "140 ms after the exposure", "inference 12 ms"):
        assert words in page.status.content
    player.back.value = 3
    player._look_back()
    assert f"{KEPT + 2} frames of history" in page.status.content
    assert not player.follow.value


def test_a_port_out_of_reach_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="cannot serve on"):
        Page(host="203.0.113.7", port=8080)


def test_grids_of_full_size_are_shown_ten_times_a_second(page: Page) -> None:
    rng = np.random.default_rng(0)
    labels = np.full(grids.OCC3D.shape, 17, np.uint8)
    labels[:, :, 2] = 11
    labels[20:180, 60:75, 3:14] = 15
    labels[rng.integers(0, 200, 3000), rng.integers(0, 200, 3000), rng.integers(3, 7, 3000)] = 16
    vectors = rng.normal(size=(*labels.shape, 3)).astype(np.float32)
    flow = Flow(FlowKind.VELOCITY, vectors, labels == 16)
    confidence = rng.integers(0, 255, labels.shape).astype(np.uint8)
    occupancy = Occupancy(labels, grids.OCC3D, OCC3D, 0, 1, 0, (), (), "", "", np.eye(4), confidence, flow)
    page.show(make_shot(occupancy), 0)
    begin = time.process_time()
    for number in range(1, 11):
        page.show(make_shot(occupancy), number)
    # Of one core: what a busy machine takes away does not count.
    assert time.process_time() - begin < 1.0
    assert page.updates >= 11
