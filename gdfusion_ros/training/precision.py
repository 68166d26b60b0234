"""Mixed precision: the convolutional blocks compute in bfloat16, everything else stays in float32.

Geometry must stay exact (a metre in bfloat16 is a step of 8 mm at one metre and of 25 cm at forty), and what the cues
carry on is a long sum; so it is not the whole forward pass that is cast, as ``torch.autocast`` around it would do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gdfusion_ros.model.compiled import blocks_of


def compute_in_bfloat16(network: nn.Module) -> None:
    """Let the convolutional blocks of a network compute in bfloat16, in both directions; parameters stay float32."""
    for block in blocks_of(network).values():
        block.forward = _in_bfloat16(block.forward)  # type: ignore[method-assign]


def _in_bfloat16(forward: Any) -> Any:
    def mixed(*inputs: Any) -> Any:
        device = next(x for x in _tensors(inputs)).device.type
        with torch.autocast(device, torch.bfloat16):
            output = forward(*inputs)
        return output.float() if isinstance(output, Tensor) else type(output)(x.float() for x in output)

    return mixed


def _tensors(inputs: Any) -> list[Tensor]:
    return [x for entry in inputs for x in ([entry] if isinstance(entry, Tensor) else entry)]
