"""Train a network by a recipe.

  gdfusion train gdfusion-small --out runs/small                 by the recipe's steps
  gdfusion train gdfusion-small --out runs/small --minutes 120   by the clock: the stages share the time
  gdfusion train gdfusion-small --out runs/small --resume        go on from the last checkpoint
  torchrun --nproc-per-node 2 -m gdfusion_ros.cli.main train gdfusion-small --out runs/small

The folder gets checkpoint.pt (everything to go on), weights.safetensors (the averaged weights, for --weights) and
curves.csv. Ctrl-C leaves a checkpoint.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from types import FrameType

from gdfusion_ros.errors import UserError
from gdfusion_ros.training.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", help="name of a recipe under config/training, or a .yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, weights and curves")
    parser.add_argument("--minutes", type=float, help="train for this long instead of the recipe's steps")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps the drawn sequences (default: OUT/sequences)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that draw sequences ahead (default 1)"
    )


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the recipe was done to its end."""
    from gdfusion_ros.training.train import CHECKPOINT, Trainer

    recipe = load_recipe(args.recipe)
    if args.minutes is not None and args.minutes <= 0:
        raise UserError(f"--minutes must be positive, not {args.minutes}")
    if (args.out / CHECKPOINT).is_file() and not args.resume:
        raise UserError(
            f"{args.out} holds a training already: add --resume to go on with it, or choose another --out"
        )
    trainer = Trainer(
        recipe, args.out, args.minutes, args.cache or args.out / "sequences", args.workers, args.resume
    )

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if not trainer.run():
        raise KeyboardInterrupt
    print(f"{args.out / 'weights.safetensors'}")
    return 0
