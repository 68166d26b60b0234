"""Watch: what may be seen of a forward pass from outside, without a network keeping anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Watch:
    """Takes the time of each stage and, where somebody listens, shows the intermediate tensors as they are made."""

    on_tensor: Callable[[str, Tensor], None] | None = None
    """Called with the name and value of every named intermediate tensor (names: docs of ``gdfusion parity``)."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Milliseconds by stage, in the order in which the stages ran."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        begin = time.perf_counter()
        yield
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (time.perf_counter() - begin) * 1e3

    def show(self, **tensors: Tensor) -> None:
        """Hand intermediate tensors to whoever listens."""
        if self.on_tensor is not None:
            for name, tensor in tensors.items():
                self.on_tensor(name.replace("__", "/"), tensor)
