"""Replay a scene through the node over DDS, and show what the node publishes.

  gdfusion demo                         the made-up world
  gdfusion demo --frames FOLDER         real nuScenes frames (a folder with frames.json)

Writes the frames as a recording, starts the node as a process of its own, replays the recording from another
process, and records what the node publishes. The replay waits for each grid before it sends the next key
frame, as a full-size network on a CPU is slower than the cameras; stamps stay the data's. Writes into --out:

  input/         the recording that was replayed        report.json   the numbers
  output/        what the node published                grid.png      the last grid beside its images
  node.log, replay.log

Fails when a grid is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from gdfusion_ros.cli.arguments import add_model_arguments
from gdfusion_ros.cli.inputs import add_json_argument, print_json, source_of, spread
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.sinks.bag import record_frames

if TYPE_CHECKING:
    from gdfusion_ros.frame import Occupancy

NODE = "/gdfusion"
TOPICS = "nuscenes"
"""Topics preset of the recordings that this project writes."""
WORLD_SEED = 3
"""A drive by day on which the vehicle moves, as traffic does."""
WORLD_FRAMES = 8
"""Key frames of the made-up world: enough to see history build up."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--frames", type=Path, help="folder with frames.json; without it the made-up world is shown"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), help="folder for the results (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds that one grid may take (%(default)s)"
    )
    add_model_arguments(parser)
    add_json_argument(parser)


@dataclass
class Received:
    """What came from the node."""

    grids: list[Any] = field(default_factory=list)
    """SemanticOccupancy, in the order of their coming."""
    latencies: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 when every frame gave its grid."""
    out = _fresh_folder(args.out)
    stamps, last = _write_input(args, out / "input")
    environment = _environment()
    with _recording_of_outputs(out / "output", environment) as received:
        with _process(_node_command(args, out), out / "node.log", environment) as node:
            _wait_until_active(node, out / "node.log")
            _replay(args, out, environment, received, len(stamps))
            _wait_for(lambda: len(received.latencies) >= len(stamps), 5.0)
        if node.returncode != 0:
            raise UserError(f"the node ended with exit code {node.returncode}; see {out / 'node.log'}")
    result = _report(args, out, stamps, received)
    _draw(out / "grid.png", last, received)
    _print(result, out)
    if args.json:
        print_json(result)
    grids = [_stamp(grid) for grid in received.grids]
    if grids != stamps:
        missing = len(set(stamps) - set(grids))
        raise UserError(f"{missing} of {len(stamps)} grids are missing; see {out / 'node.log'}")
    return 0


def _fresh_folder(out: Path) -> Path:
    """The output folder without what an earlier demo left there; nothing else in it is touched."""
    for folder in (out / "input", out / "output"):
        if not folder.is_dir():
            continue
        if any(entry.name != "metadata.yaml" and entry.suffix != ".mcap" for entry in folder.iterdir()):
            raise UserError(f"{folder} holds more than a recording: give another folder as --out")
        shutil.rmtree(folder)
    for name in ("report.json", "grid.png", "node.log", "replay.log", "node.yaml"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write_input(args: argparse.Namespace, path: Path) -> tuple[list[int], CameraFrame]:
    """Write the recording; gives the frames' stamps and the last frame."""
    source: Any
    if args.frames is None:
        from gdfusion_ros.sources.world import WorldSource

        source = WorldSource(seed=WORLD_SEED, frames=WORLD_FRAMES)
    else:
        if not (args.frames / "frames.json").is_file():
            raise UserError(f"{args.frames} has no frames.json: give a folder of frames")
        source = source_of(str(args.frames), args)
    frames: list[CameraFrame] = []
    stamps: list[int] = []

    def note(frame: CameraFrame) -> None:
        stamps.append(frame.stamp_ns)
        frames[:] = [frame]

    record_frames(tqdm(source, desc="recording", unit="frame", disable=None), path, on_frame=note)
    if not frames:
        raise UserError(f"{args.frames} holds no frames")
    return stamps, frames[0]


def _environment() -> dict[str, str]:
    """The environment of all three processes, this one included: loopback only, a domain nobody else uses."""
    from gdfusion_ros.ros.environment import stay_on_this_machine, use_shared_memory

    stay_on_this_machine()
    use_shared_memory()
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 101)))
    return dict(os.environ)


def _node_command(args: argparse.Namespace, out: Path) -> list[str]:
    # A parameter file, as values on a command line would be read as YAML of whatever type they look like.
    parameters = {
        "model": args.model,
        "weights": args.weights,
        "device": args.device,
        "topics": TOPICS,
        "use_sim_time": True,
        "image_reliability": "reliable",
    }
    file = out / "node.yaml"
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
    return [sys.executable, "-m", "gdfusion_ros.ros.node", "--ros-args", "--params-file", str(file)]


@contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is interrupted at the end, and killed only if that does not help."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _recording_of_outputs(path: Path, environment: dict[str, str]) -> Iterator[Received]:
    """Record the node's topics in the background."""
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    from gdfusion_ros.ros.recorder import OutputRecorder
    from gdfusion_ros.sinks.recording import Recording

    received = Received()

    def note(output: str, message: Any) -> None:
        received.counts[output] = received.counts.get(output, 0) + 1
        if output == "occupancy":
            received.grids.append(message)
        elif output == "latency":
            received.latencies.append({pair.key: pair.value for pair in message.status[0].values})

    rclpy.init(args=[])
    node = rclpy.create_node("gdfusion_demo")
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()

    spinner = threading.Thread(target=spin, daemon=True)
    try:
        with Recording(path) as recording:
            recorder = OutputRecorder(node, recording, NODE, note)
            spinner.start()
            try:
                yield received
            finally:
                executor.shutdown()
                spinner.join()
                del recorder
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _wait_until_active(process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the node is active; UserError with its own words when it is not going to be."""
    import rclpy
    from lifecycle_msgs.msg import State
    from lifecycle_msgs.srv import GetState

    node = rclpy.create_node("gdfusion_demo_watch")
    client = node.create_client(GetState, f"{NODE}/get_state")
    try:
        with tqdm(desc="loading the network", bar_format="{desc}: {elapsed}", disable=None) as bar:
            while process.poll() is None:
                bar.update()
                if not client.wait_for_service(timeout_sec=0.5):
                    continue
                answer = client.call_async(GetState.Request())
                rclpy.spin_until_future_complete(node, answer, timeout_sec=2.0)
                # The node answers once it spins, and it spins when it has tried to become active.
                if answer.done() and answer.result() is not None:
                    if answer.result().current_state.id == State.PRIMARY_STATE_ACTIVE:
                        return
                    break
        raise UserError(f"the node did not become active: {_last_error(log)}")
    finally:
        node.destroy_node()


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "[ERROR]" in line or "error:" in line]
    line = (errors or lines or ["it said nothing"])[-1]
    return line.rpartition("]: ")[2]


def _replay(
    args: argparse.Namespace, out: Path, environment: dict[str, str], received: Received, frames: int
) -> None:
    """Replay from a process of its own, and show how the grids come in."""
    command = [
        sys.executable,
        "-m",
        "gdfusion_ros.cli.main",
        "replay",
        str(out / "input"),
        "--clock",
        "--paced",
    ]
    command += ["--rate", "0", "--timeout", str(args.timeout), "--grids", f"{NODE}/occupancy", "--wait", "20"]
    with (
        _process(command, out / "replay.log", environment) as replay,
        tqdm(total=frames, desc="frames through the node", unit="grid", disable=None) as bar,
    ):
        while replay.poll() is None:
            bar.update(len(received.grids) - bar.n)
            time.sleep(0.05)
        _wait_for(lambda: len(received.grids) >= frames, 2.0)
        # They come after all else of a frame, and the points of a large grid take a while.
        _wait_for(lambda: len(received.latencies) >= len(received.grids), 30.0)
        bar.update(len(received.grids) - bar.n)


def _wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def _report(args: argparse.Namespace, out: Path, stamps: list[int], received: Received) -> dict[str, Any]:
    """The numbers, also written to report.json."""
    stages: dict[str, list[float]] = {}
    for one in received.latencies:
        for key, value in one.items():
            if key.endswith("_ms"):
                stages.setdefault(key.removesuffix("_ms"), []).append(float(value))
    grids = received.grids
    model, _, weights = grids[-1].model_id.partition(" ") if grids else (args.model, "", args.weights)
    result: dict[str, Any] = {
        "frames_sent": len(stamps),
        "grids_received": len(grids),
        "sequences_started": len({grid.sequence for grid in grids}),
        "restarts": [one["sequence_started"] for one in received.latencies if "sequence_started" in one],
        "state_bytes": [int(one["state_bytes"]) for one in received.latencies],
        "latency_ms": {stage: spread(values) for stage, values in stages.items()},
        "model": model,
        "weights": weights,
        "messages": received.counts,
        "input": str(next((out / "input").glob("*.mcap"))),
        "output": str(next((out / "output").glob("*.mcap"))),
        "picture": str(out / "grid.png"),
    }
    (out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _draw(path: Path, frame: CameraFrame, received: Received) -> None:
    from gdfusion_ros.assembly.grids import occupancy_of
    from gdfusion_ros.viewer.picture import save_png, sheet

    if not received.grids:
        return
    occupancy: Occupancy = occupancy_of(received.grids[-1], frame.world_from_ego)
    save_png(sheet(frame, occupancy), path)


def _print(result: dict[str, Any], out: Path) -> None:
    """The report for people."""
    print(f"model             {result['model']}, weights {result['weights']}")
    if result["weights"].startswith("random"):
        print("                  RANDOM WEIGHTS: the grids have the right form and mean nothing")
    print(f"frames sent       {result['frames_sent']}")
    print(f"grids received    {result['grids_received']}")
    print(f"sequences started {result['sequences_started']} ({', '.join(result['restarts'])})")
    if result["state_bytes"]:
        print(f"temporal state    {max(result['state_bytes']) / 1e6:.1f} MB a frame")
    print("latency           median      p95  ms")
    for stage, times in result["latency_ms"].items():
        print(f"  {stage:<15} {times['median']:7.1f}  {times['p95']:7.1f}")
    print(f"recording         {result['output']}")
    print(f"picture           {out / 'grid.png'}")


def _stamp(grid: Any) -> int:
    return int(grid.header.stamp.sec) * 1_000_000_000 + int(grid.header.stamp.nanosec)
