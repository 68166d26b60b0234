"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gdfusion_ros.model.model import OccupancyModel

DEFAULT_MODEL = "gdfusion-small"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--weights`` and ``--device``."""
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"a model's name or YAML (default {DEFAULT_MODEL})"
    )
    parser.add_argument(
        "--weights",
        default="default",
        help="'default' for the model's own, 'random:SEED', or a .safetensors or .pth file (default: default)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default cpu)")


def load(args: argparse.Namespace, rig: Sequence[str] = ()) -> OccupancyModel:
    """The model that the arguments ask for; made for the cameras of ``rig`` when those are others. Raises UserError."""
    from gdfusion_ros.model.model import load_for_rig, load_model

    if rig:
        return load_for_rig(args.model, args.weights, args.device, rig)
    return load_model(args.model, args.weights, args.device)


def seed_range(text: str) -> range:
    """``A:B`` as range(A, B), ``A`` as one seed."""
    first, _, last = text.partition(":")
    try:
        seeds = range(int(first), int(last) if last else int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 100:140") from None
    if not seeds or seeds[0] < 0:
        raise argparse.ArgumentTypeError(f"{text!r} names no seeds; give first:last, such as 100:140")
    return seeds
