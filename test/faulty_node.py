"""The occupancy node with a network that does what a file says, for what no network does when it is asked to.

The file is named by the environment variable FAULTS, and read before every frame: `out of memory once` (until the state
is dropped), `out of memory`, `slow` (0.3 s a frame), `broken`. The service ~/break raises in its callback.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from std_srvs.srv import Trigger

from gdfusion_ros.ros import node as node_module

FAULTS = Path(os.environ["FAULTS"])
real_load = node_module.load_for_rig


class FaultyModel:
    """Another model's behaviour, but for faults."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, frame: Any, state: Any) -> Any:
        fault = FAULTS.read_text()
        if fault == "out of memory" or (fault == "out of memory once" and state is not None):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if fault == "slow":
            time.sleep(0.3)
        if fault == "broken":
            raise RuntimeError("the tensors have other shapes")
        return self._model(frame, state)


class FaultyNode(node_module.OccupancyNode):
    """A node with a service whose callback fails."""

    def __init__(self) -> None:
        super().__init__()
        self.create_service(Trigger, "~/break", self._break)

    def _break(self, request: Any, response: Any) -> Any:
        raise ZeroDivisionError("nobody thought of this")


if __name__ == "__main__":
    node_module.load_for_rig = lambda *arguments: FaultyModel(real_load(*arguments))
    node_module.OccupancyNode = FaultyNode
    sys.exit(node_module.main())
