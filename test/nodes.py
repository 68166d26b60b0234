"""The real node as a process, and somebody who talks to it over DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from domains import locked_domain
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage
from sensor_msgs.msg import Image as ImageMessage
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from gdfusion_ros.assembly.grids import occupancy_of
from gdfusion_ros.msg import LabelInfo, SemanticOccupancy, VoxelFlow
from gdfusion_ros.ros.environment import stay_on_this_machine, use_shared_memory
from gdfusion_ros.sinks.recording import message_types

PATIENCE = 60.0
"""Seconds to wait for anything: many times what it takes on an idle machine."""

KINDS = {
    "CompressedImage": (CompressedImage, "sensor_msgs/msg/CompressedImage"),
    "Image": (ImageMessage, "sensor_msgs/msg/Image"),
    "CameraInfo": (CameraInfo, "sensor_msgs/msg/CameraInfo"),
    "Odometry": (Odometry, "nav_msgs/msg/Odometry"),
    "TFMessage": (TFMessage, "tf2_msgs/msg/TFMessage"),
}


@contextmanager
def ros_environment() -> Iterator[dict[str, str]]:
    """An environment with a ROS domain of its own, loopback only, one thread for arithmetic."""
    with locked_domain() as domain:
        environment = dict(os.environ)
        environment |= {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        stay_on_this_machine(environment)
        use_shared_memory(environment)
        yield environment


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What the condition gives once it is true; AssertionError naming ``what`` when it does not become so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen in {seconds:g} s")


class NodeProcess:
    """`python -m gdfusion_ros.ros.node` with parameters, or a script in its place."""

    def __init__(
        self, environment: dict[str, str], folder: Path, script: Path | None = None, **parameters: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "parameters.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        self.log = folder / f"node_{time.monotonic_ns()}.log"
        what = ["-m", "gdfusion_ros.ros.node"] if script is None else [str(script)]
        command = [sys.executable, *what, "--ros-args", "--params-file", str(file)]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def says(self, words: str) -> None:
        """Wait until it says something."""
        wait_for(lambda: words in self.text() or self.process.poll() is not None, f"{words!r} in the log")
        assert words in self.text(), self.text()

    def stop(self, number: int = signal.SIGINT, seconds: float = PATIENCE) -> int:
        """Signal it and wait for its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the node does not stop:\n{self.text()}") from None


