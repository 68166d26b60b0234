"""The `gdfusion` command itself."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import contextlib, os, sys
from gdfusion_ros.cli.main import main
assert "numpy" not in sys.modules, "numpy's OpenBLAS has read its settings before they are made"
with contextlib.suppress(SystemExit):
    main(["run", "--help"])
print(os.environ["OPENBLAS_NUM_THREADS"])
"""


def threads_of_openblas(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=kept | environment, check=True
    )
    return done.stdout.splitlines()[-1]


def test_numpys_blas_has_one_thread_unless_the_user_says_otherwise():
    assert threads_of_openblas() == "1"
    assert threads_of_openblas(OPENBLAS_NUM_THREADS="3") == "3"
