"""The networks, one family a file."""

from __future__ import annotations

from gdfusion_ros.model.networks.bevdetocc import BEVDetOcc
from gdfusion_ros.model.networks.openoccupancy import OpenOccupancy
from gdfusion_ros.model.networks.small import Small
from gdfusion_ros.model.networks.surroundocc import SurroundOcc

FAMILIES = {"bevdetocc": BEVDetOcc, "openoccupancy": OpenOccupancy, "surroundocc": SurroundOcc, "small": Small}
"""Family -> network. ``ModelConfig.family`` chooses from these."""
