"""The strict loader expects just the entries of the published checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdfusion_ros.cli.weights import entry_line, expected_entries
from gdfusion_ros.model.config import load_config, model_names

# Models that have entries of their own because nobody has published weights of theirs.
UNPUBLISHED = {
    *("gdfusion-small", "cotr-gf", "surroundocc-gf", "openoccupancy-gf", "alocc3d-gf-waymo"),
    *("bevdetocc-single", "fbocc-single", "alocc3d-single"),
}
# Networks that share another model's list.
SAME_NETWORK = {
    "alocc3d-gf-wo-mask": "alocc3d-gf",
    "alocc2d-gf-openoccupancy-lidar-depth": "alocc2d-gf-openoccupancy",
}


@pytest.mark.parametrize("model", sorted(set(model_names()) - UNPUBLISHED))
def test_a_model_expects_the_published_entries_and_no_others(model: str, shared_dir: Path) -> None:
    recorded = shared_dir / "parity" / "keys" / f"{SAME_NETWORK.get(model, model)}.txt"
    if not recorded.is_file():
        pytest.skip(f"the reference has no list of the entries of {model}")
    ours = [entry_line(name, tensor) for name, tensor in expected_entries(load_config(model)).items()]
    assert sorted(ours) == sorted(recorded.read_text().splitlines())


def test_every_recorded_list_belongs_to_a_model(shared_dir: Path) -> None:
    recorded = {path.stem for path in (shared_dir / "parity" / "keys").glob("*.txt")}
    assert recorded <= set(model_names())
