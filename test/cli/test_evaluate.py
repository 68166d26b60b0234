"""`gdfusion evaluate` from the outside, with a stand-in for the network: sources, files, JSON."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from driving import drive, tiny_model

from gdfusion_ros import grid as grids
from gdfusion_ros.assembly.rig import find_topics
from gdfusion_ros.cli import evaluate, main
from gdfusion_ros.frame import CameraFrame, Flow, FlowKind
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.sinks.bag import record_frames
from gdfusion_ros.sources.nuscenes import FolderSource

COARSE = VoxelGrid.from_bounds((-40.0, 40.0, 1.6), (-40.0, 40.0, 1.6), (-1.0, 5.4, 0.8))
KEYS = ("miou", "iou", "per_class", "miou_movable", "miou_hidden", "flow_epe_moving", "flow_zero_epe_moving")


@dataclass
class FlatRoad:
    """Says "road" for one layer of cells everywhere, and sees further left the longer its history."""

    grid: VoxelGrid = COARSE
    name: str = "flat-road"
    weights: str = "none"
    label_set: Any = OCC3D
    cameras: tuple[str, ...] = ("CAM_FRONT",)
    config: Any = field(default_factory=lambda: SimpleNamespace(image=SimpleNamespace(height=24, width=64)))

    def prepare(self, view: Any) -> Any:
        return view

    def __call__(self, frame: CameraFrame, state: Any) -> tuple[Any, Any]:
        frames = 1 if state is None else state.frames + 1
        labels = np.full(self.grid.shape, OCC3D.free, np.uint8)
        labels[:, : 24 + 4 * frames, 1] = OCC3D.id("driveable_surface")
        flow = Flow(
            FlowKind.VELOCITY, np.zeros((*self.grid.shape, 3), np.float32), np.ones(self.grid.shape, bool)
        )
        prediction = SimpleNamespace(labels=labels, confidence=None, flow=flow, timings_ms={})
        return prediction, SimpleNamespace(frames=frames, bytes=0)


@pytest.fixture
def flat_road(monkeypatch: pytest.MonkeyPatch) -> FlatRoad:
    model = FlatRoad()
    monkeypatch.setattr(evaluate, "load", lambda *_: model)
    return model


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main.main(["evaluate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.usefixtures("flat_road")
def test_the_world_gives_all_scores_with_and_without_history_and_all_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", "world", "--seeds", "5:7", "--frames", "6"]
    result = result_of(capsys, *arguments, "--out", str(tmp_path / "out"))
    for key in KEYS:
        assert key in result
        assert key in result["without_history"]
    assert result["frames"] == 12
    assert result["sequences"] == 2
    assert 0 < result["per_class"]["driveable_surface"] < 100
    # The stand-in knows more of the road with history.
    assert result["iou"] > result["without_history"]["iou"]
    # It predicts no flow, so its error is that of zero.
    assert result["flow_epe_moving"] == result["flow_zero_epe_moving"] > 0
    assert 0 <= result["flow_epe_static"] < 0.2
    out = tmp_path / "out"
    assert json.loads((out / "summary.json").read_text())["miou"] == result["miou"]
    rows = list(csv.DictReader((out / "frames.csv").open()))
    assert len(rows) == 12
    assert {row["scene"] for row in rows} == {"world-5", "world-6"}
    assert len(list((out / "worst").glob("*.png"))) == 10
    worst = sorted(float(row["miou"]) for row in rows)
    first = min((out / "worst").glob("*.png")).stem
    assert float(rows[int(first[-5:])]["miou"]) == worst[0]
    assert (out / "classes.png").stat().st_size > 5000
    assert (out / "confusion.png").stat().st_size > 5000


@pytest.mark.usefixtures("flat_road")
def test_the_same_seeds_give_the_same_numbers_to_the_digit(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source", "world", "--seeds", "9", "--frames", "3", "--no-without-history", "--rays"]
    first, second = (result_of(capsys, *arguments) for _ in range(2))
    assert "without_history" not in first
    assert first["rayiou"] is not None
    del first["median_ms"], second["median_ms"]
    assert first == second


def test_a_folder_without_labels_is_witnessed_by_its_lidar(
    flat_road: FlatRoad, capsys: pytest.CaptureFixture[str], shared_dir: Path, tmp_path: Path
) -> None:
    flat_road.grid = grids.OCC3D
    folder = shared_dir / "data" / "nuscenes_n015"
    result = result_of(capsys, str(folder), "--source", "folder", "--out", str(tmp_path))
    assert "miou" not in result
    assert result["lidar"]["returns"] > 15_000
    assert 0 < result["lidar"]["returns_in_occupied"] < 1
    assert json.loads((tmp_path / "summary.json").read_text())["lidar"] == result["lidar"]


def test_a_recording_with_point_clouds_gives_what_its_folder_gave(
    flat_road: FlatRoad, capsys: pytest.CaptureFixture[str], shared_dir: Path, tmp_path: Path
) -> None:
    flat_road.grid = grids.OCC3D
    folder = shared_dir / "data" / "nuscenes_n015"
    record_frames(FolderSource(folder), tmp_path / "bag")
    bag = result_of(capsys, str(tmp_path / "bag"), "--source", "bag")
    direct = result_of(capsys, str(folder), "--source", "folder")
    assert bag["lidar"]["returns"] == pytest.approx(direct["lidar"]["returns"], abs=5)
    assert bag["lidar"]["returns_in_occupied"] == pytest.approx(
        direct["lidar"]["returns_in_occupied"], abs=1e-3
    )
    assert bag["lidar"]["free_space_free"] == pytest.approx(direct["lidar"]["free_space_free"], abs=1e-3)


def test_a_recording_of_another_rig_is_scored_with_a_network_made_for_its_cameras(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = ("CAM_FRONT", "CAM_BACK")
    record_frames(drive([0.0, 0.5], cameras=names), tmp_path / "bag")
    topics = tmp_path / "two.yaml"
    rig = yaml.safe_load(find_topics("nuscenes").read_text())
    rig["cameras"] = {name: rig["cameras"][name] for name in names}
    topics.write_text(yaml.safe_dump(rig))
    model = ["--model", str(tiny_model(tmp_path)), "--weights", "random:0"]
    result = result_of(capsys, str(tmp_path / "bag"), "--source", "bag", "--topics", str(topics), *model)
    assert result["frames"] == 2


@pytest.mark.usefixtures("flat_road")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "folder"], "needs a path"),
        (["--source", "folder", "/nowhere"], "frames.json"),
        (["--source", "bag", "/nowhere"], "no recording"),
        (["--source", "world", "--weather", "hail"], "no weather"),
    ],
)
def test_wrong_input_ends_with_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main.main(["evaluate", *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("gdfusion evaluate: error:")
    assert message in error


@pytest.mark.parametrize("text", ["5:3", "a:b", "-2:4", ""])
def test_seeds_that_name_nothing_are_refused(text: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(["evaluate", "--source", "world", f"--seeds={text}"])
    assert stop.value.code == 2
