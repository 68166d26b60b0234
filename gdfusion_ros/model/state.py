"""TemporalState: everything that a network carries from one frame to the next, in one object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gdfusion_ros.errors import UserError
from gdfusion_ros.geometry import Matrix

_FORMAT = "gdfusion_ros temporal state 1"
_POSE = "pose/"
_TENSOR = "tensor/"


@dataclass(frozen=True)
class TemporalState:
    """The state after a frame. A model takes it and hands back a new one; nobody changes it in place."""

    frames: int
    """Frames of this sequence so far, the last one included."""
    tensors: Mapping[str, Tensor]
    """What the network carries on, by name: ``voxel``, ``motion``, ``scene_weight``, ``geometry`` ..."""
    poses: Mapping[str, Matrix] = field(default_factory=dict)
    """float64 poses of the last frame: ``world_from_history`` (4, 4), the frame that history moves with, and
    ``world_from_camera`` (N, 4, 4)."""
    model: str = ""
    """Name of the model that made it: another model's state does not fit."""

    @property
    def bytes(self) -> int:
        """Size of the tensors and poses in bytes: what one stream holds between two frames."""
        tensors = sum(t.numel() * t.element_size() for t in self.tensors.values())
        return tensors + sum(pose.nbytes for pose in self.poses.values())

    def save(self, path: str | Path, note: str = "") -> None:
        """Write the state as safetensors, with a note of the caller's in its metadata. UserError when it cannot be."""
        content = {_TENSOR + name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        content |= {_POSE + name: torch.from_numpy(np.ascontiguousarray(p)) for name, p in self.poses.items()}
        description = {"frames": self.frames, "model": self.model}
        metadata = {"format": _FORMAT, "state": json.dumps(description), "note": note}
        try:
            save_file(content, str(path), metadata)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write the temporal state {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> TemporalState:
        """Read a saved state. Raises UserError when the file is not one or is damaged."""
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise UserError(f"{path} is not a saved temporal state")
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            description = json.loads(metadata["state"])
            frames, model = int(description["frames"]), str(description["model"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"cannot read the temporal state {path}: {error}") from error
        tensors = {n.removeprefix(_TENSOR): t for n, t in content.items() if n.startswith(_TENSOR)}
        poses = {n.removeprefix(_POSE): t.cpu().numpy() for n, t in content.items() if n.startswith(_POSE)}
        return cls(frames, tensors, poses, model)


def saved_note(path: str | Path) -> str:
    """The note that a state was saved with. Raises UserError when the file is not a saved state."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the temporal state {path}: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} is not a saved temporal state")
    return str(metadata.get("note", ""))
