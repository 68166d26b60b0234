"""The few fields of ROS messages that the assembly reads.

Messages come from rclpy (live) or from rosbags (recorded). Both name their fields alike, and both give byte
arrays that numpy can look into without a copy, so everything here takes either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SECOND = 1_000_000_000
"""Nanoseconds."""

Message = Any
"""A message of rclpy or of rosbags: two unrelated families of classes with equal field names."""


def stamp_ns(stamp: Message) -> int:
    """A builtin_interfaces/Time in nanoseconds.

    Raises ValueError when it is negative or its nanoseconds are a second or more.
    """
    seconds, nanoseconds = int(stamp.sec), int(stamp.nanosec)
    if seconds < 0 or not 0 <= nanoseconds < SECOND:
        raise ValueError(f"stamp {seconds} s {nanoseconds} ns is not a time")
    return seconds * SECOND + nanoseconds


def payload(data: Message) -> npt.NDArray[np.uint8]:
    """The bytes of a uint8[] field as an array, without a copy where the field allows it."""
    if isinstance(data, (list, tuple)):
        return np.asarray(data, dtype=np.uint8)
    return np.frombuffer(data, dtype=np.uint8)
