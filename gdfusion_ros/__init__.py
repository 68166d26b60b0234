"""Camera-only 3D semantic occupancy with a temporal state (GDFusion, CVPR 2025), for ROS 2 and without it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdfusion_ros.frame import CameraFrame, Occupancy
    from gdfusion_ros.grid import VoxelGrid
    from gdfusion_ros.model.model import load_model
    from gdfusion_ros.stream import OccupancyStream

__all__ = ["CameraFrame", "Occupancy", "OccupancyStream", "VoxelGrid", "load_model"]

_HOMES = {
    "CameraFrame": "gdfusion_ros.frame",
    "Occupancy": "gdfusion_ros.frame",
    "OccupancyStream": "gdfusion_ros.stream",
    "VoxelGrid": "gdfusion_ros.grid",
    "load_model": "gdfusion_ros.model.model",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: whoever needs only the messages should not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
