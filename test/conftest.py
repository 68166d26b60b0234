"""Fixtures that the tests of all rooms share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from domains import locked_domain
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("gdfusion", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gdfusion")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Parity fixtures and real frames: the folder GDFUSION_SHARED, or ../shared beside the checkout.

    Tests that need it are skipped where it is absent, and fail in continuous integration.
    """
    folder = Path(os.environ.get("GDFUSION_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        message = "no shared data: GDFUSION_SHARED is not set, and there is no ../shared beside the checkout"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS domain that no other test of this machine has while this one runs, set in the environment."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with locked_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        yield domain
