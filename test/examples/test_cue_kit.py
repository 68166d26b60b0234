"""The cue kit's example runs, and its page shows what it really does."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from gdfusion_ros.model.config import ModelConfig, TemporalConfig, read_config
from gdfusion_ros.model.model import OccupancyModel, build_network
from gdfusion_ros.model.networks import FAMILIES
from gdfusion_ros.model.weights import load_entries, published_entries, randomise
from gdfusion_ros.sources.world import WorldSource
from gdfusion_ros.training.recipe import LossWeights, Recipe, Stage
from gdfusion_ros.training.train import Trainer

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def example(root: Path) -> Iterator[ModuleType]:
    """The example's script, imported from where it lies."""
    folder, families = str(root / "examples"), dict(FAMILIES)
    sys.path.insert(0, folder)
    yield importlib.import_module("train_plugged")
    sys.path.remove(folder)
    FAMILIES.clear()
    FAMILIES.update(families)


@pytest.fixture(scope="module")
def config(example: ModuleType) -> ModelConfig:
    loaded = example.load_example()
    grid = replace(loaded.grid, x=(-40.0, 40.0, 4.0), y=(-40.0, 40.0, 4.0))
    return replace(loaded, image=replace(loaded.image, height=32, width=96), grid=grid)


def model(config: ModelConfig, base: OccupancyModel | None = None) -> OccupancyModel:
    network = build_network(config)
    randomise(network, 0)
    if base is not None:
        load_entries(network, published_entries(base.network), "the plain network", config.temporal)
    return OccupancyModel(config, network, "test")


def test_the_plain_network_has_no_more_than_thirty_lines(root: Path) -> None:
    text = (root / "examples" / "plain_network.py").read_text()
    body = text[text.index("class PlainNetwork") : text.index("def halved")]
    body = re.sub(r'""".*?"""', "", body, flags=re.DOTALL)
    assert len([line for line in body.splitlines() if line.strip()]) <= 30


def test_before_training_the_cues_change_nothing(config: ModelConfig) -> None:
    plain = model(replace(config, family="plain", temporal=TemporalConfig(history="none")))
    plugged = model(config, plain)

    state = None
    for frame in WorldSource(3, 3, image_size=(32, 96), grid=config.grid.output):
        expected, _ = plain(frame, None)
        actual, state = plugged(frame, state)
        assert (actual.labels == expected.labels).all()
    assert state is not None
    assert state.frames == 3
    assert {"voxel", "motion", "scene_weight", "scene_bias", "geometry"} <= state.tensors.keys()


def test_it_trains_and_is_scored(example: ModuleType, config: ModelConfig, tmp_path: Path) -> None:
    stages = (
        Stage("frames", False, 4, 1.0, batch=1, rate=0.004, losses=LossWeights(flow=0.0)),
        Stage("streams", True, 4, 1.0, batch=1, rate=0.004, freeze_norm=True, losses=LossWeights(flow=0.0)),
    )
    trainer = Trainer(Recipe("plugged", "world", 1, 2, stages, average=0.5), tmp_path, config=config)
    assert trainer.run()
    gains = [p for name, p in trainer.network.named_parameters() if name.split(".")[-1] == "gain"]
    assert len(gains) == 2
    assert all(float(gain.detach().abs().max()) > 0 for gain in gains)

    trained = OccupancyModel(config, trainer.network, "test")
    report = example.compare(*(example.score(trained, 1, history=history) for history in (False, True)))
    assert report["sequences"] == 1
    for voxels in ("all", "hidden"):
        low, high = report[voxels]["interval"]
        assert low <= report[voxels]["difference"] <= high


def test_the_page_shows_lines_that_the_example_has(root: Path) -> None:
    page = (root / "docs" / "cue_kit.md").read_text()
    files = [path.read_text() for path in sorted((root / "examples").glob("*.py"))]
    shown = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert shown
    for block in shown:
        for line in filter(None, (line.strip() for line in block.splitlines())):
            assert any(line in text for text in files), f"no example has the line {line!r}"


def test_the_page_shows_the_examples_model_file(root: Path) -> None:
    page = (root / "docs" / "cue_kit.md").read_text()
    shown = re.search(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert shown is not None
    wanted = yaml.safe_load((root / "examples" / "plugged.yaml").read_text())
    part = yaml.safe_load(shown.group(1))
    assert part.items() <= wanted.items()
    assert read_config(wanted, "plugged.yaml").temporal.gains
