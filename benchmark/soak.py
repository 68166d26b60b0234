"""Drives the real node for minutes, with a random fault every few seconds, and reports what came of it.

    python benchmark/soak.py --minutes 20 --model gdfusion-small --out soak_output

Six cameras at --rate images a second and an ego pose at each exposure go to the node over DDS (loopback, a domain of
its own). Faults: a camera falls silent, transforms stop, images come twice, late or out of order, JPEGs are broken,
calibrations are NaN, the clock jumps back, the vehicle is teleported, everything stops for a while, a service resets
the state, a parameter changes. After each fault the time to the next grid is taken.

Fails when the node dies or hangs, takes more than --recovery seconds to recover, publishes a grid twice or out of
order, has a temporal state that is not finite or changes its size, or when the counts of images do not add up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from gdfusion_ros.geometry import Matrix
from gdfusion_ros.sinks.bag import SensorRecorder
from gdfusion_ros.sources.world import WorldSource

SECOND = 1_000_000_000
ANCHOR = "CAM_FRONT"


@dataclass
class Wire:
    """Stands where a Recording would: what `SensorRecorder` writes is published instead."""

    publish: Callable[[str, str, bytes], None]
    sent: Counter[str] = field(default_factory=Counter)
    muted: set[str] = field(default_factory=set)

    def write(self, topic: str, kind: str, message: Any, stamp_ns: int) -> None:
        """Publish, unless the topic is muted by a fault."""
        from gdfusion_ros.sinks.recording import message_types

        if any(topic.startswith(name) for name in self.muted):
            return
        self.sent[topic] += 1
        self.publish(topic, kind, bytes(message_types().serialize_cdr(message, kind)))


@dataclass
class Vehicle:
    """Six cameras of the made-up world on a straight road at 5 m/s."""

    sensors: SensorRecorder
    wire: Wire
    images: list[dict[str, bytes]]
    intrinsics: dict[str, Matrix]
    extrinsics: dict[str, Matrix]
    size: tuple[int, int]
    offset_ns: int = 0
    x: float = 0.0

    def expose(self, stamp: int, number: int, names: list[str]) -> None:
        """All of these cameras at one time."""
        pose = np.eye(4)
        pose[0, 3] = self.x + 5.0 * (stamp / SECOND % 1e6)
        self.sensors.ego(stamp, pose, (np.array([5.0, 0, 0]), np.zeros(3)))
        for name in names:
            encoded = self.images[number % len(self.images)][name]
            self.sensors.camera(name, stamp, self.intrinsics[name], self.size, encoded)


class Listener:
    """What the node says."""

    def __init__(self, node: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile

        from gdfusion_ros.msg import SemanticOccupancy

        self.grids: list[tuple[float, int]] = []
        self.state_bytes: set[str] = set()
        self.restarts: Counter[str] = Counter()
        self.status: dict[str, dict[str, str]] = {}
        self.total_ms: list[float] = []
        qos = QoSProfile(depth=50)
        node.create_subscription(SemanticOccupancy, "/gdfusion/occupancy", self._grid, qos)
        node.create_subscription(DiagnosticArray, "/gdfusion/latency", self._latency, qos)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, qos)

    def _grid(self, message: Any) -> None:
        stamp = message.header.stamp.sec * SECOND + message.header.stamp.nanosec
        self.grids.append((time.monotonic(), stamp))

    def _latency(self, message: Any) -> None:
        values = {pair.key: pair.value for pair in message.status[0].values}
        self.state_bytes.add(values["state_bytes"])
        self.total_ms.append(float(values["total_ms"]))
        if "sequence_started" in values:
            self.restarts[values["sequence_started"]] += 1

    def _diagnostics(self, message: Any) -> None:
        for one in message.status:
            self.status[one.name] = {pair.key: pair.value for pair in one.values}


@dataclass
class Fault:
    """Something that goes wrong for a while: a begin, an end, and how often it happened."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None] = lambda: None
    seconds: float = 1.0


