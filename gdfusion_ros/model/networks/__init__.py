"""The networks, one family a file."""

from __future__ import annotations

from gdfusion_ros.model.networks.bevdetocc import BEVDetOcc
from gdfusion_ros.model.networks.openoccupancy import OpenOccupancy

FAMILIES = {"bevdetocc": BEVDetOcc, "openoccupancy": OpenOccupancy}
"""Family -> network. ``ModelConfig.family`` chooses from these."""
