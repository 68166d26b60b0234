"""Occupancies as numpy files, one .npz a frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gdfusion_ros.frame import Occupancy


def file_name(number: int, stamp_ns: int) -> str:
    """`000004_1533151603512404000.npz`: sorts by the order of the frames."""
    return f"{number:06d}_{stamp_ns}.npz"


def save_occupancy(occupancy: Occupancy, path: Path) -> None:
    """Write one occupancy, compressed. Read it with ``numpy.load(path)``; no array holds Python objects.

    ``labels`` (X, Y, Z) uint8, ``stamp_ns``, ``sequence``, ``history_frames``, ``grid_minimum`` (3,),
    ``cell_size`` (3,), ``grid_frame``, ``world_from_ego`` (4, 4), ``label_set``, ``free_label``, ``model``,
    ``weights``, ``cameras``, ``cameras_used``, ``state_bytes``; and where the network gives them
    ``confidence`` (X, Y, Z) uint8, ``flow`` (X, Y, Z, 3) float32, ``flow_valid`` (X, Y, Z) and ``flow_kind``.
    """
    arrays: dict[str, Any] = {
        "labels": occupancy.labels,
        "stamp_ns": np.int64(occupancy.stamp_ns),
        "sequence": np.int64(occupancy.sequence),
        "history_frames": np.int64(occupancy.history_frames),
        "grid_minimum": np.asarray(occupancy.grid.minimum),
        "cell_size": np.asarray(occupancy.grid.cell_size),
        "grid_frame": np.str_(occupancy.grid.frame),
        "world_from_ego": occupancy.world_from_ego,
        "label_set": np.str_(occupancy.label_set.name),
        "free_label": np.int64(occupancy.label_set.free),
        "model": np.str_(occupancy.model),
        "weights": np.str_(occupancy.weights),
        "cameras": np.asarray(occupancy.cameras),
        "cameras_used": np.asarray(occupancy.cameras_used),
        "state_bytes": np.int64(occupancy.state_bytes),
    }
    if occupancy.confidence is not None:
        arrays["confidence"] = occupancy.confidence
    if occupancy.flow is not None:
        arrays["flow"] = occupancy.flow.vectors
        arrays["flow_valid"] = occupancy.flow.valid
        arrays["flow_kind"] = np.str_(occupancy.flow.kind.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