class Soak:
    """The drive."""

    def __init__(self, args: argparse.Namespace, node: Any, vehicle: Vehicle, listener: Listener) -> None:
        self.args, self.node, self.vehicle, self.listener = args, node, vehicle, listener
        self.rng = random.Random(args.seed)
        self.recoveries: dict[str, list[float]] = {}
        self.checksums: list[str] = []
        self.finite = True
        self.mangle: Callable[[str, bytes], bytes] | None = None
        self.repeat = False
        self.memory: list[tuple[float, int]] = []

    def run(self, process: subprocess.Popen[bytes], minutes: float) -> None:
        """Drive, with faults, until the time is over or the node is dead."""
        period, begin = 1.0 / self.args.rate, time.monotonic()
        deadline, next_fault = begin + 60 * minutes, begin + 10.0
        next_state = begin + 60.0
        fault: Fault | None = None
        fault_end = recovery_from = 0.0
        number = 0
        while time.monotonic() < deadline and process.poll() is None:
            started = time.monotonic()
            self._expose(number)
            number += 1
            if fault is None and recovery_from == 0.0 and started >= next_fault:
                fault = self._random_fault()
                fault_end = started + fault.seconds
                fault.begin()
            elif fault is not None and started >= fault_end:
                fault.end()
                self.last, recovery_from, fault = fault.name, started, None
            elif recovery_from and any(at > recovery_from for at, _ in self.listener.grids[-3:]):
                self.recoveries.setdefault(self.last, []).append(self.listener.grids[-1][0] - recovery_from)
                recovery_from, next_fault = 0.0, started + self.rng.uniform(0.6, 1.4) * self.args.every
            elif recovery_from and started - recovery_from > 30.0:
                self.recoveries.setdefault(self.last, []).append(float("inf"))
                recovery_from, next_fault = 0.0, started + self.args.every
            if started >= next_state and fault is None:
                next_state = started + 60.0
                self._check_state()
            time.sleep(max(0.0, started + period - time.monotonic()))
        if fault is not None:
            fault.end()

    def _expose(self, number: int) -> None:
        vehicle = self.vehicle
        names = list(vehicle.intrinsics)
        stamp = time.time_ns() + vehicle.offset_ns
        images = vehicle.images[number % len(vehicle.images)]
        original = dict(images)
        if self.mangle is not None:
            name = self.rng.choice(names)
            images[name] = self.mangle(name, images[name])
        vehicle.expose(stamp, number, names)
        if self.repeat:
            vehicle.expose(stamp, number, names[:2])
            vehicle.expose(stamp - 300_000_000, number, names[2:4])
        images.update(original)

    def _random_fault(self) -> Fault:
        rng, vehicle, wire = self.rng, self.vehicle, self.vehicle.wire
        camera = rng.choice([name for name in vehicle.intrinsics if name != ANCHOR])
        seconds = rng.uniform(0.5, 2.0)

        def mute(*names: str) -> Callable[[], None]:
            return lambda: wire.muted.update(names)

        def speak() -> None:
            wire.muted.clear()

        def set_mangle(how: Callable[[str, bytes], bytes] | None) -> Callable[[], None]:
            return lambda: setattr(self, "mangle", how)

        def jump(seconds_back: float) -> Callable[[], None]:
            return lambda: setattr(vehicle, "offset_ns", vehicle.offset_ns - round(seconds_back * SECOND))

        def teleport() -> None:
            vehicle.x += 1000.0

        def calibrate(scale: float) -> Callable[[], None]:
            def change() -> None:
                vehicle.intrinsics[camera] = vehicle.intrinsics[camera] * np.array([[scale], [scale], [1.0]])

            return change

        good = vehicle.intrinsics[camera]
        return rng.choice(
            [
                Fault("camera silent", mute(f"/{camera}/"), speak, seconds),
                Fault("anchor silent", mute(f"/{ANCHOR}/"), speak, seconds),
                Fault("transforms stop", mute("/tf"), speak, seconds),
                Fault("everything stops", mute("/"), speak, seconds),
                Fault(
                    "truncated images", set_mangle(lambda _, d: d[: len(d) // 2]), set_mangle(None), seconds
                ),
                Fault(
                    "broken images", set_mangle(lambda _, d: rng.randbytes(len(d))), set_mangle(None), seconds
                ),
                Fault(
                    "twice and late",
                    lambda: setattr(self, "repeat", True),
                    lambda: setattr(self, "repeat", False),
                ),
                Fault("clock jumps back", jump(rng.uniform(2.0, 20.0))),
                Fault("clock jumps ahead", jump(-rng.uniform(2.0, 20.0))),
                Fault("teleport", teleport),
                Fault(
                    "calibration is nan",
                    calibrate(float("nan")),
                    lambda: vehicle.intrinsics.update({camera: good}),
                    seconds,
                ),
                Fault("reset", lambda: self._trigger("reset")),
            ]
        )

    def _trigger(self, service: str) -> None:
        from std_srvs.srv import Trigger

        client = self.node.create_client(Trigger, f"/gdfusion/{service}")
        if client.wait_for_service(timeout_sec=2.0):
            client.call_async(Trigger.Request())

    def _check_state(self) -> None:
        """Let the node write its state, and look at it."""
        from safetensors.numpy import load_file

        path = Path(self.args.out) / "state.safetensors"
        before = path.stat().st_mtime_ns if path.exists() else 0
        self._trigger("save_state")
        for _ in range(50):
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.02)
        else:
            return
        tensors = load_file(path)
        self.finite &= all(bool(np.isfinite(tensor).all()) for tensor in tensors.values())
        self.checksums.append(hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        status = self.listener.status.get("gdfusion: temporal state", {})
        self.memory.append((time.monotonic(), int(status.get("resident_bytes", 0))))


def main() -> int:
    """Run it and print the report; 0 when all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model", default="gdfusion-small")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--rate", type=float, default=12.0, help="images a second and camera (%(default)s)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between faults (%(default)s)")
    parser.add_argument(
        "--recovery", type=float, default=2.0, help="seconds a recovery may take (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="soak_output")
    args = parser.parse_args()

    from gdfusion_ros.ros.environment import stay_on_this_machine, use_shared_memory

    stay_on_this_machine()
    use_shared_memory()
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 101)))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "state.safetensors").unlink(missing_ok=True)
    process = _start_node(args, out)
    try:
        report = _drive(args, process, out)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        code = process.wait(60)
    report["exit_code"] = code
    report["faults_found"] = _faults(report, args)
    (out / "soak.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 1 if report["faults_found"] else 0


def _start_node(args: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    parameters = {
        "model": args.model,
        "weights": args.weights,
        "image_reliability": "reliable",
        "image_depth": 50,
        "state_file": str(out / "state.safetensors"),
    }
    file = out / "node.yaml"
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
    command = [sys.executable, "-m", "gdfusion_ros.ros.node", "--ros-args", "--params-file", str(file)]
    with (out / "node.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _vehicle(publish: Callable[[str, str, bytes], None]) -> Vehicle:
    frames = list(WorldSource(seed=1, frames=8))
    wire = Wire(publish)
    sensors = SensorRecorder(wire)  # type: ignore[arg-type]
    images = [
        {
            view.name: cv2.imencode(".jpg", cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR))[1].tobytes()
            for view in frame.views
        }
        for frame in frames
    ]
    from gdfusion_ros.sinks.bag import pixel_from_calibrated

    views = frames[0].views
    intrinsics = {view.name: pixel_from_calibrated(view) @ view.intrinsics for view in views}
    extrinsics = {view.name: view.ego_from_camera for view in views}
    size = (views[0].image.shape[0], views[0].image.shape[1])
    return Vehicle(sensors, wire, images, intrinsics, extrinsics, size)


def _drive(args: argparse.Namespace, process: subprocess.Popen[bytes], out: Path) -> dict[str, Any]:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import DurabilityPolicy, QoSProfile

    from gdfusion_ros.ros.player import message_class

    rclpy.init(args=[])
    node = rclpy.create_node("gdfusion_soak")
    publishers: dict[str, Any] = {}

    def publish(topic: str, kind: str, data: bytes) -> None:
        if topic not in publishers:
            latched = topic == "/tf_static"
            durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
            qos = QoSProfile(depth=100, durability=durability)
            publishers[topic] = node.create_publisher(message_class(kind), topic, qos)
        publishers[topic].publish(data)

    vehicle = _vehicle(publish)
    listener = Listener(node)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    threading.Thread(target=executor.spin, daemon=True).start()
    while "active: " not in (out / "node.log").read_text(errors="replace"):
        if process.poll() is not None:
            raise SystemExit(f"the node did not start; see {out / 'node.log'}")
        time.sleep(0.2)
    vehicle.sensors.static(vehicle.extrinsics, time.time_ns())
    vehicle.expose(time.time_ns(), 0, list(vehicle.intrinsics))  # makes the publishers
    time.sleep(2.0)
    vehicle.wire.sent.clear()
    received_before = {name: int(values["received"]) for name, values in _cameras(listener).items()}
    soak = Soak(args, node, vehicle, listener)
    soak.run(process, args.minutes)
    time.sleep(4.0)
    soak._check_state()
    report = _report(soak, received_before)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return report


def _cameras(listener: Listener) -> dict[str, dict[str, str]]:
    prefix = "gdfusion: camera "
    return {
        key.removeprefix(prefix): value for key, value in listener.status.items() if key.startswith(prefix)
    }


def _report(soak: Soak, received_before: dict[str, int]) -> dict[str, Any]:
    listener, sent = soak.listener, soak.vehicle.wire.sent
    cameras = {}
    for name, values in _cameras(listener).items():
        drops = {
            key.removeprefix("dropped_"): int(v) for key, v in values.items() if key.startswith("dropped_")
        }
        received, used, waiting = (int(values[key]) for key in ("received", "used", "waiting"))
        cameras[name] = {
            "sent": sent[f"/{name}/image_rect_compressed"],
            "received": received - received_before.get(name, 0),
            "used": used,
            "waiting": waiting,
            "dropped": drops,
            "adds_up": received == used + waiting + sum(drops.values()),
        }
    stamps = [stamp for _, stamp in listener.grids]
    memory = [resident for _, resident in soak.memory if resident]
    times = [seconds for values in soak.recoveries.values() for seconds in values]
    return {
        "grids": len(stamps),
        "twice": len(stamps) - len(set(stamps)),
        "cameras": cameras,
        "faults": {name: len(values) for name, values in sorted(soak.recoveries.items())},
        "recovery_s": {
            "median": round(statistics.median(times), 3) if times else None,
            "worst": {name: round(max(values), 3) for name, values in sorted(soak.recoveries.items())},
        },
        "restarts": dict(listener.restarts),
        "image_to_grid_ms": {
            "median": round(statistics.median(listener.total_ms), 1) if listener.total_ms else None
        },
        "state_bytes": sorted(listener.state_bytes),
        "state_checksums": soak.checksums,
        "state_finite": soak.finite,
        "resident_mb": [round(value / 1e6, 1) for value in memory],
    }


def _faults(report: dict[str, Any], args: argparse.Namespace) -> list[str]:
    found = []
    if report["exit_code"] != 0:
        found.append(f"the node ended with {report['exit_code']}")
    if report["twice"]:
        found.append(f"{report['twice']} grids came twice")
    slow = {name: worst for name, worst in report["recovery_s"]["worst"].items() if worst > args.recovery}
    if slow:
        found.append(f"recovery took more than {args.recovery} s: {slow}")
    if len(report["state_bytes"]) > 1 or not report["state_finite"]:
        found.append("the temporal state changed its size or is not finite")
    found += [
        f"{name}: the counts do not add up" for name, c in report["cameras"].items() if not c["adds_up"]
    ]
    if not report["grids"]:
        found.append("no grids")
    return found


if __name__ == "__main__":
    sys.exit(main())
