"""`gdfusion parity` on the networks that GDFusion is plugged into: OpenOccupancy, SurroundOcc, COTR."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gdfusion_ros.cli.main import main


def report(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    code = main(["parity", str(folder), "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == (0 if result["passed"] else 1)
    return result


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["openoccupancy_cam_small", "surroundocc_small", "cotr_small"])
def test_small_networks_agree(name: str, shared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = report(shared_dir / "parity" / name, capsys)
    assert result["failures"] == []
    assert min(result["label_agreement"]) > 0.999


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_surroundocc_of_full_size_agrees_on_real_frames(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = report(shared_dir / "parity" / "surroundocc_real", capsys)
    assert result["failures"] == []
    assert min(result["label_agreement"]) > 0.999


@pytest.mark.slow_real
@pytest.mark.timeout(3600)
def test_cotr_of_full_size_agrees_on_real_frames(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = report(shared_dir / "parity" / "cotr_real", capsys)
    assert result["failures"] == []
    assert min(result["label_agreement"]) > 0.999
