"""Where the files that come with the package are looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gdfusion_ros import share
from gdfusion_ros.share import share_dir


@pytest.fixture(autouse=True)
def _fresh_search():
    share_dir.cache_clear()
    yield
    share_dir.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package as if it lay in an environment and not in a checkout; gives the environment's share folder."""
    monkeypatch.setattr(share, "__file__", str(tmp_path / "lib/site-packages/gdfusion_ros/share.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    return tmp_path / "share/gdfusion_ros"


def test_a_checkout_uses_its_own_files(root):
    assert share_dir() == root
    assert (share_dir() / "config/fastdds_shm.xml").is_file()


def test_an_environment_without_a_sourced_workspace_uses_its_own_files(installed):
    (installed / "config").mkdir(parents=True)
    assert share_dir() == installed


def test_a_sourced_workspace_comes_before_the_environment(installed, monkeypatch, tmp_path):
    (installed / "config").mkdir(parents=True)
    workspace = tmp_path / "workspace"
    (workspace / "share/gdfusion_ros/config").mkdir(parents=True)
    index = workspace / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    (index / "gdfusion_ros").touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(workspace))
    assert share_dir() == workspace / "share/gdfusion_ros"


def test_a_sourced_workspace_without_the_package_is_passed_over(installed, monkeypatch, tmp_path):
    (installed / "config").mkdir(parents=True)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert share_dir() == installed


def test_an_installation_without_the_files_is_named(installed):
    with pytest.raises(FileNotFoundError, match="install the package again"):
        share_dir()
