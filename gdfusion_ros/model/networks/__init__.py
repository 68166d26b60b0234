"""The networks, one family a file."""

from __future__ import annotations

from gdfusion_ros.model.networks.bevdetocc import BEVDetOcc

FAMILIES = {"bevdetocc": BEVDetOcc}
"""Family -> network. ``ModelConfig.family`` chooses from these."""
