"""DDS settings that have to be in the environment before rclpy starts."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib.metadata import version

from gdfusion_ros.share import share_dir


def use_shared_memory(environment: MutableMapping[str, str] | None = None) -> None:
    """Point Fast DDS to config/fastdds_shm.xml, unless the user has a profile of their own.

    With Fast DDS' defaults a third of six cameras' images gets lost; the large segment belongs to the writer.
    """
    environment = os.environ if environment is None else environment
    profile = str(share_dir() / "config" / "fastdds_shm.xml")
    # Fast DDS 3 (Kilted, rclpy 9) warns of the old name, which is the only one that Jazzy and Humble know.
    old = int(version("rclpy").split(".")[0]) < 8
    environment.setdefault(
        "FASTRTPS_DEFAULT_PROFILES_FILE" if old else "FASTDDS_DEFAULT_PROFILES_FILE", profile
    )


def stay_on_this_machine(environment: MutableMapping[str, str] | None = None) -> None:
    """Let no discovery leave the machine."""
    environment = os.environ if environment is None else environment
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    environment["ROS_LOCALHOST_ONLY"] = "1"  # Humble knows only this one
