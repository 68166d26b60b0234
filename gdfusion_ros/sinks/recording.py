"""A rosbag2 recording that `ros2 bag play`, RViz and Foxglove understand: types, QoS and metadata written with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from gdfusion_ros.errors import UserError
from gdfusion_ros.share import share_dir

Storage = Literal["mcap", "sqlite3"]

_FOREVER = QosTime(9223372036, 854775807)
# Version 8 of the metadata is what Humble, Iron, Jazzy and Kilted all read; 9 is too new for Humble.
_METADATA_VERSION: Literal[8] = 8


def qos(depth: int = 10, latched: bool = False, best_effort: bool = False) -> Qos:
    """A QoS profile for a recorded topic."""
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        QosReliability.BEST_EFFORT if best_effort else QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )


LATCHED = frozenset({"/tf_static", "/robot_description"})
"""Topics that are latched whoever publishes them."""


@cache
def message_types() -> Typestore:
    """ROS 2's message types and this package's own."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for file in sorted((share_dir() / "msg").glob("*.msg")):
        # A field may be called `labels`, and the reader of definitions wants comments without stray colons.
        text = re.sub(r"#.*", "", file.read_text())
        store.register(get_types_from_msg(text, f"gdfusion_ros/msg/{file.stem}"))
    return store


class Recording:
    """A recording being written. Use it in a `with`; an exception inside leaves an unfinished one behind."""

    def __init__(self, path: str | Path, storage: Storage = "mcap") -> None:
        """``path`` is a folder that does not exist yet; UserError when it does."""
        self.path = Path(path)
        if self.path.exists():
            raise UserError(f"{self.path} exists already: choose another name or remove it")
        plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
        self._writer = Writer(self.path, version=_METADATA_VERSION, storage_plugin=plugin)
        self._connections: dict[str, Connection] = {}
        self._store = message_types()

    def __enter__(self) -> Recording:
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, value, trace)

    def note(self, values: Mapping[str, str]) -> None:
        """Write these into the metadata's custom data, as a scene's token."""
        for key, value in values.items():
            self._writer.set_custom_data(key, value)

    def write(self, topic: str, kind: str, message: Any, stamp_ns: int) -> None:
        """Write a message of `message_types`, such as ``kind`` "sensor_msgs/msg/CameraInfo", at a time."""
        self.write_cdr(topic, kind, self._store.serialize_cdr(message, kind), stamp_ns)

    def write_cdr(self, topic: str, kind: str, data: bytes | memoryview, stamp_ns: int) -> None:
        """Write a message that is serialised already."""
        connection = self._connections.get(topic)
        if connection is None:
            profile = qos(latched=topic in LATCHED or topic.endswith("/label_info"), depth=10)
            connection = self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store, offered_qos_profiles=[profile]
            )
        self._writer.write(connection, stamp_ns, data)
