"""The shared library of CPU kernels: finding it, choosing the instruction set, and when its kernels are taken.

A kernel is taken where ``usable(*tensors)`` says so, at one place for each operation, beside its plain-torch twin:
float32 tensors on the CPU, gradients off, the library present, and not switched off by ``GDFUSION_KERNELS=0`` or
``switched(False)``. Everything else, CUDA tensors and training among it, takes the twin.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

INTERFACE = 3
"""Of the library that this code calls; ``gdfusion_interface`` in features.cpp."""
PANELS = {"baseline": 8, "avx2": 16, "avx512": 32, "avx512bf16": 32}
"""Columns that a packed matrix is padded to, by instruction set: PANEL in simd.h."""

_switched_on: ContextVar[bool] = ContextVar(
    "gdfusion_kernels", default=os.environ.get("GDFUSION_KERNELS", "1") != "0"
)
_instruction_set: ContextVar[str | None] = ContextVar("gdfusion_instruction_set", default=None)


@cache
def _library() -> ctypes.CDLL | None:
    path = Path(__file__).with_name("libgdfusion_kernels.so")
    remedy = "the plain and slower torch path is taken; install the package again to build it"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        log.warning("there is no library of CPU kernels (%s): %s", error, remedy)
        return None
    library.gdfusion_instruction_sets.restype = ctypes.c_char_p
    found = library.gdfusion_interface()
    if found != INTERFACE:
        log.warning("%s has the interface %s, not %s: %s", path, found, INTERFACE, remedy)
        return None
    return library


@cache
def instruction_sets() -> tuple[str, ...]:
    """Names of the instruction sets that both the library and this processor have, best first; empty without it."""
    library = _library()
    return () if library is None else tuple(library.gdfusion_instruction_sets().decode().split())


def instruction_set() -> str:
    """The instruction set whose kernels are called."""
    return _instruction_set.get() or instruction_sets()[0]


def panel() -> int:
    """Columns that a packed matrix is padded to."""
    return PANELS[instruction_set()]


def allowed() -> bool:
    """Whether nobody has switched kernels off, by ``GDFUSION_KERNELS=0`` or around this call."""
    return _switched_on.get()


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Whether kernels are taken inside, in this thread. ``GDFUSION_KERNELS=0`` keeps them off all the same."""
    token = _switched_on.set(on and _switched_on.get())
    try:
        yield
    finally:
        _switched_on.reset(token)


@contextmanager
def restricted_to(name: str) -> Iterator[None]:
    """Call the kernels of one of ``instruction_sets()`` inside, in this thread, whatever else the processor has."""
    token = _instruction_set.set(name)
    try:
        yield
    finally:
        _instruction_set.reset(token)


def usable(
    *tensors: Tensor, gradient: bool = False, dtypes: Collection[torch.dtype] = (torch.float32,)
) -> bool:
    """Whether kernels may be called on these tensors, here and now.

    ``gradient``: kernels that know their gradient; ``dtypes``: what they take.
    """
    return (
        _switched_on.get()
        and (gradient or not torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and all(_is_plain(tensor) and tensor.dtype in dtypes for tensor in tensors)
        and _library() is not None
    )


def _is_plain(tensor: Tensor) -> bool:
    # A subclass (fake tensors, those of torch.func) has no memory that a kernel could read.
    real = type(tensor) in (Tensor, torch.nn.Parameter)
    return real and tensor.device.type == "cpu"


def call(kernel: str, *arguments: Tensor | np.ndarray | int | float | None) -> None:
    """Call a kernel. Tensors and arrays are handed over as pointers and must be contiguous; ints are 64 bits wide.

    A kernel's last argument is the number of threads, which is torch's and is added here.
    """
    function = _function(kernel, instruction_set())
    function(*(_argument(a) for a in arguments), ctypes.c_int32(torch.get_num_threads()))


@cache
def _function(kernel: str, name: str) -> Callable[..., Any]:
    library = _library()
    assert library is not None
    function = getattr(library, f"gdfusion_{kernel}_{name}")
    function.restype = None
    return function  # type: ignore[no-any-return]


def _argument(value: Tensor | np.ndarray | int | float | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


def pack(matrix: Tensor) -> Tensor:
    """A matrix (..., K, N) as ``multiply`` in simd.h reads it: columns padded to panels, (..., N / P, K, P)."""
    *rest, rows, columns = matrix.shape
    width = panel()
    padded = torch.nn.functional.pad(matrix, (0, -columns % width))
    return padded.view(*rest, rows, -1, width).transpose(-3, -2).contiguous()


def pad(vector: Tensor) -> Tensor:
    """A vector (N) padded with zeros as ``pack`` pads columns."""
    return torch.nn.functional.pad(vector, (0, -len(vector) % panel())).contiguous()


def cells_first(x: Tensor) -> Tensor:
    """(B, C, A, ...) as (B, A, ..., C), contiguous: no copy where x already lies so in memory."""
    return x.movedim(1, -1).contiguous()
