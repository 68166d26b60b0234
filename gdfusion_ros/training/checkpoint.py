"""Everything that a training needs to go on, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdfusion_ros.errors import UserError


@dataclass
class Checkpoint:
    """The state of a training between two steps."""

    stage: int
    step: int
    """Steps done in the stage."""
    seconds: float
    """Spent in the stage."""
    network: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Any] | None
    """None between two stages."""
    semantics: Mapping[str, Tensor]
    """The layer that only training has; empty where there is none."""
    temporal: Mapping[str, Tensor] = field(default_factory=dict)
    """The streams' temporal state; empty at a sequence's start."""
    temporal_frames: int = 0

    def save(self, path: Path) -> None:
        """Write the checkpoint; an interruption leaves the old one as it was."""
        temporary = path.with_name(path.name + ".part")
        torch.save(vars(self), temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint. Raises UserError when the file is none."""
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"cannot go on from {path}: {reason}; it is damaged or of another version"
            ) from error
