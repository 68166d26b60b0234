"""Listens to a live graph for a while, as the node would, and says what is wrong with it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

from gdfusion_ros.assembly.assembler import AssemblySettings, FrameAssembler
from gdfusion_ros.assembly.loading import LoadedImage
from gdfusion_ros.assembly.messages import stamp_ns
from gdfusion_ros.assembly.placement import Placement
from gdfusion_ros.assembly.rig import CameraTopics, Rig
from gdfusion_ros.ros.subscriptions import LATCHED, TRANSFORMS
from gdfusion_ros.stream import SequenceRules

Level = Literal["ok", "warning", "error"]

STEEP = 0.87
"""Sine of the angle (60 degrees) beyond which a camera's view is not that of a car's camera."""
OLD_SECONDS = 1.0
"""An image whose stamp is further from now than this makes one look at the clocks."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    text: str
    """What was found, and what to do when it is not good."""


@dataclass
class _Heard:
    """What came on one topic."""

    count: int = 0
    first: float = 0.0
    last: float = 0.0
    ages: list[float] = field(default_factory=list)

    def note(self, age: float) -> None:
        now = time.monotonic()
        self.first = self.first or now
        self.count, self.last = self.count + 1, now
        self.ages.append(age)

    @property
    def rate(self) -> float:
        return (
            (self.count - 1) / (self.last - self.first) if self.count > 1 and self.last > self.first else 0.0
        )


