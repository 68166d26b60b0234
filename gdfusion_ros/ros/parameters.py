"""The node's parameters: one table that declares, documents and checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from gdfusion_ros.assembly.assembler import AssemblySettings
from gdfusion_ros.stream import SequenceRules

Value = bool | int | float | str


@dataclass(frozen=True)
class Entry:
    """One parameter."""

    name: str
    default: Value
    description: str
    choices: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    read_only: bool = False


def _fixed(
    name: str, default: Value, description: str, choices: tuple[str, ...] = (), bounds: Any = None
) -> Entry:
    return Entry(name, default, description, choices, bounds, read_only=True)


PARAMETERS: tuple[Entry, ...] = (
    # What runs.
    _fixed("model", "gdfusion-small", "Network: a name in config/models/ or a path to a model YAML."),
    _fixed(
        "weights",
        "default",
        "Weights: `default` (the model's own file), a .safetensors file, or `random:SEED`.",
    ),
    _fixed("device", "cpu", "Where the network runs: `cpu`, `cuda`, `cuda:1`, ..."),
    _fixed("threads", 0, "Threads of the network on the CPU; 0 leaves it to torch.", bounds=(0, 256)),
    _fixed("autostart", True, "Configure and activate at start. Off: a lifecycle manager does it."),
    # Where the input comes from.
    _fixed(
        "topics",
        "nuscenes",
        "Cameras and topics: a preset in config/topics/ or a path to a YAML file like it.",
    ),
    _fixed("calibration", "", "YAML with intrinsics and extrinsics, for cameras without CameraInfo or TF."),
    _fixed(
        "transport",
        "",
        "CompressedImage or Image; empty: as the topics file says.",
        ("", "compressed", "raw"),
    ),
    _fixed("base_frame", "", "The ego frame; empty: as the topics file says (base_link)."),
    _fixed(
        "fixed_frame",
        "",
        "The frame that ego motion is measured in, odom or map; empty: as the topics file says.",
    ),
    _fixed(
        "motion",
        "",
        "Ego motion from `tf` or `odometry`; empty: as the topics file says.",
        ("", "tf", "odometry"),
    ),
    _fixed("odometry_topic", "", "nav_msgs/Odometry for motion: odometry; empty: as the topics file says."),
    _fixed(
        "lidar_frame",
        "",
        "Frame of the LiDAR, for networks whose grid lies in it; empty: as the topics file says.",
    ),
    _fixed("image_reliability", "best_effort", "QoS of images and CameraInfo.", ("best_effort", "reliable")),
    _fixed("image_depth", 5, "Images a camera's subscription holds.", bounds=(1, 100)),
    # When a frame is made.
    Entry(
        "sync_tolerance", 0.15, "Seconds an image may be away from the anchor camera's.", bounds=(0.0, 1.0)
    ),
    Entry(
        "inference_period",
        0.5,
        "Seconds between frames. The published weights were trained on 2 Hz; 0 takes every anchor image.",
        bounds=(0.0, 10.0),
    ),
    Entry(
        "missing_camera",
        "skip",
        "A camera gave no image: `skip` the frame, or put a `blank` one.",
        ("skip", "blank"),
    ),
    Entry(
        "image_timeout",
        0.25,
        "Seconds other cameras' images may come after the anchor's.",
        bounds=(0.0, 10.0),
    ),
    Entry("tf_timeout", 0.5, "Seconds a frame waits for transforms and CameraInfo.", bounds=(0.0, 10.0)),
    # When history starts anew.
    Entry("max_gap", 1.5, "Seconds between frames after which a new sequence starts.", bounds=(0.0, 60.0)),
    Entry(
        "max_speed",
        70.0,
        "Metres per second; a pose that moves faster starts a new sequence.",
        bounds=(0.0, 1e4),
    ),
    # What goes out.
    Entry("confidence", True, "Publish the probability of each voxel's label."),
    Entry("encoding", "raw", "How labels and confidence are packed.", ("raw", "zlib")),
    Entry(
        "flow_cells",
        "occupied",
        "Voxels that ~/flow covers.",
        ("all", "occupied", "movable"),
    ),
    Entry("obstacle_min_height", 0.0, "Metres: lower end of the band of obstacles.", bounds=(-10.0, 50.0)),
    Entry("obstacle_max_height", 2.5, "Metres: upper end of the band of obstacles.", bounds=(-10.0, 50.0)),
    # When to complain.
    Entry(
        "slow_frame",
        2.0,
        "Seconds from image to grid beyond which a frame is slow: a warning.",
        bounds=(0.0, 600.0),
    ),
    Entry("slow_frames_error", 5, "Slow frames in a row that are an error.", bounds=(1, 1000)),
    Entry("missing_frames_error", 5, "Frames in a row without a camera that are an error.", bounds=(1, 1000)),
    # Keeping the state.
    _fixed("state_file", "", "Where ~/save_state and ~/load_state keep the temporal state."),
    _fixed("save_state_on_exit", False, "Write the state file when the node is stopped."),
    _fixed("load_state_on_start", False, "Read the state file when the node is activated, if it is there."),
)


@dataclass(frozen=True)
class Settings:
    """The parameters' values, checked."""

    values: dict[str, Value]

    def text(self, name: str) -> str:
        """A string parameter."""
        return cast(str, self.values[name])

    def number(self, name: str) -> float:
        """A numeric parameter."""
        return float(self.values[name])

    def flag(self, name: str) -> bool:
        """A boolean parameter."""
        return bool(self.values[name])

    @property
    def obstacle_band(self) -> tuple[float, float]:
        """Heights of what stands in the way, in metres."""
        return self.number("obstacle_min_height"), self.number("obstacle_max_height")

    @property
    def assembly(self) -> AssemblySettings:
        """How frames are made."""
        return AssemblySettings(
            sync_tolerance=self.number("sync_tolerance"),
            inference_period=self.number("inference_period"),
            missing_camera=cast(Literal["skip", "blank"], self.text("missing_camera")),
            image_timeout=self.number("image_timeout"),
            tf_timeout=self.number("tf_timeout"),
        )

    @property
    def rules(self) -> SequenceRules:
        """When history starts anew. A blank image is the network's business, so only skipping restarts."""
        return SequenceRules(
            max_gap=self.number("max_gap"),
            max_speed=self.number("max_speed"),
            restart_after_missing=self.text("missing_camera") == "skip",
        )


