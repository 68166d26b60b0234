"""`gdfusion bench memory`: rows, savings and the constant state, on networks small enough for a test."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from gdfusion_ros.cli import memory
from gdfusion_ros.cli.main import main
from gdfusion_ros.model.config import load_config
from gdfusion_ros.model.lidar import lidar_depth
from gdfusion_ros.sources.world import WorldSource


@pytest.mark.timeout(600)
def test_state_and_peak_are_measured_and_compared(tmp_path: Path) -> None:
    result = memory.measure((("gdfusion-small", "gdfusion-small"),), 3)

    row = result["rows"][0]
    assert row["state_constant_from_second_frame"]
    assert len(row["state_bytes"]) == 3
    assert row["peak_mb"] >= row["loaded_mb"] > 50
    assert row["cpu_s"] > 0
    assert result["pairs"][0]["state_saved_percent"] == pytest.approx(0.0)
    assert any("gdfusion-small against" in line for line in memory.table(result))
    memory.draw(result, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_the_peak_of_a_process_is_its_own_and_not_that_of_who_started_it() -> None:
    held = np.ones(60_000_000)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        started = pool.submit(memory.peak_mb).result()
    assert memory.peak_mb() > held.nbytes / 1e6
    assert started < held.nbytes / 1e6


def test_a_drive_shows_what_the_networks_own_rig_sees() -> None:
    waymo = load_config("alocc3d-gf-waymo")
    waymo = replace(waymo, image=replace(waymo.image, height=32, width=64))
    (frame,) = memory.drive(waymo, 1)
    assert tuple(view.name for view in frame.views) == waymo.cameras
    assert frame.lidar_points is None


def test_points_of_a_drives_lidar_lie_at_the_depth_that_the_pixels_show() -> None:
    config = load_config("alocc3d-gf-lidar-depth")
    config = replace(config, image=replace(config.image, height=64, width=160))
    (frame,) = memory.drive(config, 1)
    truth = WorldSource(0, 1, image_size=(64, 160)).ground_truth(0)
    measured = lidar_depth(frame, frame.views, config.image, config.depth_bins)
    for cells, depth in zip(measured, truth.depth, strict=True):
        blocks = depth.reshape(4, 16, 10, 16)
        seen = cells > 0
        assert seen.mean() > 0.8
        # But for points of a neighbouring camera, which looks past a corner or at another moment.
        fits = (cells > blocks.min(axis=(1, 3)) - 0.1) & (cells < blocks.max(axis=(1, 3)) + 0.1)
        assert fits[seen].mean() > 0.9


def test_savings_are_shares_of_what_was_before() -> None:
    assert memory.saved(100.0, 28.0) == pytest.approx(72.0)
    assert memory.saved(50.0, 60.0) == pytest.approx(-20.0)


def test_unknown_pairs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", "--pairs", "nothing"]) == 1
    assert "cotr-gf" in capsys.readouterr().err
