"""Many recordings: atomic outputs, resuming, shards, poisoned recordings, and a Ray cluster whose worker is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import drive, tiny_model

from gdfusion_ros.cli.main import main
from gdfusion_ros.sinks.bag import record_frames
from gdfusion_ros.viewer.recordings import Recordings

TIMES = [0.0, 0.5, 1.0, 1.5]


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return ["--model", str(tiny_model(tmp_path)), "--weights", "random:0", "--json"]


@pytest.fixture
def bags(tmp_path: Path) -> list[str]:
    """Three recordings; each drives elsewhere in time, so that their outputs differ."""
    paths = []
    for number in range(3):
        path = tmp_path / f"drive{number}"
        record_frames(drive([time + number for time in TIMES]), path)
        paths.append(str(path))
    return paths


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def content(folder: Path) -> dict[str, bytes]:
    """Every recorded message file under a folder, by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.mcap"))}


def test_each_recording_gives_one_that_the_viewer_reads(
    tmp_path: Path, options: list[str], bags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", *bags, "--out", str(out), *options]) == 0
    result = last_json(capsys)
    assert set(result["recordings"]) == set(bags)
    assert not result["failed"]
    assert sorted(path.name for path in out.iterdir()) == ["drive0", "drive1", "drive2"]
    single = tmp_path / "npz"
    assert main(["run", bags[1], "--out", str(single), *options]) == 0
    with Recordings([out / "drive1"]) as shots:
        files = sorted(single.glob("*.npz"))
        assert len(shots) == len(files) == len(TIMES)
        for shot, file in zip(shots, files, strict=True):
            arrays = np.load(file)
            labels = np.full(shot.grid.shape, arrays["free_label"], np.uint8)
            labels[tuple(shot.cells.T)] = shot.labels
            np.testing.assert_array_equal(labels, arrays["labels"])
            np.testing.assert_allclose(shot.world_from_ego, arrays["world_from_ego"], atol=1e-9)
            assert shot.stamp_ns == arrays["stamp_ns"]


def test_a_poisoned_recording_is_reported_and_the_next_run_does_only_what_is_missing(
    tmp_path: Path, options: list[str], bags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = next(Path(bags[1]).glob("*.mcap"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    assert main(["run", *bags, "--out", str(out), *options]) == 1
    result = last_json(capsys)
    assert list(result["failed"]) == [bags[1]]
    assert "\n" not in result["failed"][bags[1]]
    assert sorted(path.name for path in out.iterdir()) == ["drive0", "drive2"]

    assert main(["run", *bags, "--out", str(out), *options]) == 1
    assert "--resume" in capsys.readouterr().err
    broken.write_bytes(whole)
    before = content(out)
    assert main(["run", *bags, "--out", str(out), "--resume", *options]) == 0
    result = last_json(capsys)
    assert list(result["recordings"]) == [bags[1]]
    assert result["skipped"] == [bags[0], bags[2]]
    assert {name: data for name, data in content(out).items() if name in before} == before


def test_what_a_killed_run_left_behind_is_removed(
    tmp_path: Path, options: list[str], bags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    out = tmp_path / "out"
    for process in (999999999, os.getpid()):  # in a container, numbers come again
        (out / f".partial-drive0-{socket.gethostname()}-{process}").mkdir(parents=True)
    assert main(["run", bags[0], "--mcap", "--out", str(out), *options]) == 0
    capsys.readouterr()
    assert [path.name for path in out.iterdir()] == ["drive0"]


def test_shards_share_the_recordings_without_overlap(
    tmp_path: Path, options: list[str], bags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = []
    for part in range(2):
        # In whatever order a shard lists them.
        assert main(["run", *bags[:: 1 - 2 * part], "--out", str(out), "--shard", f"{part}/2", *options]) == 0
        done.append(set(last_json(capsys)["recordings"]))
    assert done == [{bags[0], bags[2]}, {bags[1]}]
    for wrong in ("2/2", "1", "x/3", "0/0"):
        assert main(["run", *bags, "--out", str(out), "--shard", wrong, *options]) == 1
        assert "--shard" in capsys.readouterr().err


def test_two_sources_of_one_name_and_no_folder_are_refused(
    tmp_path: Path, options: list[str], bags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", bags[0], f"{bags[0]}/", "--out", str(tmp_path / "out"), *options]) == 1
    assert "would both be written" in capsys.readouterr().err
    assert main(["run", *bags, *options]) == 1
    assert "--out" in capsys.readouterr().err


@pytest.mark.timeout(600)
def test_two_ray_workers_one_of_them_killed_and_a_poisoned_recording_leave_the_bytes_of_a_single_process(
    tmp_path: Path,
    options: list[str],
    bags: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    single, cluster = tmp_path / "single", tmp_path / "cluster"
    assert main(["run", *bags, "--out", str(single), *options]) == 0
    capsys.readouterr()
    poisoned = tmp_path / "poisoned"
    poisoned.mkdir()
    (poisoned / "metadata.yaml").write_text("no recording")
    monkeypatch.chdir(tmp_path)  # workers are elsewhere: paths from here must not confuse them
    bags = [Path(bag).name for bag in bags]
    killed: list[int] = []
    stop = threading.Event()

    def kill_first_worker() -> None:
        while not stop.is_set() and not killed:
            for scratch in cluster.glob(".partial-*"):
                process = int(scratch.name.rpartition("-")[2])
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_first_worker)
    killer.start()
    try:
        arguments = ["run", "poisoned", *bags, "--out", cluster.name, "--ray", "local", "--workers", "2"]
        assert main([*arguments, *options]) == 1
    finally:
        stop.set()
        killer.join()
    result = last_json(capsys)
    assert len(killed) == 1
    assert list(result["failed"]) == ["poisoned"]
    assert set(result["recordings"]) == set(bags)
    assert content(cluster) == content(single)
    assert [path.name for path in sorted(cluster.iterdir())] == ["drive0", "drive1", "drive2"]


def test_the_bytes_do_not_depend_on_the_threads_of_the_process(
    tmp_path: Path, options: list[str], bags: list[str]
) -> None:
    import torch

    before, made = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            assert main(["run", bags[0], "--mcap", "--out", str(tmp_path / f"by{count}"), *options]) == 0
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)
        made.append(content(tmp_path / f"by{count}"))
    assert made[0] == made[1] != {}


@pytest.mark.parametrize(
    "wrong", [["--threads", "0"], ["--workers", "2"], ["--ray", "local", "--workers", "0"]]
)
def test_counts_that_make_no_sense_are_refused_in_one_line(
    bags: list[str], options: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert main(["run", *bags, *wrong, *options]) == 1
    assert "at least one" in capsys.readouterr().err.splitlines()[-1]


def test_a_cluster_that_is_not_there_is_said_in_one_line(
    tmp_path: Path, options: list[str], bags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    assert main(["run", *bags, "--out", str(tmp_path / "out"), "--ray", "127.0.0.1:1", *options]) == 1
    assert "no Ray cluster" in capsys.readouterr().err.splitlines()[-1]
