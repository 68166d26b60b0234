"""A recording through `gdfusion replay` and the node: is every complete key frame published once, and as it should be?

    python benchmark/replay.py --seconds 60
    python benchmark/replay.py --bag bags/scene-0103 --model bevdetocc-gf --weights random:0 --rate 0.02

Without --bag, draws a drive through the made-up world: six cameras at 12 Hz. The node runs as a process, the replay as
another one, in real time unless --rate says otherwise; then `gdfusion run` runs the same recording offline. Prints one
JSON object, and fails unless the offline run's frames are the grids that came: each once, in order, voxel for voxel the
same, in the same sequences, with every image that was sent accounted for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from running import Listener, adds_up, listening, node_process, own_domain
from tqdm import tqdm

from gdfusion_ros.assembly.grids import occupancy_of
from gdfusion_ros.assembly.rig import find_topics, read_rig
from gdfusion_ros.sinks.bag import record_frames
from gdfusion_ros.sources.bag import open_bag
from gdfusion_ros.sources.world import WorldSource

RATE = 12


class TwelveHertz(WorldSource):
    """The made-up world with a frame at each of the cameras' images, not at key frames only."""

    def time(self, index: int) -> float:
        """Seconds from the first frame."""
        return index / RATE


def main() -> int:
    """Measure, compare, print; 0 when all is as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bag", type=Path, help="a recording with the topics of config/topics/nuscenes.yaml")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the made-up drive (%(default)s)")
    parser.add_argument("--seed", type=int, default=3, help="of the made-up world (%(default)s)")
    parser.add_argument("--model", default="gdfusion-small")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--rate", type=float, default=1.0, help="times the recorded speed (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("replay_output"), help="folder (%(default)s)")
    args = parser.parse_args()
    own_domain()
    bag = args.bag or _draw(args)
    sent = _images(bag)
    parameters = {"model": args.model, "weights": args.weights, "use_sim_time": True}
    with (
        listening(keep=True) as (_, listener),
        node_process(args.out, **parameters, image_reliability="reliable", image_depth=50),
    ):
        _run(["replay", str(bag), "--clock", "--rate", str(args.rate), "--wait", "60"])
        listener.settle()
        report = _live(listener, sent)
    report |= _compare(bag, args, listener, report["counts_add_up"])
    print(json.dumps(report))
    return 1 if report["faults"] else 0


def _draw(args: argparse.Namespace) -> Path:
    """The made-up drive, drawn the first time."""
    path = Path(args.out / f"world{args.seed}_{args.seconds:g}s")
    if not (path / "metadata.yaml").is_file():
        world = TwelveHertz(args.seed, round(args.seconds * RATE))
        record_frames(tqdm(world, desc="drawing", unit="frame", disable=None), path)
    return path


def _images(bag: Path) -> dict[str, int]:
    """Images of each camera in a recording."""
    cameras = {camera.image: camera.name for camera in read_rig(find_topics("nuscenes")).cameras}
    with open_bag(bag) as reader:
        return {cameras[c.topic]: c.msgcount for c in reader.connections if c.topic in cameras}


def _run(command: list[str]) -> str:
    """A `gdfusion` command; SystemExit with its own words when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "gdfusion_ros.cli.main", *command], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"gdfusion {command[0]} failed: {done.stderr.splitlines()[-1]}")
    return done.stdout


def _live(listener: Listener, sent: dict[str, int]) -> dict[str, Any]:
    cameras = {
        name: {k: int(v) for k, v in values.items() if v.isdigit()}
        for name, values in listener.cameras().items()
    }
    total = [float(values["total_ms"]) for values in listener.latencies.values()]
    inference = [float(values["inference_ms"]) for values in listener.latencies.values()]
    return {
        "images_sent": sum(sent.values()),
        "images_received": sum(values["received"] for values in cameras.values()),
        "images_used": sum(values["used"] for values in cameras.values()),
        "images_dropped": {
            reason.removeprefix("dropped_"): sum(values.get(reason, 0) for values in cameras.values())
            for reason in sorted({key for v in cameras.values() for key in v if key.startswith("dropped_")})
        },
        "images_waiting": sum(values["waiting"] for values in cameras.values()),
        "counts_add_up": all(adds_up(v) and v["received"] == sent[name] for name, v in cameras.items()),
        "frames": listener.counts("frames"),
        "grids": len(listener.grids),
        "twice": listener.repeated(),
        "out_of_order": listener.out_of_order(),
        "total_ms": round(statistics.median(total), 1) if total else None,
        "inference_ms": round(statistics.median(inference), 1) if inference else None,
    }


def _compare(bag: Path, args: argparse.Namespace, listener: Listener, counts_add_up: bool) -> dict[str, Any]:
    """The grids against those of an offline run."""
    out = args.out / "offline"
    for old in out.glob("*.npz"):
        old.unlink()
    _run(["run", str(bag), "--model", args.model, "--weights", args.weights, "--out", str(out)])
    offline = {int(one["stamp_ns"]): one for one in map(np.load, sorted(out.glob("*.npz")))}
    live = {grid.stamp_ns: occupancy_of(grid.message) for grid in listener.grids}
    different = [stamp for stamp in offline.keys() & live.keys() if not _same(offline[stamp], live[stamp])]
    faults = {
        "missing": len(offline.keys() - live.keys()),
        "unexpected": len(live.keys() - offline.keys()),
        "twice": listener.repeated(),
        "out_of_order": listener.out_of_order(),
        "different": len(different),
        "counts_do_not_add_up": int(not counts_add_up),
    }
    return {"key_frames": len(offline), "equal": len(offline) - len(different) - faults["missing"]} | {
        "faults": {name: number for name, number in faults.items() if number}
    }


def _same(offline: Any, live: Any) -> bool:
    return (
        bool(np.array_equal(offline["labels"], live.labels))
        and bool(np.array_equal(offline["confidence"], live.confidence))
        and int(offline["sequence"]) == live.sequence
        and int(offline["history_frames"]) == live.history_frames
    )


if __name__ == "__main__":
    sys.exit(main())
