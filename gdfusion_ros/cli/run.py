"""Run recordings, folders of frames, or the made-up world through a network offline, without ROS.

A recording goes through the same assembly as in the live node, so its grids equal those that the node
publishes when the recording is replayed to it.

  gdfusion run BAG --model bevdetocc-gf --weights random:0 --out grids
  gdfusion run FOLDER_WITH_FRAMES_JSON --out grids
  gdfusion run world:3 --out grids
  gdfusion run BAG1 BAG2 BAG3 --out outputs --resume --shard 0/4
  gdfusion run BAG1 BAG2 BAG3 --out outputs --ray local --workers 2

One source gives one .npz a frame (labels (X, Y, Z), stamp_ns, sequence, grid_minimum, cell_size, ...; see
gdfusion_ros.sinks.files). Several, or --mcap, give one output recording each, as the node's would be, which
appears in --out only when it is whole. A source that cannot be run is reported and does not hold up the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gdfusion_ros.cli.arguments import add_model_arguments, load
from gdfusion_ros.cli.batch import jobs_of, run_jobs, shard
from gdfusion_ros.cli.inputs import add_json_argument, add_rig_arguments, print_json, rig_names
from gdfusion_ros.cli.offline import run_source, threads
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import Occupancy
from gdfusion_ros.sinks.files import file_name, save_occupancy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="source",
        help="recording, folder with frames.json, `world` or `world:SEED`",
    )
    parser.add_argument("--out", type=Path, help="folder for what is made")
    parser.add_argument("--frames", type=int, help="stop each source after this many frames")
    parser.add_argument("--mcap", action="store_true", help="output recordings, for a single source too")
    many = parser.add_argument_group("many sources")
    many.add_argument("--resume", action="store_true", help="skip sources whose output is there already")
    many.add_argument("--shard", metavar="I/N", help="only every N-th source from the I-th on, I from 0")
    many.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster: its address, auto, or local")
    many.add_argument("--workers", type=int, help="with --ray local: how many (default: one a core)")
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of the network (default: one for output recordings, whose bytes depend on it; else all cores)",
    )
    add_model_arguments(parser)
    add_rig_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run it; 0 when every source gave at least one frame."""
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads}: at least one")
    if args.workers is not None and (args.ray != "local" or args.workers < 1):
        raise UserError(f"--workers {args.workers}: at least one, and with --ray local")
    many = len(args.sources) > 1 or args.mcap or args.resume or args.shard is not None or args.ray is not None
    return _run_many(args) if many else _run_one(args)


def _run_one(args: argparse.Namespace) -> int:
    if args.out is not None and args.out.exists() and any(args.out.glob("*.npz")):
        raise UserError(f"{args.out} has .npz files already: choose another folder or remove them")

    def write(number: int, occupancy: Occupancy) -> None:
        if args.out is not None:
            save_occupancy(occupancy, args.out / file_name(number, occupancy.stamp_ns))

    source = args.sources[0]
    with threads(args.threads):
        result = run_source(source, args, lambda source: load(args, rig_names(source)), write)
    result["out"] = None if args.out is None else str(args.out)
    print(
        f"{result['frames']} frames in {result['sequences_started']} sequences; "
        f"inference {result['latency_ms'].get('inference', {}).get('median', 0):.0f} ms a frame"
    )
    if result["images_dropped"]:
        print("images not used: " + ", ".join(f"{n} {why}" for why, n in result["images_dropped"].items()))
    if args.json:
        print_json(result)
    return 0


def _run_many(args: argparse.Namespace) -> int:
    if args.out is None:
        raise UserError("output recordings need a folder: --out")
    jobs = jobs_of(args.sources, args.out)
    if args.shard is not None:
        jobs = shard(jobs, args.shard)
    result: dict[str, Any] = run_jobs(jobs, args)
    frames = sum(one["frames"] for one in result["recordings"].values())
    print(
        f"{len(result['recordings'])} recordings made, {frames} frames; {len(result['skipped'])} were there already, "
        f"{len(result['failed'])} failed"
    )
    if args.json:
        print_json(result)
    return 1 if result["failed"] else 0
