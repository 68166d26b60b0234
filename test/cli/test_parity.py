"""`gdfusion parity` agrees with the reference numbers, and with nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gdfusion_ros.cli.agreement import compare
from gdfusion_ros.cli.fixtures import NetworkFixture, read_network_fixture
from gdfusion_ros.cli.main import main
from gdfusion_ros.cli.reference import FrameRun, ReferenceModel, build_model, run_network

SMALL = (
    "bevdetocc_gf_small",
    "fbocc_gf_small",
    "alocc3d_gf_small",
    "alocc2d_gf_small",
    "bevdetocc_sf_small",
    "fbocc_small",
    "alocc3d_small",
    "alocc_flow3d_small",
)
REAL = ("bevdetocc_gf_real", "fbocc_gf_real", "alocc3d_gf_real")


def report(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    code = main(["parity", str(folder), "--json", *arguments])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("name", ["fusion_modules", "preprocess"])
def test_modules_agree(name: str, shared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = report(shared_dir / "parity" / name, capsys)
    assert code == 0
    assert result["passed"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SMALL[1:])
def test_small_networks_agree(name: str, shared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = report(shared_dir / "parity" / name, capsys)
    assert result["failures"] == []
    assert code == 0


@pytest.mark.real
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", REAL)
def test_networks_of_full_size_agree_on_real_frames(
    name: str, shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = report(shared_dir / "parity" / name, capsys)
    assert result["failures"] == []
    assert code == 0
    assert min(result["label_agreement"]) > 0.995


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> NetworkFixture:
    return read_network_fixture(shared_dir / "parity" / SMALL[0], None)


@pytest.fixture(scope="module")
def model(fixture: NetworkFixture) -> ReferenceModel:
    return build_model(fixture, "the fixture")


@pytest.fixture(scope="module")
def own(model: ReferenceModel, fixture: NetworkFixture) -> list[FrameRun]:
    return list(run_network(model, fixture))


@pytest.mark.timeout(900)
def test_bevdetocc_gf_agrees_and_nearly_all_its_labels_are_equal(
    model: ReferenceModel, fixture: NetworkFixture, own: list[FrameRun]
) -> None:
    result = compare(model, fixture, own)
    assert result.failures == []
    assert min(result.label_agreement) > 0.999
    assert {error.name for error in result.errors} == set(fixture.tensors)


def tampered(fixture: NetworkFixture, name: str, index: int, change: float) -> NetworkFixture:
    expected = {key: value.copy() if key == name else value for key, value in fixture.expected.items()}
    expected[name].reshape(-1)[index] += np.asarray(change).astype(expected[name].dtype)
    return replace(fixture, expected=expected)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("0/image_features", 0.01),
        ("3/context", 0.001),
        ("0/depth", 0.01),
        ("0/voxel_fused", 0.01),
        ("0/state/motion", 0.002),
        ("3/logits", 0.01),
        ("2/logits", 0.05),
        ("4/encoded", 0.05),
        ("1/state/scene_bias", float("nan")),
    ],
)
def test_one_changed_sample_is_found(
    name: str, share: float, model: ReferenceModel, fixture: NetworkFixture, own: list[FrameRun]
) -> None:
    frame, tensor = name.split("/", 1)
    change = share * fixture.tensors[tensor].absmax[int(frame)]
    result = compare(model, tampered(fixture, name, 17, change), own)
    assert len(result.failures) == 1
    assert tensor in result.failures[0]


@pytest.mark.timeout(1800)
def test_a_changed_sample_that_history_could_explain_is_found_by_running_the_network_again(
    model: ReferenceModel, fixture: NetworkFixture, own: list[FrameRun]
) -> None:
    change = 0.05 * fixture.tensors["voxel_fused"].absmax[1]
    result = compare(model, tampered(fixture, "1/voxel_fused", 4000, change), own)
    assert len(result.failures) == 1
    assert "1: voxel_fused[4000]" in result.failures[0]


@pytest.mark.timeout(900)
def test_one_changed_label_is_found(
    model: ReferenceModel, fixture: NetworkFixture, own: list[FrameRun]
) -> None:
    voxel = int(np.argmax(own[0].margin))
    label = int(fixture.expected["0/labels"].reshape(-1)[voxel])
    changed = first_frame(tampered(fixture, "0/labels", voxel, 1 if label == 0 else -1))
    result = compare(model, changed, list(run_network(model, changed)))
    assert len(result.failures) == 1
    assert f"labels[{voxel}]" in result.failures[0]


def first_frame(fixture: NetworkFixture) -> NetworkFixture:
    expected = {key: value for key, value in fixture.expected.items() if key.startswith("0/")}
    return replace(fixture, frames=fixture.frames[:1], starts=fixture.starts[:1], expected=expected)


def test_recorded_statistics_are_held_to_the_whole_tensor(
    model: ReferenceModel, fixture: NetworkFixture, own: list[FrameRun]
) -> None:
    record = fixture.tensors["lifted"]
    tensors = {**fixture.tensors, "lifted": replace(record, std=[1.1 * record.std[0], *record.std[1:]])}
    result = compare(model, replace(fixture, tensors=tensors), own)
    assert len(result.failures) == 1
    assert "standard deviation of lifted" in result.failures[0]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("entry", ["img_backbone.layer4.2.bn3.bias", "depth_net.depth_head.bias"])
def test_one_changed_weight_is_found(entry: str, fixture: NetworkFixture) -> None:
    weights = dict(fixture.weights)
    weights[entry] = weights[entry].clone()
    weights[entry][3] += 1.0
    short = first_frame(replace(fixture, weights=weights))
    model = build_model(short, "the fixture")
    assert compare(model, short, list(run_network(model, short))).failures


@pytest.fixture
def modules(shared_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "fusion_modules"
    shutil.copytree(shared_dir / "parity" / "fusion_modules", folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


@pytest.mark.parametrize(
    ("file", "name"),
    [("3d_frames.npz", "5/state/M"), ("2d_frames.npz", "0/scene_out"), ("3d_weights.npz", None)],
)
def test_one_changed_number_of_a_module_fails_it(
    file: str, name: str | None, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = dict(np.load(modules / file))
    name = name or "time_emb_net.0.bias"
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1)[5] += 0.1
    np.savez(modules / file, **arrays)
    code, result = report(modules, capsys)
    assert code == 1
    assert not result["passed"]


def test_a_folder_without_a_fixture_and_a_damaged_one_are_named_in_one_line(
    modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(tmp_path / "absent")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["parity", str(tmp_path / "empty")]) == 1
    assert "is no fixture" in capsys.readouterr().err
    whole = (modules / "3d_frames.npz").read_bytes()
    (modules / "3d_frames.npz").write_bytes(whole[: len(whole) // 2])
    assert main(["parity", str(modules)]) == 1
    error = capsys.readouterr().err
    assert "cannot read" in error
    assert len(error.splitlines()) == 1
