"""What the tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gdfusion_ros.kernels import library


@pytest.fixture(params=library.instruction_sets() or ["none"])
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set that the processor has, in turn."""
    with torch.inference_mode(), library.restricted_to(request.param):
        yield