class Peer:
    """Another participant: hears everything the node says, and can say anything that a vehicle could."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.grids: list[SemanticOccupancy] = []
        self.flows: list[VoxelFlow] = []
        self.latencies: list[dict[str, Any]] = []
        self.label_infos: list[LabelInfo] = []
        self.diagnostics: dict[str, Any] = {}
        # The middleware reads the process's environment when a participant is made.
        os.environ.update({key: value for key, value in environment.items() if "FAST" in key or "ROS" in key})
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=int(environment["ROS_DOMAIN_ID"]))
        self.node = rclpy.create_node("peer", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._publishers: dict[str, Any] = {}
        keep = QoSProfile(depth=50)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.hear(SemanticOccupancy, "/gdfusion/occupancy", self.grids.append, keep)
        self.hear(VoxelFlow, "/gdfusion/flow", self.flows.append, keep)
        self.hear(LabelInfo, "/gdfusion/label_info", self.label_infos.append, latched)
        self.hear(DiagnosticArray, "/gdfusion/latency", self._latency, keep)
        self.hear(DiagnosticArray, "/diagnostics", self._diagnostic, keep)
        self._spinner = threading.Thread(target=self._spin, daemon=True)
        self._spinner.start()

    def hear(self, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        """Subscribe."""
        self.node.create_subscription(kind, topic, callback, qos)

    def prepare(self, topics: dict[str, str], latched: tuple[str, ...] = ("/tf_static",)) -> None:
        """Make publishers of these topics (and kinds), and wait until the node hears them."""
        new = {topic: kind for topic, kind in topics.items() if topic not in self._publishers}
        for topic, kind in new.items():
            durability = DurabilityPolicy.TRANSIENT_LOCAL if topic in latched else DurabilityPolicy.VOLATILE
            qos = QoSProfile(depth=100, durability=durability)
            self._publishers[topic] = self.node.create_publisher(KINDS[kind][0], topic, qos)
        unheard = [topic for topic in topics if not self.is_heard(topic)]
        for topic in unheard:
            wait_for(lambda topic=topic: self.is_heard(topic), f"a subscription to {topic}")
        if unheard:
            time.sleep(0.5)  # the writer knows its reader a little before the reader knows its writer

    def is_heard(self, topic: str) -> bool:
        """Whether somebody subscribes to a topic that was prepared."""
        return bool(self._publishers[topic].get_subscription_count())

    def say(self, topic: str, kind: str, message: Any) -> None:
        """Publish one of `driving`'s messages."""
        self.prepare({topic: kind})
        data = bytes(message_types().serialize_cdr(message, KINDS[kind][1]))
        self._publishers[topic].publish(data)

    def call(self, kind: Any, service: str, request: Any = None) -> Any:
        """A service's answer."""
        client = self.node.create_client(kind, service)
        try:
            assert client.wait_for_service(PATIENCE), f"{service} is not there"
            answer = client.call_async(request or kind.Request())
            wait_for(answer.done, f"an answer of {service}")
            return answer.result()
        finally:
            self.node.destroy_client(client)

    def state(self) -> str:
        """The node's lifecycle state."""
        return self.call(GetState, "/gdfusion/get_state").current_state.label

    def change_state(self, transition: str) -> bool:
        """Ask for a lifecycle transition, as "activate"; gives whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = getattr(Transition, f"TRANSITION_{transition.upper()}")
        return self.call(ChangeState, "/gdfusion/change_state", request).success

    def trigger(self, service: str) -> Trigger.Response:
        """Call one of the node's std_srvs/Trigger services."""
        return self.call(Trigger, f"/gdfusion/{service}")

    def camera(self, name: str) -> dict[str, str]:
        """The latest diagnostics of a camera; ``level`` and ``message`` among the values."""
        return self.diagnostics.get(f"gdfusion: camera {name}", {})

    def frames(self) -> dict[str, Any]:
        """The latest diagnostics of the frames."""
        return self.diagnostics.get("gdfusion: frames", {})

    def stamps(self) -> list[int]:
        """Stamps of the grids so far, in nanoseconds."""
        return [occupancy_of(grid).stamp_ns for grid in self.grids]

    def has_frame(self, stamp: int) -> bool:
        """Whether a frame's grid and latency have come; the latency is the last thing the node says of a frame."""
        return stamp in self.stamps() and any(latency["stamp"] == stamp for latency in list(self.latencies))

    def close(self) -> None:
        """Leave."""
        self._executor.shutdown()
        self._spinner.join()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _latency(self, message: DiagnosticArray) -> None:
        stamp = message.header.stamp
        values = {pair.key: pair.value for pair in message.status[0].values}
        self.latencies.append({"stamp": stamp.sec * 1_000_000_000 + stamp.nanosec, **values})

    def _diagnostic(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            self.diagnostics[status.name] = {
                **values,
                "level": int.from_bytes(status.level, "little"),
                "message": status.message,
            }

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()


@contextmanager
def running_node(
    folder: Path, script: Path | None = None, variables: dict[str, str] | None = None, **parameters: Any
) -> Iterator[tuple[NodeProcess, Peer, dict[str, str]]]:
    """A node that is active, a peer that hears it, and their environment. Stopped in good order at the end."""
    with ros_environment() as environment:
        node = NodeProcess(environment | (variables or {}), folder, script, **parameters)
        peer = None
        try:
            peer = Peer(environment)
            node.says("active: ")
            wait_for(lambda: peer.label_infos, "label info")
            yield node, peer, environment
            assert node.process.poll() is None, f"the node died:\n{node.text()}"
        finally:
            if peer is not None:
                peer.close()
            code = node.stop()
        assert code == 0, node.text()