def declare(node: Node) -> Settings:
    """Declare every parameter on a node and read its value.

    Raises ValueError, or rclpy's InvalidParameterValueException, when a value from the command line or a file is
    out of bounds or contradicts another one.
    """
    values: dict[str, Value] = {}
    for entry in PARAMETERS:
        declared = node.declare_parameter(entry.name, entry.default, _descriptor(entry)).value
        problem = _problem(entry, declared)
        if problem:
            raise ValueError(problem)
        values[entry.name] = declared
    contradiction = _contradiction(values)
    if contradiction:
        raise ValueError(contradiction)
    return Settings(values)


def changed(settings: Settings, parameters: Sequence[Parameter]) -> tuple[Settings, SetParametersResult]:
    """The settings after a change at run time, and the answer to whoever asked. Refused as a whole or done as
    a whole."""
    known = {entry.name: entry for entry in PARAMETERS}
    values = dict(settings.values)
    for parameter in parameters:
        entry = known.get(parameter.name)
        if entry is None:  # use_sim_time, QoS overrides
            continue
        if entry.read_only:
            reason = f"{entry.name} can only be set at start: stop the node and start it with the new value"
            return settings, SetParametersResult(successful=False, reason=reason)
        problem = _problem(entry, parameter.value)
        if problem:
            return settings, SetParametersResult(successful=False, reason=problem)
        values[entry.name] = parameter.value
    contradiction = _contradiction(values)
    if contradiction:
        return settings, SetParametersResult(successful=False, reason=contradiction)
    return Settings(values), SetParametersResult(successful=True)


def _problem(entry: Entry, value: object) -> str | None:
    """What is wrong with a value, in words. Numbers' bounds are checked by rclpy as well, but not with names."""
    if entry.choices and value not in entry.choices:
        choices = ", ".join(repr(choice) for choice in entry.choices)
        return f"{entry.name} is {value!r}, but must be one of {choices}"
    if entry.bounds and isinstance(value, (int, float)):
        low, high = entry.bounds
        if not low <= value <= high:
            return f"{entry.name} is {value}, but must be between {low:g} and {high:g}"
    return None


def _contradiction(values: dict[str, Value]) -> str | None:
    """What two values say against each other."""
    low, high = values["obstacle_min_height"], values["obstacle_max_height"]
    if float(low) >= float(high):
        return f"obstacle_min_height is {low}, but must be less than obstacle_max_height, {high}"
    for name in ("save_state_on_exit", "load_state_on_start"):
        if values[name] and not values["state_file"]:
            return f"{name} needs a file: set state_file"
    return None


def _descriptor(entry: Entry) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=entry.description, read_only=entry.read_only)
    if entry.choices:
        descriptor.additional_constraints = "One of: " + ", ".join(choice or "''" for choice in entry.choices)
    if entry.bounds and isinstance(entry.default, float):
        low, high = entry.bounds
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    elif entry.bounds:
        low, high = entry.bounds
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor
