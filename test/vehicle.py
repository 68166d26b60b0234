"""A vehicle that says over DDS what a test wants said: images, calibrations, poses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from driving import (
    NUSCENES,
    OFFSETS_MS,
    SECOND,
    TINY_MODEL,
    TWO_CAMERAS,
    camera_info,
    compressed,
    ego_from_camera,
    ego_pose,
    jpeg,
    odometry,
    picture,
    raw,
    stamped_transform,
    tf,
)
from nodes import NodeProcess, Peer, wait_for
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter

from gdfusion_ros.sinks.bag import image_topic, info_topic

MS = 1_000_000
PICTURES = {name: picture(i) for i, name in enumerate(NUSCENES)}
IMAGES = {name: jpeg(image) for name, image in PICTURES.items()}


def rig_files(folder: Path, cameras: Sequence[str] = TWO_CAMERAS, **topics: str) -> dict[str, str]:
    """A small fast network and topics for a rig of these cameras, as parameters of a node. ``topics`` go into the
    topics file, as ``transport``; the network is made for CAM_FRONT and CAM_BACK."""
    model = {**TINY_MODEL, "name": "two", "cameras": list(TWO_CAMERAS)}
    (folder / "two.yaml").write_text(yaml.safe_dump(model))
    entries = {
        name: {"image": image_topic(name), "info": info_topic(name), "frame": name} for name in cameras
    }
    content = {"anchor": "CAM_FRONT", "fixed_frame": "odom", **topics, "cameras": entries}
    (folder / "topics.yaml").write_text(yaml.safe_dump(content))
    return {"model": str(folder / "two.yaml"), "topics": str(folder / "topics.yaml"), "weights": "random:0"}


@dataclass
class Vehicle:
    """Some cameras and a pose source, at a time of their own."""

    node: NodeProcess
    peer: Peer
    begin: int
    cameras: tuple[str, ...] = TWO_CAMERAS
    transport: str = "compressed"
    motion: str = "tf"

    def prepare(self) -> None:
        """Publish where the cameras sit, once the node listens to all there is."""
        image = "CompressedImage" if self.transport == "compressed" else "Image"
        topics = {image_topic(name): image for name in self.cameras}
        topics |= {info_topic(name): "CameraInfo" for name in self.cameras}
        topics |= {"/tf": "TFMessage", "/tf_static": "TFMessage"}
        topics |= {"/odom": "Odometry"} if self.motion == "odometry" else {}
        self.peer.prepare(topics)
        transforms = [stamped_transform(0, "base_link", name, ego_from_camera(name)) for name in self.cameras]
        self.peer.say("/tf_static", "TFMessage", tf(*transforms))

    def begin_drive(self) -> None:
        """Calibrations and a first frame, so that a test has history behind it."""
        for camera in self.cameras:
            self.info(camera, self.begin)
        self.frame(0.0)
        self.peer.grids.clear()
        self.peer.latencies.clear()

    def stamp(self, at: float, camera: str = "CAM_FRONT") -> int:
        """When a camera exposes for the frame at this time."""
        return self.begin + round(at * SECOND) + OFFSETS_MS[NUSCENES.index(camera)] * MS

    def pose(self, stamp: int, x: float = 0.0) -> None:
        """The ego pose at a time, moved aside by ``x`` metres."""
        pose = ego_pose((stamp - self.begin) / SECOND)
        pose[0, 3] += x
        if self.motion == "odometry":
            self.peer.say("/odom", "Odometry", odometry(stamp, pose))
        else:
            self.peer.say("/tf", "TFMessage", tf(stamped_transform(stamp, "odom", "base_link", pose)))

    def info(self, camera: str, stamp: int, **changes: Any) -> None:
        """A CameraInfo."""
        self.peer.say(info_topic(camera), "CameraInfo", camera_info(stamp, camera, **changes))

    def image(
        self, camera: str, stamp: int, data: bytes | None = None, pose: bool = True, x: float = 0.0
    ) -> None:
        """An image of a camera: its own, or these bytes of a JPEG."""
        if pose:
            self.pose(stamp, x)
        if self.transport == "raw":
            self.raw_image(camera, stamp, PICTURES[camera], "rgb8")
            return
        message = compressed(stamp, IMAGES[camera] if data is None else data, camera)
        self.peer.say(image_topic(camera), "CompressedImage", message)

    def raw_image(self, camera: str, stamp: int, pixels: np.ndarray, encoding: str, **changes: Any) -> None:
        """An uncompressed image; ``changes`` are fields that it lies about."""
        message = raw(stamp, pixels, encoding)
        for name, value in changes.items():
            setattr(message, name, value)
        self.peer.say(image_topic(camera), "Image", message)

    def shoot(self, at: float, without: str = "", x: float = 0.0, pose: bool = True) -> int:
        """All cameras; gives the anchor's stamp."""
        for camera in self.cameras:
            if camera != without:
                self.image(camera, self.stamp(at, camera), pose=pose, x=x)
        return self.stamp(at)

    def frame(self, at: float, **how: Any) -> None:
        """All cameras, and wait for the grid."""
        stamp = self.shoot(at, **how)
        wait_for(lambda: self.peer.has_frame(stamp), f"the grid at {at} s")

    def frames_until(self, condition: Callable[[], Any], what: str, at: float) -> None:
        """Frame after frame from a time on, until something is true."""
        for i in range(100):
            if condition():
                return
            self.frame(at + i * 0.5)
        raise AssertionError(f"{what} did not happen in 100 frames")

    def grids(self) -> list[float]:
        """Times of this drive's grids."""
        return [(stamp - self.begin) / SECOND for stamp in self.peer.stamps()]

    def sequences(self) -> list[int]:
        """Sequence numbers of this drive's grids."""
        return [grid.sequence for grid in self.peer.grids]

    def count(self, camera: str, reason: str) -> int:
        """A count of a camera's diagnostics, as ``dropped_late``."""
        return int(self.peer.camera(camera).get(reason, 0))

    def wait_for_count(self, camera: str, reason: str, number: int) -> None:
        """Wait until a count of a camera's diagnostics is as high as this."""
        wait_for(lambda: self.count(camera, reason) >= number, f"{number} {reason} of {camera}")

    def set(self, **values: Any) -> list[tuple[bool, str]]:
        """Set parameters; gives whether each was accepted, and the reason if not."""
        request = SetParameters.Request()
        request.parameters = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        answer = self.peer.call(SetParameters, "/gdfusion/set_parameters", request)
        return [(result.successful, result.reason) for result in answer.results]
