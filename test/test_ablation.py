"""The ablation's report, from made-up scores."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def ablation(root):
    spec = importlib.util.spec_from_file_location("ablation", root / "benchmark" / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    return module


def scores(ablation, hits: int, number: int):
    matrix = np.full((18, 19), 10 + number % 3)
    matrix[np.arange(18), np.arange(18)] = hits
    weather = "night" if number % 2 else "day"
    return ablation.SequenceScore(weather, *[matrix.tolist()] * 3, flow=[10, 5.0, 20.0])


@pytest.fixture
def folder(ablation, tmp_path):
    for name, hits in (("none", 200), ("voxel", 300)):
        (tmp_path / f"{name}-0").mkdir()
        for number in range(100, 106):
            text = json.dumps(dataclasses.asdict(scores(ablation, hits, number)))
            (tmp_path / f"{name}-0" / f"score_{number}.json").write_text(text)
    return tmp_path


def test_the_report_tells_the_gain_with_its_interval(ablation, folder, monkeypatch):
    monkeypatch.setattr(ablation, "DRAWS", 40)
    ablation.report(folder)
    none, voxel = (folder / "table.md").read_text().splitlines()[2:]
    assert none.startswith("| none (6 drives)")
    assert "(+" in voxel
    assert (folder / "ablation.png").stat().st_size > 1000


def test_a_variant_equal_to_none_has_an_interval_around_zero(ablation):
    rows = {(0, n): scores(ablation, 200, n) for n in range(6)}
    assert ablation.interval(rows, rows, ablation.METRICS["mIoU"]) == (0.0, 0.0)


def test_without_the_variant_none_there_is_nothing_to_compare_with(ablation, tmp_path):
    with pytest.raises(SystemExit, match="none"):
        ablation.report(tmp_path)
