"""The networks, one family a file."""

from __future__ import annotations

from typing import Any

from gdfusion_ros.model.networks.alocc import ALOcc
from gdfusion_ros.model.networks.bevdetocc import BEVDetOcc
from gdfusion_ros.model.networks.cotr import Cotr, CotrGF
from gdfusion_ros.model.networks.fbocc import FBOcc
from gdfusion_ros.model.networks.openoccupancy import OpenOccupancy
from gdfusion_ros.model.networks.small import Small
from gdfusion_ros.model.networks.surroundocc import SurroundOcc

FAMILIES: dict[str, Any] = {
    "alocc": ALOcc,
    "bevdetocc": BEVDetOcc,
    "fbocc": FBOcc,
    "openoccupancy": OpenOccupancy,
    "surroundocc": SurroundOcc,
    "cotr": Cotr,
    "cotr_gf": CotrGF,
    "small": Small,
}
"""Family -> network class, whose ``Architecture`` is the dataclass of its settings. ``ModelConfig.family`` chooses."""
