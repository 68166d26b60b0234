"""A ROS domain that no other test of this machine has."""

from __future__ import annotations

import fcntl
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HIGHEST_DOMAIN = 101
"""DDS computes its ports from the domain; above this they collide with Linux' ephemeral ports."""


@contextmanager
def locked_domain() -> Iterator[int]:
    """A free domain, locked while the `with` runs.

    A lock file a domain in the temporary folder holds across worker processes and checkouts; the kernel frees it
    when its process ends, however it ends. Raises RuntimeError when all are taken.
    """
    # Domain 0 is everybody's default. The order is random so that a domain rests before it is used again.
    for domain in random.sample(range(1, HIGHEST_DOMAIN + 1), HIGHEST_DOMAIN):
        with (Path(tempfile.gettempdir()) / f"gdfusion_ros_domain_{domain}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise RuntimeError(f"all {HIGHEST_DOMAIN} ROS domains are locked by other tests")
