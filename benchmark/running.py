"""What the benchmarks of the node share: the node as a process, what a vehicle says to it, and who listens."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gdfusion_ros.sinks.bag import image_topic, info_topic
from gdfusion_ros.sinks.recording import message_types

SECOND = 1_000_000_000


def own_domain() -> None:
    """Loopback only, a ROS domain that nobody else uses, and shared memory that images fit into."""
    from gdfusion_ros.ros.environment import stay_on_this_machine, use_shared_memory

    stay_on_this_machine()
    use_shared_memory()
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 101)))


@contextmanager
def node_process(out: Path, **parameters: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The node with these parameters, once it is active; its log is `node.log` in ``out``. Interrupted at the end."""
    out.mkdir(parents=True, exist_ok=True)
    file, log = out / "node.yaml", out / "node.log"
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
    command = [sys.executable, "-m", "gdfusion_ros.ros.node", "--ros-args", "--params-file", str(file)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        while " active: " not in log.read_text(errors="replace"):
            if process.poll() is not None or "cannot configure" in log.read_text(errors="replace"):
                raise SystemExit(f"the node did not start; see {log}")
            time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(120)


@dataclass(frozen=True)
class Grid:
    """A grid as it came."""

    arrived: float
    """By time.monotonic()."""
    arrived_ns: int
    """By the system's clock."""
    stamp_ns: int
    sequence: int
    message: Any


class Listener:
    """Hears what the node says. ``keep`` keeps the grids' messages too."""

    def __init__(self, node: Any, keep: bool = False) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile

        from gdfusion_ros.msg import SemanticOccupancy

        self.grids: list[Grid] = []
        self.latencies: dict[int, dict[str, str]] = {}
        self.restarts: Counter[str] = Counter()
        self.status: dict[str, dict[str, str]] = {}
        self._keep = keep
        qos = QoSProfile(depth=50)
        node.create_subscription(SemanticOccupancy, "/gdfusion/occupancy", self._grid, qos)
        node.create_subscription(DiagnosticArray, "/gdfusion/latency", self._latency, qos)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, qos)

    def cameras(self) -> dict[str, dict[str, str]]:
        """Each camera's diagnostics."""
        prefix = "gdfusion: camera "
        return {key.removeprefix(prefix): v for key, v in self.status.items() if key.startswith(prefix)}

    def counts(self, name: str) -> dict[str, int]:
        """The whole numbers of a status, as "frames"."""
        return {k: int(v) for k, v in self.status.get(f"gdfusion: {name}", {}).items() if v.isdigit()}

    def settle(self, seconds: float = 60.0) -> None:
        """Wait until the node has said all that it has to say of the frames it got, when nothing more is sent."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(2.5)  # two rounds of diagnostics
            if self.frames_add_up() and len(self.grids) >= self.counts("frames")["published"]:
                return

    def frames_add_up(self) -> bool:
        """Whether every frame that was begun was published, dropped for a reason, or failed for one."""
        frames = self.counts("frames")
        lost = sum(n for key, n in frames.items() if key.startswith(("dropped_", "failed_")))
        return bool(frames) and frames["selected"] == frames["published"] + lost

    def repeated(self) -> int:
        """Grids that came twice: with the stamp of another one of their sequence."""
        return len(self.grids) - len({(grid.sequence, grid.stamp_ns) for grid in self.grids})

    def out_of_order(self) -> int:
        """Grids that do not come after the one before them, although of the same sequence or of an earlier one."""
        pairs = zip(self.grids[:-1], self.grids[1:], strict=True)
        return sum(
            b.sequence < a.sequence or (b.sequence == a.sequence and b.stamp_ns <= a.stamp_ns)
            for a, b in pairs
        )

    def _grid(self, message: Any) -> None:
        stamp = _nanoseconds(message.header.stamp)
        kept = message if self._keep else None
        self.grids.append(Grid(time.monotonic(), time.time_ns(), stamp, int(message.sequence), kept))

    def _latency(self, message: Any) -> None:
        values = {pair.key: pair.value for pair in message.status[0].values}
        self.latencies[_nanoseconds(message.header.stamp)] = values
        if "sequence_started" in values:
            self.restarts[values["sequence_started"]] += 1

    def _diagnostics(self, message: Any) -> None:
        for one in message.status:
            self.status[one.name] = {pair.key: pair.value for pair in one.values}


class Wire:
    """Stands where a Recording would: what `SensorRecorder` writes is published instead."""

    def __init__(self, node: Any) -> None:
        self.sent: Counter[str] = Counter()
        self.muted: set[str] = set()
        """Beginnings of topics that nothing is published on for now."""
        self._node = node
        self._publishers: dict[str, Any] = {}
        self._held: list[tuple[Any, bytes]] | None = None

    def write(self, topic: str, kind: str, message: Any, stamp_ns: int) -> None:
        """Publish, unless the topic is muted."""
        if any(topic.startswith(name) for name in self.muted):
            return
        self.sent[topic] += 1
        publisher, content = self._publisher(topic, kind), bytes(message_types().serialize_cdr(message, kind))
        if self._held is None:
            publisher.publish(content)
        else:
            self._held.append((publisher, content))

    @contextmanager
    def together_at(self, time_ns: int) -> Iterator[None]:
        """Hold back what is written inside until this time, by the system's clock: packing it takes none of it."""
        self._held = []
        yield
        held, self._held = self._held, None
        time.sleep(max(0.0, (time_ns - time.time_ns()) * 1e-9))
        for publisher, content in held:
            publisher.publish(content)

    def settle(self, topics: Mapping[str, str]) -> None:
        """Make the publishers of these topics (and kinds), and wait until somebody hears each."""
        publishers = [self._publisher(topic, kind) for topic, kind in topics.items()]
        while not all(publisher.get_subscription_count() for publisher in publishers):
            time.sleep(0.05)
        time.sleep(1.0)  # the listener's side of the discovery

    def _publisher(self, topic: str, kind: str) -> Any:
        from rclpy.qos import DurabilityPolicy, QoSProfile

        from gdfusion_ros.ros.player import message_class

        if topic not in self._publishers:
            latched = topic == "/tf_static"
            durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
            qos = QoSProfile(depth=100, durability=durability)
            self._publishers[topic] = self._node.create_publisher(message_class(kind), topic, qos)
        return self._publishers[topic]


def sensor_topics(cameras: Iterable[str]) -> dict[str, str]:
    """What the node hears of these cameras' vehicle: topics and kinds."""
    topics = {"/tf": "tf2_msgs/msg/TFMessage", "/tf_static": "tf2_msgs/msg/TFMessage"}
    for camera in cameras:
        topics |= {
            image_topic(camera): "sensor_msgs/msg/CompressedImage",
            info_topic(camera): "sensor_msgs/msg/CameraInfo",
        }
    return topics


@contextmanager
def listening(keep: bool = False) -> Iterator[tuple[Any, Listener]]:
    """A ROS node that is spun in the background, and a listener on it."""
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    rclpy.init(args=[])
    node = rclpy.create_node("benchmark")
    listener = Listener(node, keep)
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()

    spinner = threading.Thread(target=spin, daemon=True)
    spinner.start()
    try:
        yield node, listener
    finally:
        executor.shutdown()
        spinner.join()
        node.destroy_node()
        rclpy.try_shutdown()


def adds_up(values: dict[str, int]) -> bool:
    """Whether a camera's counts do."""
    dropped = sum(number for key, number in values.items() if key.startswith("dropped_"))
    return values["received"] == values["used"] + values["waiting"] + dropped


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * SECOND + int(stamp.nanosec)
