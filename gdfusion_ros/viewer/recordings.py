"""Shots out of recordings: what the node (or `gdfusion run`) gave, beside the images that went in. Needs no ROS."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from gdfusion_ros.assembly.codec import ImageError, decode_compressed, decode_raw
from gdfusion_ros.assembly.grids import occupancy_of
from gdfusion_ros.assembly.messages import SECOND
from gdfusion_ros.assembly.transforms import TransformBuffer, TransformError
from gdfusion_ros.errors import UserError
from gdfusion_ros.geometry import Matrix
from gdfusion_ros.sinks.recording import message_types
from gdfusion_ros.sources.bag import open_bag
from gdfusion_ros.viewer.shot import Picture, Shot, make_shot, shrunk

log = logging.getLogger(__name__)

OCCUPANCY, FLOW = "gdfusion_ros/msg/SemanticOccupancy", "gdfusion_ros/msg/VoxelFlow"
IMAGES = {"sensor_msgs/msg/CompressedImage": decode_compressed, "sensor_msgs/msg/Image": decode_raw}
INFO = "sensor_msgs/msg/CameraInfo"
IMAGE_TOLERANCE = int(0.15 * SECOND)
WORLDS = ("odom", "map")
BASE = "base_link"
FOREVER = 1 << 62


class Recordings(Sequence[Shot]):
    """The grids of one or more recordings in the order of their times; shots are decoded when they are asked for.

    Images, camera places and ego poses come from whichever of the recordings has them. Use it in a `with`, or call
    ``close``.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises UserError when a recording cannot be read or none of them has grids."""
        self._stack = ExitStack()
        self._readers = [self._stack.enter_context(open_bag(path)) for path in paths]
        self._types = message_types()
        self._grids = self._index(lambda kind: kind == OCCUPANCY)
        if not self._grids:
            self.close()
            names = ", ".join(str(path) for path in paths)
            raise UserError(
                f"{names}: no {OCCUPANCY} in it; record the node's output, or make one with `gdfusion run`"
            )
        self._flows = {
            time: (reader, connection) for time, reader, connection in self._index(lambda k: k == FLOW)
        }
        self._images: dict[str, list[tuple[int, AnyReader, Connection]]] = {}
        for entry in self._index(lambda kind: kind in IMAGES):
            self._images.setdefault(entry[2].topic, []).append(entry)
        self._transforms = self._read_transforms()
        self._views = self._read_views()
        self._shot = lru_cache(maxsize=8)(self._read)

    def __enter__(self) -> Recordings:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __len__(self) -> int:
        return len(self._grids)

    @overload
    def __getitem__(self, index: int) -> Shot: ...
    @overload
    def __getitem__(self, index: slice) -> list[Shot]: ...
    def __getitem__(self, index: int | slice) -> Shot | list[Shot]:
        """The shot at a place. Raises UserError when its message is broken."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._shot(range(len(self))[index])

    def _index(self, wanted: Any) -> list[tuple[int, AnyReader, Connection]]:
        """Time, reader and connection of every message of the wanted types, in the order of their times."""
        found = []
        for reader in self._readers:
            connections = [c for c in reader.connections if wanted(c.msgtype)]
            if connections:
                found += [(time, reader, connection) for connection, time, _ in reader.messages(connections)]
        return sorted(found, key=lambda entry: entry[0])

    def _message(self, time: int, reader: AnyReader, connection: Connection) -> Any:
        _, _, data = next(iter(reader.messages([connection], start=time, stop=time + 1)))
        if connection.msgtype.startswith("gdfusion_ros/"):
            return self._types.deserialize_cdr(data, connection.msgtype)
        return reader.deserialize(data, connection.msgtype)

    def _read(self, index: int) -> Shot:
        time, reader, connection = self._grids[index]
        flow = self._flows.get(time)
        try:
            occupancy = occupancy_of(
                self._message(time, reader, connection),
                self._world_from_ego(time),
                None if flow is None else self._message(time, *flow),
            )
        except ValueError as error:
            raise UserError(f"grid {index} of the recording is broken: {error}") from None
        shot = make_shot(occupancy)
        pictures = {}
        for topic, entries in self._images.items():
            nearest = _nearest(entries, time)
            if nearest is not None:
                name, picture = self._picture(topic, *nearest)
                if picture is not None:
                    pictures[name] = picture
        return shot.with_pictures(pictures)

    def _picture(
        self, topic: str, time: int, reader: AnyReader, connection: Connection
    ) -> tuple[str, Picture | None]:
        message = self._message(time, reader, connection)
        name = topic.strip("/").split("/")[0]
        try:
            image = IMAGES[connection.msgtype](message)
        except ImageError as error:
            log.warning("%s at %d ns cannot be shown: %s", topic, time, error)
            return name, None
        frame = message.header.frame_id
        view = self._views.get(frame)
        try:
            place = self._transforms.lookup(BASE, frame, time)
        except TransformError:
            place = None
        return name, Picture(shrunk(image), place, *([] if view is None else [view]))

    def _world_from_ego(self, time: int) -> Matrix | None:
        for world in WORLDS:
            try:
                return self._transforms.lookup(world, BASE, time)
            except TransformError:
                continue
        return None

    def _read_transforms(self) -> TransformBuffer:
        buffer = TransformBuffer(cache_ns=FOREVER)
        for topic, message in self._messages_of(lambda c: c.topic in ("/tf", "/tf_static")):
            for one in message.transforms:
                try:
                    buffer.set_message(one, static=topic == "/tf_static")
                except ValueError as error:
                    log.warning("a transform is left out: %s", error)
        return buffer

    def _read_views(self) -> dict[str, float]:
        """Vertical field of view in radians by the camera's frame, from the CameraInfo of each."""
        views: dict[str, float] = {}
        for _, info in self._messages_of(lambda c: c.msgtype == INFO):
            focal = float(info.k[4])
            if info.header.frame_id not in views and focal > 0:
                views[info.header.frame_id] = float(2 * np.arctan(info.height / (2 * focal)))
        return views

    def _messages_of(self, wanted: Any) -> Iterator[tuple[str, Any]]:
        for reader in self._readers:
            connections = [c for c in reader.connections if wanted(c)]
            if connections:
                for connection, _, data in reader.messages(connections):
                    yield connection.topic, cast(Any, reader.deserialize(data, connection.msgtype))


def _nearest(
    entries: list[tuple[int, AnyReader, Connection]], time: int
) -> tuple[int, AnyReader, Connection] | None:
    place = bisect_left(entries, time, key=lambda entry: entry[0])
    near = [
        entry for entry in entries[max(0, place - 1) : place + 1] if abs(entry[0] - time) <= IMAGE_TOLERANCE
    ]
    return min(near, key=lambda entry: abs(entry[0] - time), default=None)
