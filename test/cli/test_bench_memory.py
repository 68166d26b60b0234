"""`gdfusion bench memory`: rows, savings and the constant state, on networks small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdfusion_ros.cli import memory
from gdfusion_ros.cli.main import main


@pytest.mark.timeout(600)
def test_state_and_peak_are_measured_and_compared(tmp_path: Path) -> None:
    result = memory.measure((("gdfusion-small", "gdfusion-small"),), 3)

    row = result["rows"][0]
    assert row["state_constant_from_second_frame"]
    assert len(row["state_bytes"]) == 3
    assert row["peak_mb"] >= row["loaded_mb"] > 50
    assert result["pairs"][0]["state_saved_percent"] == pytest.approx(0.0)
    assert any("gdfusion-small against" in line for line in memory.table(result))
    memory.draw(result, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_savings_are_shares_of_what_was_before() -> None:
    assert memory.saved(100.0, 28.0) == pytest.approx(72.0)
    assert memory.saved(50.0, 60.0) == pytest.approx(-20.0)


def test_unknown_pairs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", "--pairs", "nothing"]) == 1
    assert "cotr-gf" in capsys.readouterr().err
