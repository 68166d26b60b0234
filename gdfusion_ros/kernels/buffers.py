"""Memory for large results that is kept when they are gone, and serves the next of their size.

A fresh allocation of many megabytes is mapped anew and given back each time, which costs more than computing what is
written there: 30 ms for the 82 MB of the voxels' features, five times what it takes to fill kept memory.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FEWEST = 1 << 20
"""Bytes below which the allocator keeps memory anyway."""
_LINE = 64
"""Bytes of a cache line."""
_MOST = 256_000_000
"""Bytes that are kept at most: enough for three volumes of a large network. All that a frame ever took would stand
beside the next frame's peak."""
_kept: defaultdict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A contiguous tensor on the CPU with whatever lies in its memory."""
    size = math.prod(shape) * dtype.itemsize
    if size < _FEWEST:
        return torch.empty(shape, dtype=dtype)
    kept = _kept[size]
    try:
        memory = kept.pop()
    except IndexError:  # not asked beforehand: another thread may take the last one meanwhile
        memory = _aligned(size)
    # The tensor, its views and whatever else shares its memory hold this view, which goes with the last of them.
    view = memory[:]
    weakref.finalize(view, _keep, memory).atexit = False
    return torch.from_numpy(view).view(dtype).view(shape)


def _keep(memory: npt.NDArray[np.uint8]) -> None:
    if kept_bytes() + memory.nbytes <= _MOST:
        _kept[memory.nbytes].append(memory)


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    """Memory that begins with a cache line."""
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size]


def kept_bytes() -> int:
    """What is kept and serves nobody now."""
    return sum(memory.nbytes for memories in list(_kept.values()) for memory in list(memories))
