"""Train a network by a recipe.

  gdfusion train gdfusion-small --out runs/small                 by the recipe's steps
  gdfusion train gdfusion-small --out runs/small --minutes 120   by the clock: the stages share the time
  gdfusion train gdfusion-small --out runs/small --resume        go on from the last checkpoint
  gdfusion train bevdetocc-gf --out runs/large --nuscenes DATAROOT --annotations GTS     from nuScenes with Occ3D
  torchrun --nproc-per-node 2 -m gdfusion_ros.cli.main train gdfusion-small --out runs/small

The folder gets checkpoint.pt (everything to go on), weights.safetensors (the averaged weights, for --weights) and
curves.csv. Ctrl-C leaves a checkpoint.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gdfusion_ros.errors import UserError
from gdfusion_ros.model.config import load_config
from gdfusion_ros.training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from gdfusion_ros.training.nuscenes import NuScenesSequences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", help="name of a recipe under config/training, or a .yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, weights and curves")
    parser.add_argument(
        "--minutes",
        type=float,
        help="train for this long instead of the recipe's steps; waiting for sequences does not count",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps the drawn sequences (default: OUT/sequences)"
    )
    folder = parser.add_argument_group("recipes with data: folder")
    folder.add_argument("--nuscenes", type=Path, metavar="DATAROOT", help="nuScenes' folder")
    folder.add_argument("--annotations", type=Path, metavar="GTS", help="Occ3D's folder of scenes")
    folder.add_argument("--scenes", nargs="*", default=[], help="train on these scenes only")
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
    cache = args.cache or args.out / "sequences"
    nuscenes = _nuscenes(args, recipe)
    trainer = Trainer(recipe, args.out, args.minutes, cache, args.workers, args.resume, nuscenes=nuscenes)

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if not trainer.run():
        raise KeyboardInterrupt
    print(f"{args.out / 'weights.safetensors'}")
    return 0


def _nuscenes(args: argparse.Namespace, recipe: Recipe) -> NuScenesSequences | None:
    """The sequences of a recipe that trains on nuScenes. Raises UserError when its folders are not given."""
    if recipe.data == "world":
        return None
    if args.nuscenes is None or args.annotations is None:
        raise UserError(f"{args.recipe} trains on nuScenes: give --nuscenes DATAROOT and --annotations GTS")
    from gdfusion_ros.training.nuscenes import NuScenesSequences

    config = load_config(recipe.model)
    return NuScenesSequences(args.nuscenes, args.annotations, config, recipe.frames, scenes=args.scenes)
