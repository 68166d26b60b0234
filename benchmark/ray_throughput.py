"""How much faster two Ray workers run recordings than one process: `python benchmark/ray_throughput.py OUT`.

Writes recordings of the made-up world, runs them through gdfusion-small (or ``--model``) with one worker and with two,
one thread each, and prints frames a second (the cluster's start included), their ratio, and whether the outputs are the
same bytes. Meant for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from gdfusion_ros.sinks.bag import record_frames
from gdfusion_ros.sources.world import WorldSource

RECORDINGS, FRAMES = 4, 100


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder that does not exist yet")
    parser.add_argument("--model", default="gdfusion-small")
    parser.add_argument("--weights", default="random:0")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    bags = [args.out / f"world{seed}" for seed in range(RECORDINGS)]
    for seed, bag in enumerate(bags):
        record_frames(WorldSource(seed, FRAMES), bag)
    seconds = {workers: run(args, bags, workers) for workers in (1, 2)}
    outputs = [
        {path.name: path.read_bytes() for path in (args.out / f"by{n}").rglob("*.mcap")} for n in (1, 2)
    ]
    rates = {workers: RECORDINGS * FRAMES / duration for workers, duration in seconds.items()}
    result = {"frames_a_second": rates, "ratio": rates[2] / rates[1], "same_bytes": outputs[0] == outputs[1]}
    print(json.dumps(result))


def run(args: argparse.Namespace, bags: list[Path], workers: int) -> float:
    """Seconds that the recordings take."""
    command = [sys.executable, "-m", "gdfusion_ros.cli.main", "run", *map(str, bags)]
    command += ["--out", str(args.out / f"by{workers}"), "--json"]
    command += ["--model", args.model, "--weights", args.weights, "--ray", "local", "--workers", str(workers)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
