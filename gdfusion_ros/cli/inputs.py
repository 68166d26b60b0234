"""What commands take in and give back: recordings and rigs, frames by a source's name, JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gdfusion_ros.errors import UserError

if TYPE_CHECKING:
    from gdfusion_ros.assembly.assembler import AssemblySettings
    from gdfusion_ros.assembly.rig import Rig
    from gdfusion_ros.frame import CameraFrame


def add_rig_arguments(parser: argparse.ArgumentParser) -> None:
    """``--topics``, ``--calibration`` and the settings of the assembly."""
    parser.add_argument(
        "--topics",
        default="nuscenes",
        help="preset in config/topics/ or path to a YAML like it (%(default)s)",
    )
    parser.add_argument(
        "--calibration", type=Path, help="YAML with calibrations, for cameras without CameraInfo or TF"
    )
    parser.add_argument("--period", type=float, default=0.5, help="seconds between frames (%(default)s)")
    parser.add_argument(
        "--missing-camera",
        choices=("skip", "blank"),
        default="skip",
        help="what a missing image does (%(default)s)",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on the last line"
    )


def rig_of(args: argparse.Namespace) -> tuple[Rig, AssemblySettings]:
    """The rig and the settings that the options ask for."""
    from gdfusion_ros.assembly.assembler import AssemblySettings
    from gdfusion_ros.assembly.rig import find_topics, read_rig

    rig = read_rig(find_topics(args.topics), args.calibration)
    return rig, AssemblySettings(inference_period=args.period, missing_camera=args.missing_camera)


def is_world(name: str) -> bool:
    """Whether a source's name means the made-up world."""
    return name == "world" or name.startswith("world:")


def world_seed(name: str) -> int:
    """The seed in `world:SEED`, 0 for `world`; UserError when it is none."""
    seed = name.partition(":")[2] or "0"
    if not seed.isdigit():
        raise UserError(f"{name}: the seed of the made-up world is a whole number, as in world:3")
    return int(seed)


def rig_names(source: object) -> tuple[str, ...]:
    """The cameras of a recording's rig; nothing where the source has nuScenes' own."""
    from gdfusion_ros.sources.bag import BagSource

    return source.rig.names if isinstance(source, BagSource) else ()


def source_of(name: str, args: argparse.Namespace) -> Iterable[CameraFrame]:
    """The frames of a recording, of a folder with frames.json, or of the made-up world (`world` or
    `world:SEED`).

    UserError when it is none of these.
    """
    if is_world(name):
        from gdfusion_ros.sources.world import WorldSource

        return WorldSource(seed=world_seed(name))
    path = Path(name)
    if (path / "frames.json").is_file():
        from gdfusion_ros.sources.nuscenes import FolderSource

        return FolderSource(path)
    from gdfusion_ros.sources.bag import BagSource

    rig, settings = rig_of(args)
    return BagSource(path, rig, settings)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and 95th percentile, rounded to what milliseconds are worth."""
    numbers = np.asarray(list(values), dtype=np.float64)
    if not len(numbers):
        return {}
    return {"median": round(float(np.median(numbers)), 3), "p95": round(float(np.percentile(numbers, 95)), 3)}


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on one line."""
    print(json.dumps(result), flush=True)
