"""Publishes a recording over DDS, as `ros2 bag play` would: raw CDR, at a chosen rate, with /clock."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage

from gdfusion_ros.assembly.matching import KeyFrames
from gdfusion_ros.assembly.messages import SECOND, stamp_ns
from gdfusion_ros.assembly.rig import Rig
from gdfusion_ros.errors import UserError
from gdfusion_ros.msg import SemanticOccupancy
from gdfusion_ros.ros.conversion import time_message

log = logging.getLogger(__name__)

LATCHED_TOPICS = ("/tf_static", "/robot_description")


class Reader(Protocol):
    """An opened recording (rosbags' AnyReader)."""

    connections: list[Any]

    @property
    def start_time(self) -> int:
        """Time of the first message, in nanoseconds."""
        ...

    def messages(self, connections: Any = (), start: int | None = None) -> Iterator[tuple[Any, int, bytes]]:
        """Connection, time in nanoseconds and CDR of each message, in order of time."""
        ...

    def deserialize(self, rawdata: bytes, msgtype: str) -> Any:
        """A message's fields."""
        ...


@dataclass
class Played:
    """What was published."""

    messages: int = 0
    frames: int = 0
    """Key frames, when the replay was paced."""


class Pacer:
    """Lets the replay wait for the grid of each key frame. Its node must be spun by somebody."""

    def __init__(self, node: Node, rig: Rig, topic: str, period: float, timeout: float) -> None:
        """``topic`` is where the grids come; ``timeout`` the seconds that one may take."""
        self.anchor_topic = next(camera.image for camera in rig.cameras if camera.name == rig.anchor)
        self.period_ns = round(period * SECOND)
        self.timeout = timeout
        self.key_frames = KeyFrames(self.period_ns)
        self._topic = topic
        self._received: set[int] = set()
        self._subscription = node.create_subscription(
            SemanticOccupancy, topic, lambda message: self._received.add(stamp_ns(message.header.stamp)), 10
        )

    def wait_for(self, stamp: int, alive: Callable[[], bool]) -> None:
        """Return when the grid with this stamp has come, or ``alive`` is False; UserError when it does not come."""
        deadline = time.monotonic() + self.timeout
        while stamp not in self._received and alive():
            if time.monotonic() > deadline:
                raise UserError(f"no grid came on {self._topic} for the frame at {stamp / SECOND:.6f} s")
            time.sleep(0.002)
        self._received.discard(stamp)


class Player:
    """Publishes the messages of a recording. One node, one recording."""

    GROUP_NS = 200_000_000
    """A paced replay waits once it is this far beyond a key frame: all of its images are out then."""

    def __init__(self, node: Node, reader: Reader, clock: bool) -> None:
        """Makes the publishers. With ``clock`` /clock follows the recording, instead of a /clock in it."""
        self._node, self._reader = node, reader
        self._publishers: dict[str, Publisher[Any]] = {}
        self._clock = node.create_publisher(Clock, "/clock", 10) if clock else None
        self.skipped: dict[str, str] = {}
        for connection in reader.connections:
            if clock and connection.topic == "/clock":
                continue
            self._add(connection)

    def _add(self, connection: Any) -> None:
        topic = connection.topic
        if topic in self._publishers:
            return
        kind = message_class(connection.msgtype)
        if kind is None:
            self.skipped[topic] = connection.msgtype
            log.warning("%s is left out: the type %s is not installed", topic, connection.msgtype)
            return
        self._publishers[topic] = self._node.create_publisher(kind, topic, _qos(connection))

    def wait_for_subscribers(self, seconds: float) -> bool:
        """Wait until somebody listens and discovery has settled; False when nobody came in time."""
        deadline = time.monotonic() + seconds
        known, since = 0, time.monotonic()
        while time.monotonic() < deadline:
            count = sum(p.get_subscription_count() for p in self._publishers.values())
            if count != known:
                known, since = count, time.monotonic()
            elif known and time.monotonic() - since > 0.5:
                return True
            time.sleep(0.02)
        return bool(known)

    def drain(self) -> None:
        """Wait until the reliable subscribers have what was sent."""
        for publisher in self._publishers.values():
            if publisher.get_subscription_count():
                publisher.wait_for_all_acked(Duration(seconds=2.0))

    def play(
        self,
        rate: float = 1.0,
        start: float = 0.0,
        pacer: Pacer | None = None,
        alive: Callable[[], bool] = lambda: True,
    ) -> Played:
        """Publish the recording once, from ``start`` seconds on, at ``rate`` times its speed (0: without waiting).

        Latched topics are sent from the beginning all the same. ``alive`` returning False ends it. Raises
        UserError when the recording is damaged or a paced grid does not come.
        """
        played = Played()
        first = self._reader.start_time + round(start * SECOND)
        begin = time.monotonic()
        key: int | None = None
        for connection, stamp, data in self._messages(first):
            if not alive():
                break
            if pacer is not None and key is not None and stamp > key + self.GROUP_NS:
                self._tick(key + self.GROUP_NS)
                pacer.wait_for(key, alive)
                key, begin = None, time.monotonic() - self._seconds(stamp, first, rate)
            self._wait(begin + self._seconds(stamp, first, rate), alive)
            self._tick(stamp)
            self._publishers[connection.topic].publish(bytes(data))
            played.messages += 1
            if pacer is not None and connection.topic == pacer.anchor_topic:
                header = self._reader.deserialize(data, connection.msgtype).header
                if pacer.key_frames.is_key(stamp_ns(header.stamp)):
                    key = stamp_ns(header.stamp)
                    played.frames += 1
        if pacer is not None and key is not None and alive():
            pacer.wait_for(key, alive)
        return played

    def _messages(self, first: int) -> Iterator[tuple[Any, int, bytes]]:
        wanted = [c for c in self._reader.connections if c.topic in self._publishers]
        latched = [c for c in wanted if c.topic in LATCHED_TOPICS]
        try:
            if first > self._reader.start_time and latched:
                for connection, stamp, data in self._reader.messages(latched):
                    if stamp < first:
                        yield connection, first, data
            yield from self._reader.messages(wanted, start=first)
        except (OSError, ValueError) as error:
            raise UserError(f"the recording ends early, it is damaged: {error}") from None

    def _tick(self, stamp: int) -> None:
        if self._clock is not None:
            self._clock.publish(Clock(clock=time_message(stamp)))

    @staticmethod
    def _seconds(stamp: int, first: int, rate: float) -> float:
        return (stamp - first) / SECOND / rate if rate > 0 else 0.0

    @staticmethod
    def _wait(until: float, alive: Callable[[], bool]) -> None:
        while (left := until - time.monotonic()) > 0 and alive():
            time.sleep(min(left, 0.1))


def message_class(name: str) -> Any | None:
    """The class of a type such as "sensor_msgs/msg/Image"; None where it is not installed."""
    package, _, kind = name.partition("/msg/")
    if name == "tf2_msgs/msg/TFMessage":
        return TFMessage
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind, None)
    except ImportError:
        return None


def _qos(connection: Any) -> QoSProfile:
    """The recorded QoS, as far as it matters for being heard."""
    latched, best_effort, depth = connection.topic in LATCHED_TOPICS, False, 10
    for offered in connection.ext.offered_qos_profiles or ():
        latched = latched or offered.durability.name == "TRANSIENT_LOCAL"
        best_effort = best_effort or offered.reliability.name == "BEST_EFFORT"
        depth = max(depth, min(offered.depth, 1000))
    return QoSProfile(
        depth=depth,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
    )
