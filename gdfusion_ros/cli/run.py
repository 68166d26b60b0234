"""Run a recording, a folder of frames, or the made-up world through a network offline, without ROS.

A recording goes through the same assembly as in the live node, so its grids equal those that the node
publishes when the recording is replayed to it.

  gdfusion run BAG --model bevdetocc-gf --weights random:0 --out grids
  gdfusion run FOLDER_WITH_FRAMES_JSON --out grids
  gdfusion run world:3 --out grids

Writes one .npz a frame (labels (X, Y, Z), stamp_ns, sequence, grid_minimum, cell_size, ...; see
gdfusion_ros.sinks.files) and prints what was made.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sized
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gdfusion_ros.cli.arguments import add_model_arguments, load
from gdfusion_ros.cli.inputs import add_json_argument, add_rig_arguments, print_json, source_of, spread
from gdfusion_ros.errors import UserError
from gdfusion_ros.sinks.files import file_name, save_occupancy
from gdfusion_ros.stream import OccupancyStream, SequenceRules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("source", help="recording, folder with frames.json, `world` or `world:SEED`")
    parser.add_argument("--out", type=Path, help="folder for one .npz a frame")
    parser.add_argument("--frames", type=int, help="stop after this many frames")
    add_model_arguments(parser)
    add_rig_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run it; 0 when at least one frame was made."""
    source = source_of(args.source, args)
    if args.out is not None and args.out.exists() and any(args.out.glob("*.npz")):
        raise UserError(f"{args.out} has .npz files already: choose another folder or remove them")
    stream = OccupancyStream(load(args), SequenceRules(restart_after_missing=args.missing_camera == "skip"))
    state_bytes, timings = [], []
    total = min(n for n in (len(source), args.frames) if n) if isinstance(source, Sized) else args.frames
    for number, frame in enumerate(tqdm(source, total=total, unit="frame", desc="run", disable=None)):
        try:
            occupancy = stream.step(frame)
        except ValueError as error:
            raise UserError(f"the frame at {frame.stamp_ns} ns does not fit the model: {error}") from None
        if args.out is not None:
            save_occupancy(occupancy, args.out / file_name(number, occupancy.stamp_ns))
        state_bytes.append(occupancy.state_bytes)
        timings.append(occupancy.timings_ms)
        if args.frames and number + 1 >= args.frames:
            break
    stages: dict[str, list[float]] = {}
    for one in timings:
        for stage, value in one.items():
            stages.setdefault(stage, []).append(value)
    result: dict[str, Any] = {
        "frames": len(state_bytes),
        "sequences_started": stream.sequence,
        "restarts": dict(stream.restarts),
        "images_dropped": _drops(source),
        "state_bytes": state_bytes,
        "latency_ms": {stage: spread(values) for stage, values in stages.items()},
        "model": stream.model.name,
        "weights": stream.model.weights,
        "out": None if args.out is None else str(args.out),
    }
    print(
        f"{result['frames']} frames in {result['sequences_started']} sequences; "
        f"inference {result['latency_ms'].get('inference', {}).get('median', 0):.0f} ms a frame"
    )
    if result["images_dropped"]:
        print("images not used: " + ", ".join(f"{n} {why}" for why, n in result["images_dropped"].items()))
    if args.json:
        print_json(result)
    if not state_bytes:
        raise UserError(f"{args.source} gave no frame: see above for what became of its images")
    return 0


def _drops(source: object) -> dict[str, int]:
    """Why images of a recording were not used."""
    from gdfusion_ros.sources.bag import BagSource

    if not isinstance(source, BagSource):
        return {}
    drops: Counter[str] = Counter()
    for counts in source.assembler.counts().values():
        drops.update(counts.dropped)
    return dict(drops)
