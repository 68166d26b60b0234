"""`gdfusion evaluate --source nuscenes` on a made-up folder, through the real devkit and all forms of labels."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_up_nuscenes import write_nuscenes

from gdfusion_ros import grid as grids
from gdfusion_ros.cli import evaluate, main
from gdfusion_ros.frame import CameraFrame, Flow, FlowKind
from gdfusion_ros.labels import OCC3D, OPENOCC, SURROUNDOCC, LabelSet
from gdfusion_ros.sources.nuscenes_tables import NuScenesSource
from gdfusion_ros.sources.world import WorldSource

pytest.importorskip("nuscenes")
FRAMES = 3


@dataclass
class Oracle:
    """Knows the answers by the frames' stamps, and gives them away with some made wrong."""

    answers: dict[int, np.ndarray]
    grid: grids.VoxelGrid = grids.OCC3D
    label_set: LabelSet = OCC3D
    flow: np.ndarray | None = None
    name: str = "oracle"
    weights: str = "none"
    cameras: tuple[str, ...] = ()
    config: Any = field(default_factory=SimpleNamespace)

    def __call__(self, frame: CameraFrame, state: Any) -> tuple[Any, Any]:
        labels = self.answers[frame.stamp_ns // 1000]
        flow = None if self.flow is None else Flow(FlowKind.VELOCITY, self.flow, np.ones(labels.shape, bool))
        prediction = SimpleNamespace(labels=labels, confidence=None, flow=flow, timings_ms={})
        return prediction, SimpleNamespace(frames=1 if state is None else state.frames + 1, bytes=0)


@dataclass(frozen=True)
class DataSet:
    """The folder, and what is in it."""

    folder: Path
    frames: dict[str, list[CameraFrame]]
    truths: dict[str, list[Any]]
    samples: dict[tuple[str, int], str]

    def stamps(self) -> dict[int, np.ndarray]:
        """True labels by stamp in microseconds."""
        return {
            frame.stamp_ns // 1000: truth.labels
            for name in self.frames
            for frame, truth in zip(self.frames[name], self.truths[name], strict=True)
        }


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("nuscenes")
    frames, truths = {}, {}
    for seed, name in ((3, "scene-0001"), (4, "scene-0002")):
        pairs = list(WorldSource(seed, FRAMES, image_size=(24, 64), grid=grids.OCC3D).pairs())
        # The world's scenes all begin at one time; data sets' do not.
        frames[name] = [shifted(frame, seed) for frame, _ in pairs]
        truths[name] = [truth for _, truth in pairs]
    samples = write_nuscenes(folder, frames)
    for (name, k), sample in samples.items():
        path = folder / "gts" / name / sample / "labels.npz"
        path.parent.mkdir(parents=True)
        truth = truths[name][k]
        np.savez_compressed(path, semantics=truth.labels, mask_camera=truth.visible, mask_lidar=truth.visible)
    return DataSet(folder, frames, truths, samples)


def shifted(frame: CameraFrame, hours: int) -> CameraFrame:
    from dataclasses import replace

    late = hours * 3600 * 10**9
    views = tuple(replace(view, stamp_ns=view.stamp_ns + late) for view in frame.views)
    return replace(frame, stamp_ns=frame.stamp_ns + late, views=views)


def result_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Oracle, *arguments: str
) -> dict[str, Any]:
    monkeypatch.setattr(evaluate, "load", lambda *_: model)
    assert main.main(["evaluate", *arguments, "--source", "nuscenes", "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_the_devkit_gives_back_what_was_written(data_set: DataSet) -> None:
    source = NuScenesSource(data_set.folder)
    assert len(source) == 2 * FRAMES
    for (names, frame), (scene, k) in zip(source.pairs(), data_set.samples, strict=True):
        expected = data_set.frames[scene][k]
        assert (names.scene, names.sample_token) == (scene, data_set.samples[scene, k])
        assert frame.stamp_ns // 1000 == expected.stamp_ns // 1000
        np.testing.assert_allclose(frame.world_from_ego, expected.world_from_ego, atol=1e-9)
        for view in frame.views:
            original = expected.view(view.name)
            np.testing.assert_array_equal(view.image, original.image)
            np.testing.assert_allclose(view.world_from_ego, original.world_from_ego, atol=1e-9)
            np.testing.assert_allclose(view.ego_from_camera, original.ego_from_camera, atol=1e-9)
    assert len(source.world_from_lidars("scene-0002")) == FRAMES


def test_the_right_answers_score_100(
    data_set: DataSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = Oracle(data_set.stamps())
    result = result_of(capsys, monkeypatch, model, str(data_set.folder), "--out", str(tmp_path))
    assert result["miou"] == result["iou"] == result["rayiou"] == result["miou_movable"] == 100.0
    assert (result["frames"], result["sequences"]) == (2 * FRAMES, 2)
    assert (tmp_path / "confusion.png").is_file()


def test_wrong_voxels_count_under_the_camera_mask_only_where_cameras_see(
    data_set: DataSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {}
    for scene, frames in data_set.frames.items():
        for frame, truth in zip(frames, data_set.truths[scene], strict=True):
            answers[frame.stamp_ns // 1000] = np.where(truth.visible, truth.labels, 0).astype(np.uint8)
    model = Oracle(answers)
    arguments = [str(data_set.folder), "--scenes", "scene-0002", "--no-rays"]
    masked = result_of(capsys, monkeypatch, model, *arguments)
    assert masked["miou"] == 100.0
    assert masked["miou_everywhere"] < 100.0
    assert masked["frames"] == FRAMES
    assert result_of(capsys, monkeypatch, model, *arguments, "--no-camera-mask")["miou"] < 100.0


def test_labels_of_openocc_with_flow_give_the_occ_score(
    data_set: DataSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {label.id: OPENOCC.id(label.name) for label in OCC3D.labels if label.name != "others"}
    lookup = np.array([names.get(i, OPENOCC.free) for i in range(18)], np.uint8)
    flow = np.zeros((*grids.OCC3D.shape, 2), np.float32)
    flow[..., 0] = 0.5
    answers = {}
    for (scene, k), sample in data_set.samples.items():
        path = tmp_path / scene / sample / "labels.npz"
        path.parent.mkdir(parents=True)
        labels = lookup[data_set.truths[scene][k].labels]
        np.savez_compressed(path, semantics=labels, flow=flow)
        answers[data_set.frames[scene][k].stamp_ns // 1000] = labels
    model = Oracle(answers, label_set=OPENOCC, flow=np.zeros((*grids.OCC3D.shape, 3), np.float32))
    arguments = [str(data_set.folder), "--labels", str(tmp_path), "--labels-form", "openocc"]
    result = result_of(capsys, monkeypatch, model, *arguments)
    assert result["rayiou"] == 100.0
    assert result["mave"] == pytest.approx(0.5)
    assert result["occ_score"] == pytest.approx(100 * (0.9 + 0.1 * 0.5))


@pytest.mark.parametrize("form", ["surroundocc", "openoccupancy"])
@pytest.mark.parametrize("label_set", [SURROUNDOCC, OCC3D])
def test_rows_of_cells_in_the_lidar_frame(
    data_set: DataSet,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    form: str,
    label_set: LabelSet,
) -> None:
    rng = np.random.default_rng(0)
    grid = grids.SURROUNDOCC if form == "surroundocc" else grids.OPENOCCUPANCY
    source = NuScenesSource(data_set.folder)
    answers = {}
    for names, frame in source.pairs():
        cells = np.unique(rng.integers(0, grid.shape, (500, 3)), axis=0)
        labels = rng.integers(0, 17, len(cells))
        if form == "surroundocc":
            path, rows = tmp_path / f"{names.lidar_file}.npy", np.column_stack([cells, labels])
        else:
            path = tmp_path / f"scene_{names.scene_token}" / "occupancy" / f"{names.lidar_token}.npy"
            rows = np.column_stack([cells[:, ::-1], labels])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows)
        answer = np.full(grid.shape, label_set.free, np.uint8)
        answer[tuple(cells.T)] = np.where(labels == 0, label_set.free, labels)
        answers[frame.stamp_ns // 1000] = answer
    model = Oracle(answers, grid, label_set)
    arguments = [str(data_set.folder), "--labels", str(tmp_path), "--labels-form", form]
    result = result_of(capsys, monkeypatch, model, *arguments)
    assert result["miou"] == result["iou"] == 100.0
    assert "rayiou" not in result


def test_missing_labels_tables_and_scenes_are_said_in_one_line(
    data_set: DataSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluate, "load", lambda *_: Oracle(data_set.stamps()))
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ([str(tmp_path)], "no labels"),
        ([str(data_set.folder), "--labels", str(empty)], "cannot read ground truth"),
        ([str(data_set.folder), "--scenes", "scene-9999"], "no scene scene-9999"),
        ([str(tmp_path), "--labels", str(empty)], "there is no v1.0-trainval in"),
    ):
        assert main.main(["evaluate", *arguments, "--source", "nuscenes"]) == 1
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
