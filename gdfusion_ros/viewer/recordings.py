"""Shots out of recordings: what the node (or `gdfusion run`) gave, beside the images that went in. Needs no ROS."""

from __future__ import annotations

import logging
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

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
from gdfusion_ros.viewer.shot import Picture, Shot, make_shot, shrunk, with_latency

log = logging.getLogger(__name__)

OCCUPANCY, FLOW = "gdfusion_ros/msg/SemanticOccupancy", "gdfusion_ros/msg/VoxelFlow"
IMAGES = {"sensor_msgs/msg/CompressedImage": decode_compressed, "sensor_msgs/msg/Image": decode_raw}
INFO, LATENCY = "sensor_msgs/msg/CameraInfo", "diagnostic_msgs/msg/DiagnosticArray"
IMAGE_TOLERANCE = int(0.15 * SECOND)
WORLDS = ("odom", "map")
FOREVER = 1 << 62


class Entry(NamedTuple):
    """Where a message with a header lies."""

    stamp: int
    """Its header's, in nanoseconds. It says what belongs together: a grid is recorded long after its images."""
    time: int
    """When it was recorded."""
    reader: AnyReader
    connection: Connection


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
        self._grids = self._index(lambda c: c.msgtype == OCCUPANCY)
        if not self._grids:
            self.close()
            names = ", ".join(str(path) for path in paths)
            raise UserError(
                f"{names}: no {OCCUPANCY} in it; record the node's output, or make one with `gdfusion run`"
            )
        self._flows = {entry.stamp: entry for entry in self._index(lambda c: c.msgtype == FLOW)}
        latencies = self._index(lambda c: c.msgtype == LATENCY and c.topic.endswith("/latency"))
        self._latencies = {entry.stamp: entry for entry in latencies}
        self._images: dict[str, list[Entry]] = {}
        for entry in self._index(lambda c: c.msgtype in IMAGES):
            self._images.setdefault(entry.connection.topic, []).append(entry)
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

    def _index(self, wanted: Callable[[Connection], bool]) -> list[Entry]:
        """Every message on the wanted connections, in the order of their stamps."""
        found = []
        for reader in self._readers:
            connections = [c for c in reader.connections if wanted(c)]
            if connections:
                for connection, time, data in reader.messages(connections):
                    stamp = _stamp(data)
                    if stamp is None:
                        log.warning("a message on %s is cut short and left out", connection.topic)
                    else:
                        found.append(Entry(stamp, time, reader, connection))
        return sorted(found, key=lambda entry: entry.stamp)

    def _message(self, entry: Entry) -> Any:
        near = entry.reader.messages([entry.connection], start=entry.time, stop=entry.time + 1)
        data = next(data for _, _, data in near if _stamp(data) == entry.stamp)
        kind = entry.connection.msgtype
        if kind.startswith("gdfusion_ros/"):
            return self._types.deserialize_cdr(data, kind)
        return entry.reader.deserialize(data, kind)

    def _read(self, index: int) -> Shot:
        entry = self._grids[index]
        flow = self._flows.get(entry.stamp)
        try:
            grid = self._message(entry)
            base = str(grid.header.frame_id)
            occupancy = occupancy_of(
                grid, self._world_from(base, entry.stamp), None if flow is None else self._message(flow)
            )
        except ValueError as error:
            raise UserError(f"grid {index} of the recording is broken: {error}") from None
        shot = make_shot(occupancy)
        latency = self._latencies.get(entry.stamp)
        if latency is not None:
            shot = with_latency(shot, self._message(latency))
        pictures = {}
        for topic, entries in self._images.items():
            nearest = _nearest(entries, entry.stamp)
            if nearest is not None:
                name, picture = self._picture(topic, nearest, base)
                if picture is not None:
                    pictures[name] = picture
        return shot.with_pictures(pictures)

    def _picture(self, topic: str, entry: Entry, base: str) -> tuple[str, Picture | None]:
        message = self._message(entry)
        name = topic.strip("/").split("/")[0]
        try:
            image = IMAGES[entry.connection.msgtype](message)
        except ImageError as error:
            log.warning("%s at %d ns cannot be shown: %s", topic, entry.stamp, error)
            return name, None
        frame = message.header.frame_id
        view = self._views.get(frame)
        try:
            place = self._transforms.lookup(base, frame, entry.stamp)
        except TransformError:
            place = None
        return name, Picture(shrunk(image), place, *([] if view is None else [view]))

    def _world_from(self, base: str, stamp: int) -> Matrix | None:
        for world in WORLDS:
            try:
                return self._transforms.lookup(world, base, stamp)
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


def _stamp(data: bytes | memoryview) -> int | None:
    """The stamp of a serialised message that begins with a header, in nanoseconds; None when it is too short for one.

    Four bytes stand before it: the encapsulation in ROS 2, a counter in ROS 1.
    """
    if len(data) < 12:
        return None
    seconds, nanoseconds = struct.unpack_from("<iI", data, 4)
    return int(seconds * SECOND + nanoseconds)


def _nearest(entries: list[Entry], stamp: int) -> Entry | None:
    place = bisect_left(entries, stamp, key=lambda entry: entry.stamp)
    near = [
        entry
        for entry in entries[max(0, place - 1) : place + 1]
        if abs(entry.stamp - stamp) <= IMAGE_TOLERANCE
    ]
    return min(near, key=lambda entry: abs(entry.stamp - stamp), default=None)
