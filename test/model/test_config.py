"""Model files: what they say, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gdfusion_ros.errors import UserError
from gdfusion_ros.grid import OCC3D, OPENOCCUPANCY, SURROUNDOCC
from gdfusion_ros.model.config import load_config, model_names, read_config


def content(root: Path) -> Any:
    return yaml.safe_load((root / "config" / "models" / "bevdetocc-gf.yaml").read_text())


@pytest.mark.parametrize("name", model_names())
def test_every_model_file_is_valid_and_named_as_its_model(name: str) -> None:
    assert load_config(name).name == name


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("bevdetocc-gf", OCC3D),
        ("fbocc-gf", OCC3D),
        ("alocc2d-gf", OCC3D),
        ("alocc3d-gf-surroundocc", SURROUNDOCC),
        ("alocc2d-gf-openoccupancy", OPENOCCUPANCY),
    ],
)
def test_output_grids_are_those_of_the_data_sets(name: str, grid: object) -> None:
    ours = load_config(name).grid.output
    assert ours.shape == grid.shape
    assert ours.frame == grid.frame
    assert ours.minimum == pytest.approx(grid.minimum)
    assert ours.cell_size == pytest.approx(grid.cell_size)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("family",), "bevdet", "there is no 'bevdet'"),
        (("image", "height"), "256", "image.height: expected int, not '256'"),
        (("image", "height"), 250, "multiples of 32"),
        (("image", "depth"), 3, "there is no setting 'depth'"),
        (("temporal", "voxel"), 1, "temporal.voxel: expected bool, not 1"),
        (("temporal", "history"), "endless", "expected one of recurrent, stacked"),
        (("grid", "x"), [-40.0, 40.0], "grid.x: expected 3 values, not 2"),
        (("grid", "x"), [-40.0, 40.0, 0.7], "no whole number of steps"),
        (("depth", "lower"), -1.0, "make no sense"),
        (("labels", "set"), "mine", "there is no label set 'mine'"),
        (("cameras",), ["A", "A"], "different names"),
        (("architecture", "voxels"), 3, "architecture: there is no setting 'voxels'"),
        (("architecture", "depth_net", "channels"), 2.5, "architecture.depth_net.channels: expected int"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    root: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    settings = content(root)
    part = settings
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(UserError) as error:
        read_config(settings, "my.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("my.yaml")
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_named(root: Path) -> None:
    settings = content(root)
    del settings["cameras"]
    with pytest.raises(UserError, match="'cameras' is missing"):
        read_config(settings, "my.yaml")


def test_unknown_models_and_broken_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model 'nonsense'"):
        load_config("nonsense")
    with pytest.raises(UserError, match="no model file"):
        load_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\nb: }")
    with pytest.raises(UserError) as error:
        load_config(broken)
    assert "\n" not in str(error.value)
    broken.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="mapping of settings"):
        load_config(broken)
