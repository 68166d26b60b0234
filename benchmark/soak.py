"""Drives the real node for minutes, with a random fault every few seconds, and reports what came of it.

    python benchmark/soak.py --minutes 20 --model gdfusion-small --out soak_output

Six cameras at --rate images a second and an ego pose at each exposure go to the node over DDS (loopback, a domain of
its own). Faults: a camera falls silent, transforms stop, everything stops for a while, images come twice, late or out
of order, JPEGs are broken, calibrations are NaN, transforms are NaN, the clock jumps, the vehicle is teleported,
the state is reset, a parameter changes. After each fault the time to the next grid is taken.

Fails when the node dies or hangs, takes more than --recovery seconds to recover, publishes a grid twice or out of
order, has a temporal state that is not finite or changes its size, or when the counts of images or frames do not add
up. The report is also written to soak.json in --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from running import SECOND, Listener, Wire, adds_up, listening, node_process, own_domain, sensor_topics

from gdfusion_ros.geometry import Matrix
from gdfusion_ros.sinks.bag import SensorRecorder, image_topic, pixel_from_calibrated
from gdfusion_ros.sources.world import WorldSource

ANCHOR = "CAM_FRONT"
GIVE_UP = 30.0
"""Seconds after which a recovery counts as none."""


@dataclass
class Vehicle:
    """Six cameras of the made-up world on a straight road at 5 m/s, and what is wrong with them."""

    sensors: SensorRecorder
    wire: Wire
    images: list[dict[str, bytes]]
    intrinsics: dict[str, Matrix]
    extrinsics: dict[str, Matrix]
    size: tuple[int, int]
    offset_ns: int = 0
    x: float = 0.0
    mangle: Callable[[bytes], bytes] | None = None
    """What happens to an image of one camera at each exposure."""
    repeat: bool = False
    """Every image comes twice, and some long after others that were taken later."""

    def now_ns(self) -> int:
        """The vehicle's clock."""
        return time.time_ns() + self.offset_ns

    def expose(self, number: int, rng: random.Random) -> None:
        """All cameras, now."""
        stamp = self.now_ns()
        images = dict(self.images[number % len(self.images)])
        if self.mangle is not None:
            broken = rng.choice(list(images))
            images[broken] = self.mangle(images[broken])
        names = list(self.intrinsics)
        self._expose(stamp, images, names)
        if self.repeat:
            self._expose(stamp, images, names[:2])
            self._expose(stamp - 300_000_000, images, names[2:4])

    def _expose(self, stamp: int, images: dict[str, bytes], names: list[str]) -> None:
        pose = np.eye(4)
        pose[0, 3] = self.x + 5.0 * (stamp / SECOND % 1e6)
        self.sensors.ego(stamp, pose, (np.array([5.0, 0, 0]), np.zeros(3)))
        for name in names:
            self.sensors.camera(name, stamp, self.intrinsics[name], self.size, images[name])


