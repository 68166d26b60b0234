"""Fixtures that the tests of all rooms share."""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HIGHEST_DOMAIN = 101
"""DDS computes its ports from the domain; above this they collide with Linux' ephemeral ports."""


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
    """A ROS domain that no other test of this machine has while this one runs, set in the environment.

    A lock file a domain in the temporary folder holds across worker processes and checkouts; the kernel frees it
    when its process ends, however it ends.
    """
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # Domain 0 is everybody's default. The order is random so that a domain rests before it is used again.
    for domain in random.sample(range(1, HIGHEST_DOMAIN + 1), HIGHEST_DOMAIN):
        with (Path(tempfile.gettempdir()) / f"gdfusion_ros_domain_{domain}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
            yield domain
            return
    pytest.fail(f"all {HIGHEST_DOMAIN} ROS domains are locked by other tests")