class Listener:
    """Subscribes as the node does, and assembles frames without running a network."""

    def __init__(self, node: Node, rig: Rig) -> None:
        self._node, self._rig = node, rig
        self._problems: Counter[tuple[str, str]] = Counter()
        self._texts: dict[tuple[str, str], str] = {}
        self._assembler = FrameAssembler(
            rig, AssemblySettings(inference_period=0.0), submit=_Never, on_problem=self._problem
        )
        self._heard: dict[str, _Heard] = {}
        self._frames = 0
        self._placement: Placement | None = None
        self._subscribe()

    def listen(self, seconds: float) -> list[Finding]:
        """Spin for so long, and say what was found."""
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.05)
            self._advance()
        executor.remove_node(self._node)
        return [*self._cameras(), *self._motion(), *self._placed(), *self._frames_made()]

    def _subscribe(self) -> None:
        sensor = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        image_type = CompressedImage if self._rig.transport == "compressed" else Image
        make = self._node.create_subscription
        for camera in self._rig.cameras:
            make(image_type, camera.image, self._on_image(camera), sensor)
            if camera.info:
                make(CameraInfo, camera.info, self._on_info(camera), sensor)
        make(TFMessage, "/tf", lambda m: self._on_transforms(m, static=False), TRANSFORMS)
        make(TFMessage, "/tf_static", lambda m: self._on_transforms(m, static=True), LATCHED)
        if self._rig.motion == "odometry":
            make(Odometry, self._rig.odometry_topic, self._on_odometry, sensor)

    def _on_image(self, camera: CameraTopics) -> Any:
        def callback(message: Any) -> None:
            self._note(camera.image, message.header.stamp)
            self._assembler.handle_image(camera.name, message, self._now())
            self._advance()

        return callback

    def _on_info(self, camera: CameraTopics) -> Any:
        def callback(message: Any) -> None:
            self._note(camera.info, message.header.stamp)
            self._assembler.handle_camera_info(camera.name, message)

        return callback

    def _on_transforms(self, message: Any, static: bool) -> None:
        topic = "/tf_static" if static else "/tf"
        self._heard.setdefault(topic, _Heard()).note(0.0)
        self._assembler.handle_transforms(message, static)

    def _on_odometry(self, message: Any) -> None:
        self._note(self._rig.odometry_topic, message.header.stamp)
        self._assembler.handle_odometry(message)

    def _note(self, topic: str, stamp: Any) -> None:
        try:
            age = (self._now() - stamp_ns(stamp)) * 1e-9
        except ValueError:
            age = float("inf")
        self._heard.setdefault(topic, _Heard()).note(age)

    def _now(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _advance(self) -> None:
        for frame in self._assembler.poll(self._now()):
            self._frames += 1
            self._placement = frame.placement
            self._assembler.drop(frame, "listened")

    def _problem(self, where: str, reason: str, text: str) -> None:
        self._problems[where, reason] += 1
        self._texts[where, reason] = text

    def _cameras(self) -> Iterator[Finding]:
        for camera in self._rig.cameras:
            yield self._topic(camera.name, camera.image, "images")
            yield from self._mismatches(camera.name, camera.image)
            if camera.info:
                yield self._topic(camera.name, camera.info, "CameraInfo")
                yield from self._mismatches(camera.name, camera.info)
        for (where, reason), count in self._problems.items():
            if reason in ("refused", "camera_info", "other_shape", "transform"):
                yield Finding("error", where, f"{count} messages refused: {self._texts[where, reason]}")

    def _topic(self, name: str, topic: str, what: str) -> Finding:
        publishers = self._node.get_publishers_info_by_topic(topic)
        heard = self._heard.get(topic)
        if not publishers:
            return Finding(
                "error", name, f"nobody publishes {topic}: is the driver running, are the topics right?"
            )
        kinds = {info.topic_type for info in publishers}
        images = "CompressedImage" if self._rig.transport == "compressed" else "Image"
        wanted = "CameraInfo" if what == "CameraInfo" else images
        if not any(kind.endswith(f"/{wanted}") for kind in kinds):
            return Finding(
                "error", name, f"{topic} is {', '.join(sorted(kinds))}, not {wanted}: set `transport`"
            )
        if heard is None:
            return Finding(
                "error",
                name,
                f"{topic} has a publisher, but nothing arrives: a network that does not carry it, another middleware, "
                "or images too large for the shared memory (config/fastdds_shm.xml belongs to the publisher)",
            )
        age = sorted(heard.ages)[len(heard.ages) // 2]
        text = f"{topic}: {heard.count} {what}, {heard.rate:.1f} Hz"
        if what == "images" and 0 < heard.rate < 1 / SequenceRules().max_gap:
            hint = "images farther apart than max_gap: every frame starts a new sequence"
            return Finding("warning", name, f"{text}, {hint}")
        if abs(age) > OLD_SECONDS:
            hint = "is it a recording? then use_sim_time; else the camera's clock is not synchronised"
            return Finding("warning", name, f"{text}, stamps are {age:.1f} s from now: {hint}")
        return Finding("ok", name, f"{text}, {age * 1e3:.0f} ms old")

    def _mismatches(self, where: str, topic: str) -> Iterator[Finding]:
        """Publishers that the occupancy node, or this listener in its place, cannot hear."""
        listeners = ("gdfusion", self._node.get_name())
        for wanted in self._node.get_subscriptions_info_by_topic(topic):
            if wanted.node_name not in listeners:
                continue
            for offered in self._node.get_publishers_info_by_topic(topic):
                verdict, reason = qos_check_compatible(offered.qos_profile, wanted.qos_profile)
                if verdict == QoSCompatibility.ERROR:
                    text = f"QoS mismatch on {topic}: {offered.node_name} is not heard by {wanted.node_name}"
                    yield Finding("error", where, f"{text}: {' '.join(reason.split())}")

    def _motion(self) -> Iterator[Finding]:
        topics = ["/tf_static"] if self._rig.motion == "odometry" else ["/tf", "/tf_static"]
        topics += [self._rig.odometry_topic] if self._rig.motion == "odometry" else []
        for topic in topics:
            heard = self._heard.get(topic)
            yield from self._mismatches("transforms", topic)
            if heard is None:
                yield Finding("error", "transforms", f"nothing comes on {topic}")
            else:
                yield Finding("ok", "transforms", f"{topic}: {heard.count} messages, {heard.rate:.1f} Hz")
        for (where, reason), count in self._problems.items():
            if reason in ("no_transform", "no_calibration"):
                text = f"{count} frames cannot be placed: {self._texts[where, reason]}"
                yield Finding("error", where, text)

    def _placed(self) -> Iterator[Finding]:
        """Whether cameras look where cameras look: the classic mistake is a frame with x ahead in place of z."""
        for name, view in self._placement.views.items() if self._placement else ():
            down, ahead = view.ego_from_camera[:3, 1], view.ego_from_camera[:3, 2]
            if abs(ahead[2]) > STEEP or down[2] > 0:
                where = "up" if ahead[2] > STEEP else "down" if ahead[2] < -STEEP else "ahead, upside down"
                text = f"by its transforms it looks {where}: is its frame an optical one (z ahead, y down)?"
                yield Finding("warning", name, text)
            else:
                x, y = view.ego_from_camera[:2, 3]
                heading = math.degrees(math.atan2(ahead[1], ahead[0]))
                yield Finding(
                    "ok", name, f"looks to {heading:.0f} degrees (left is +), from ({x:.2f}, {y:.2f}) m"
                )

    def _frames_made(self) -> Iterator[Finding]:
        frames = self._assembler.frames
        missing = [(where, n) for (where, reason), n in self._problems.items() if reason == "missing"]
        for where, count in missing:
            yield Finding("warning", where, f"missing in {count} of {frames.selected} frames")
        if self._frames:
            yield Finding("ok", "frames", f"{self._frames} frames of {frames.selected} could be made")
        else:
            yield Finding("error", "frames", "not one frame could be made of what arrived")


class _Never:
    """Images are not decoded: that their headers are sound is enough here."""

    def __init__(self, work: Any) -> None:
        pass

    def result(self) -> LoadedImage:
        """Nobody asks."""
        raise NotImplementedError
