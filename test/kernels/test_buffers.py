"""Memory that is kept for the next result of its size."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from gdfusion_ros.kernels import buffers
from gdfusion_ros.kernels.buffers import empty


def test_kept_memory_serves_the_next_result_of_its_size_and_nobody_elses() -> None:
    first = empty(3, 1 << 19)
    view, place = first.view(-1)[5:], first.data_ptr()
    assert place % 64 == 0
    first.fill_(1.0)
    del first
    other = empty(3, 1 << 19)
    assert other.data_ptr() != place
    other.fill_(2.0)
    assert bool((view == 1.0).all())
    del view
    assert empty(1 << 19, 3).data_ptr() == place
    assert empty(3, 1 << 20, dtype=torch.bfloat16).shape == (3, 1 << 20)


def test_no_more_memory_is_kept_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_kept", defaultdict(list))
    monkeypatch.setattr(buffers, "_MOST", 5 << 20)
    results = [empty(2 << 20, dtype=torch.uint8) for _ in range(4)]
    assert buffers.kept_bytes() == 0
    del results
    assert buffers.kept_bytes() == 4 << 20
