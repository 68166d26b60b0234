"""Which entries of a mask are worked on: on a CPU those that are set, on an accelerator all of them."""

from __future__ import annotations

import torch
from torch import Tensor


def selected(mask: Tensor) -> Tensor:
    """Indices (K,) of the entries of a mask (Q,) that have to be worked on.

    On the CPU these are the ones that are set, which saves the work on the others. An accelerator knows how many these
    are, and the host would have to wait in the middle of a frame to hear it; there all of them are worked on. Either
    way the mask decides what counts of the result.
    """
    if mask.device.type == "cpu":
        return mask.nonzero().squeeze(1)
    return torch.arange(len(mask), device=mask.device)