@dataclass
class Fault:
    """Something that goes wrong for a while."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None] = lambda: None
    seconds: float = 0.0


@dataclass
class Soak:
    """The drive, and what is noted of it."""

    args: argparse.Namespace
    node: Any
    vehicle: Vehicle
    listener: Listener
    rng: random.Random
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    checksums: list[str] = field(default_factory=list)
    finite: bool = True
    memory: list[int] = field(default_factory=list)
    clients: dict[str, Any] = field(default_factory=dict)

    def run(self, process: subprocess.Popen[bytes]) -> None:
        """Drive, with faults, until the time is over or the node is dead."""
        period, begin = 1.0 / self.args.rate, time.monotonic()
        deadline, next_fault, next_state = begin + 60 * self.args.minutes, begin + 10.0, begin + 60.0
        fault: Fault | None = None
        fault_end = recovering = 0.0
        number = since = 0
        while time.monotonic() < deadline and process.poll() is None:
            now = time.monotonic()
            self.vehicle.expose(number, self.rng)
            number += 1
            if fault is not None and fault_end and now >= fault_end:
                fault.end()
                recovering, since, fault_end = now, self.vehicle.now_ns(), 0.0
            elif fault is not None and recovering:
                seconds = self._recovered(recovering, since)
                if seconds is not None:
                    self.recoveries.setdefault(fault.name, []).append(seconds)
                    fault, recovering = None, 0.0
                    next_fault = now + self.rng.uniform(0.6, 1.4) * self.args.every
            elif fault is None and now >= next_fault:
                fault = self._random_fault()
                fault.begin()
                fault_end = now + fault.seconds
            elif fault is None and now >= next_state:
                next_state = now + 60.0
                self.check_state()
            time.sleep(max(0.0, now + period - time.monotonic()))
        if fault is not None:
            fault.end()

    def _recovered(self, recovering: float, since: int) -> float | None:
        """Seconds from a fault's end until a grid of images from after it came; None when it has not come yet."""
        for grid in self.listener.grids[-9:]:
            # One that was under way when the clock jumped back carries a stamp that lies ahead.
            if grid.arrived > recovering and since <= grid.stamp_ns <= self.vehicle.now_ns():
                return grid.arrived - recovering
        return float("inf") if time.monotonic() - recovering > GIVE_UP else None

    def _random_fault(self) -> Fault:
        rng, vehicle, wire = self.rng, self.vehicle, self.vehicle.wire
        camera = rng.choice([name for name in vehicle.intrinsics if name != ANCHOR])
        seconds = rng.uniform(0.5, 2.0)

        def mute(*names: str) -> Callable[[], None]:
            return lambda: wire.muted.update(names)

        def put(name: str, value: Any) -> Callable[[], None]:
            return lambda: setattr(vehicle, name, value)

        def jump(back: float) -> Callable[[], None]:
            return put("offset_ns", vehicle.offset_ns - round(back * SECOND))

        good, bad = vehicle.intrinsics[camera], np.full((3, 3), np.nan)
        faults = [
            Fault("camera silent", mute(f"/{camera}/"), wire.muted.clear, seconds),
            Fault("anchor silent", mute(f"/{ANCHOR}/"), wire.muted.clear, seconds),
            Fault("transforms stop", mute("/tf"), wire.muted.clear, seconds),
            Fault("everything stops", mute("/"), wire.muted.clear, seconds),
            Fault(
                "truncated images", put("mangle", lambda d: d[: len(d) // 2]), put("mangle", None), seconds
            ),
            Fault(
                "broken images", put("mangle", lambda d: rng.randbytes(len(d))), put("mangle", None), seconds
            ),
            Fault("twice and late", put("repeat", True), put("repeat", False), seconds),
            Fault("transform is nan", put("x", float("nan")), put("x", vehicle.x), seconds),
            Fault("clock jumps back", jump(rng.uniform(2.0, 20.0))),
            Fault("clock jumps ahead", jump(-rng.uniform(2.0, 20.0))),
            Fault("teleport", put("x", vehicle.x + 1000.0)),
            Fault(
                "calibration is nan",
                lambda: vehicle.intrinsics.update({camera: bad}),
                lambda: vehicle.intrinsics.update({camera: good}),
                seconds,
            ),
            Fault("reset", lambda: self._trigger("reset")),
            Fault(
                "parameter changes",
                lambda: self._set("missing_camera", "blank"),
                lambda: self._set("missing_camera", "skip"),
                seconds,
            ),
        ]
        return rng.choice(faults)

    def _trigger(self, service: str) -> None:
        from std_srvs.srv import Trigger

        self._call(Trigger, service, Trigger.Request())

    def _set(self, name: str, value: str) -> None:
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        self._call(SetParameters, "set_parameters", request)

    def _call(self, kind: Any, service: str, request: Any) -> None:
        # One client a service: each is a reader and a writer that the node's middleware keeps track of.
        if service not in self.clients:
            self.clients[service] = self.node.create_client(kind, f"/gdfusion/{service}")
        if self.clients[service].wait_for_service(timeout_sec=2.0):
            self.clients[service].call_async(request)

    def check_state(self) -> None:
        """Let the node write its state, and look at it."""
        from safetensors.numpy import load_file

        path = Path(self.args.out) / "state.safetensors"
        before = path.stat().st_mtime_ns if path.exists() else 0
        self._trigger("save_state")
        deadline = time.monotonic() + 5.0
        while not path.exists() or path.stat().st_mtime_ns == before:
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        self.finite &= all(bool(np.isfinite(tensor).all()) for tensor in load_file(path).values())
        self.checksums.append(hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        self.memory.append(self.listener.counts("temporal state").get("resident_bytes", 0))


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
    parser.add_argument("--recovery", type=float, default=2.0, help="seconds one may take (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak_output"))
    args = parser.parse_args()
    own_domain()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "state.safetensors").unlink(missing_ok=True)
    parameters = {"model": args.model, "weights": args.weights, "image_reliability": "reliable"}
    parameters |= {"image_depth": 50, "state_file": str(args.out / "state.safetensors")}
    with listening() as (node, listener):
        vehicle = _vehicle(Wire(node))
        with node_process(args.out, **parameters) as process:
            vehicle.wire.settle(sensor_topics(vehicle.intrinsics))
            vehicle.sensors.static(vehicle.extrinsics, time.time_ns())
            soak = Soak(args, node, vehicle, listener, random.Random(args.seed))
            soak.run(process)
            if process.poll() is None:
                listener.settle()
                soak.check_state()
        report = _report(soak)
    report["exit_code"] = process.returncode
    report["faults_found"] = _faults(report, args)
    (args.out / "soak.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 1 if report["faults_found"] else 0


def _vehicle(wire: Wire) -> Vehicle:
    frames = list(WorldSource(seed=1, frames=8))
    images = [
        {
            view.name: cv2.imencode(".jpg", cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR))[1].tobytes()
            for view in frame.views
        }
        for frame in frames
    ]
    views = frames[0].views
    intrinsics = {view.name: pixel_from_calibrated(view) @ view.intrinsics for view in views}
    extrinsics = {view.name: view.ego_from_camera for view in views}
    size = (views[0].image.shape[0], views[0].image.shape[1])
    sensors = SensorRecorder(wire)  # type: ignore[arg-type]
    return Vehicle(sensors, wire, images, intrinsics, extrinsics, size)


def _report(soak: Soak) -> dict[str, Any]:
    listener, sent = soak.listener, soak.vehicle.wire.sent
    cameras = {}
    for name in listener.cameras():
        counts = listener.counts(f"camera {name}")
        cameras[name] = {
            "sent": sent[image_topic(name)],
            **{key: counts[key] for key in ("received", "used", "waiting")},
            "dropped": {k.removeprefix("dropped_"): n for k, n in counts.items() if k.startswith("dropped_")},
            "adds_up": adds_up(counts) and counts["received"] == sent[image_topic(name)],
        }
    times = [seconds for values in soak.recoveries.values() for seconds in values]
    totals = [float(values["total_ms"]) for values in listener.latencies.values()]
    return {
        "minutes": soak.args.minutes,
        "faults": {name: len(values) for name, values in sorted(soak.recoveries.items())},
        "recovery_s": {
            "median": round(statistics.median(times), 3) if times else None,
            "worst": {name: round(max(values), 3) for name, values in sorted(soak.recoveries.items())},
        },
        "frames": listener.counts("frames"),
        "frames_add_up": listener.frames_add_up(),
        "grids": len(listener.grids),
        "twice": listener.repeated(),
        "out_of_order": listener.out_of_order(),
        "cameras": cameras,
        "restarts": dict(listener.restarts),
        "image_to_grid_ms": round(statistics.median(totals), 1) if totals else None,
        "state_bytes": sorted({int(values["state_bytes"]) for values in listener.latencies.values()}),
        "state_checksums": soak.checksums,
        "state_finite": soak.finite,
        "resident_mb": [round(value / 1e6, 1) for value in soak.memory],
    }


def _faults(report: dict[str, Any], args: argparse.Namespace) -> list[str]:
    slow = {name: worst for name, worst in report["recovery_s"]["worst"].items() if worst > args.recovery}
    wrong = [name for name, camera in report["cameras"].items() if not camera["adds_up"]]
    checks = {
        f"the node ended with {report['exit_code']}": report["exit_code"] != 0,
        "no grids": not report["grids"],
        f"{report['twice']} grids came twice": report["twice"],
        f"{report['out_of_order']} grids came out of order": report["out_of_order"],
        f"recovery took more than {args.recovery} s: {slow}": slow,
        "the temporal state changed its size": len(report["state_bytes"]) > 1,
        "the temporal state is not finite": not report["state_finite"],
        "the frames' counts do not add up": not report["frames_add_up"],
        f"the images' counts do not add up: {', '.join(wrong)}": wrong,
    }
    return [text for text, found in checks.items() if found]


if __name__ == "__main__":
    sys.exit(main())
