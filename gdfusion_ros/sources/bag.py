"""Camera frames out of a recording (rosbag2, MCAP or sqlite3, any distribution), as the live node would make them.

The messages go through the node's own assembler in the order they were recorded, so that running a recording
offline gives the frames that replaying it to the node gives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from gdfusion_ros.assembly.assembler import AssemblySettings, FrameAssembler
from gdfusion_ros.assembly.rig import Rig
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame

log = logging.getLogger(__name__)

Handler = Callable[[Any], None]

IMAGE_TYPES = {"compressed": "sensor_msgs/msg/CompressedImage", "raw": "sensor_msgs/msg/Image"}


@contextmanager
def open_bag(path: str | Path) -> Iterator[AnyReader]:
    """A reader of the recording, for a `with`. Raises UserError when there is none or it cannot be read."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no recording at {path}")
    try:
        # The store is for recordings that do not hold their own message definitions (sqlite3 before Iron).
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    except Exception as error:  # the readers raise whatever the bytes of a broken file lead them to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as a rosbag2 recording: {reason}") from None
    try:
        yield reader
    finally:
        reader.close()


class BagSource:
    """Iterates the frames of a recording. `assembler` then tells what became of every image."""

    def __init__(self, path: str | Path, rig: Rig, settings: AssemblySettings = AssemblySettings()) -> None:
        """Checks that the recording can be read and has the rig's topics; UserError says what is missing."""
        self.path = Path(path)
        self.rig = rig
        self.settings = settings
        self.assembler = FrameAssembler(rig, settings)
        with open_bag(self.path) as reader:
            self._check_topics(reader)

    def __iter__(self) -> Iterator[CameraFrame]:
        self.assembler = FrameAssembler(self.rig, self.settings)
        handlers = _handlers(self.rig, self.assembler)
        with open_bag(self.path) as reader:
            wanted = [
                connection for connection in reader.connections if _absolute(connection.topic) in handlers
            ]
            for connection, message in _messages(reader, wanted):
                handlers[_absolute(connection.topic)](message)
                yield from self._resolved(self.assembler.poll())
            yield from self._resolved(self.assembler.flush())

    def _resolved(self, pending: list[Any]) -> Iterator[CameraFrame]:
        for one in pending:
            frame = self.assembler.resolve(one)
            if frame is not None:
                yield frame

    def _check_topics(self, reader: AnyReader) -> None:
        types = {_absolute(connection.topic): connection.msgtype for connection in reader.connections}
        expected = IMAGE_TYPES[self.rig.transport]
        for camera in self.rig.cameras:
            if camera.image not in types:
                raise UserError(
                    f"{self.path} has no topic {camera.image} for {camera.name}: it was recorded with other topics, "
                    "choose theirs with --topics"
                )
            if types[camera.image] != expected:
                raise UserError(
                    f"{self.path}: {camera.image} holds {types[camera.image]}, but the topics file says "
                    f"transport: {self.rig.transport}, which is {expected}"
                )


def _handlers(rig: Rig, assembler: FrameAssembler) -> dict[str, Handler]:
    """What to do with the messages of each topic."""
    handlers: dict[str, Handler] = {
        "/tf": lambda message: assembler.handle_transforms(message, static=False),
        "/tf_static": lambda message: assembler.handle_transforms(message, static=True),
    }
    if rig.motion == "odometry":
        handlers[rig.odometry_topic] = assembler.handle_odometry
    for camera in rig.cameras:
        handlers[camera.image] = _bind(assembler.handle_image, camera.name)
        if camera.info:
            handlers[camera.info] = _bind(assembler.handle_camera_info, camera.name)
    return handlers


def _absolute(topic: str) -> str:
    """With a slash in front, which ROS 1 tools leave out."""
    return "/" + topic.lstrip("/")


def _bind(handle: Callable[[str, Any], None], camera: str) -> Handler:
    return lambda message: handle(camera, message)


def _messages(reader: AnyReader, connections: list[Connection]) -> Iterator[tuple[Connection, Any]]:
    """The messages of these connections, deserialised; those that cannot be are named and left out."""
    try:
        for connection, _, data in reader.messages(connections):
            try:
                message = reader.deserialize(data, connection.msgtype)
            except Exception as error:  # whatever broken bytes lead the deserialiser to
                log.warning("%s: a message cannot be deserialised (%s)", connection.topic, error)
                continue
            yield connection, message
    except (AnyReaderError, OSError, ValueError) as error:
        raise UserError(f"the recording ends early, it is damaged: {error}") from None
