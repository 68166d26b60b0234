"""The launch file describes what there is: run against stand-ins for `launch`, which has no wheel; the real one is run
before a release (CONTRIBUTING.md)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gdfusion_ros.ros.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parent.parent


class Thing:
    """Anything of launch: remembers what it was made with."""

    def __init__(self, *values: Any, **named: Any) -> None:
        self.values, self.named = values, named


NAMES = {
    "launch": ["LaunchDescription"],
    "launch.actions": [
        "DeclareLaunchArgument",
        "ExecuteProcess",
        "RegisterEventHandler",
        "SetEnvironmentVariable",
    ],
    "launch.conditions": ["IfCondition"],
    "launch.event_handlers": ["OnProcessIO"],
    "launch.substitutions": [
        "EnvironmentVariable",
        "LaunchConfiguration",
        "PathJoinSubstitution",
        "PythonExpression",
    ],
    "launch_ros": [],
    "launch_ros.actions": ["Node"],
    "launch_ros.parameter_descriptions": ["ParameterValue"],
    "launch_ros.substitutions": ["FindPackageShare"],
}


@pytest.fixture
def description(monkeypatch):
    """What the launch file gives to launch."""
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    for module, names in NAMES.items():
        made = ModuleType(module)
        for name in names:
            setattr(made, name, type(name, (Thing,), {}))
        monkeypatch.setitem(sys.modules, module, made)
    spec = importlib.util.spec_from_file_location("occ_launch", ROOT / "launch" / "occ.launch.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description().values[0]


def of(description: list[Thing], kind: str) -> list[Thing]:
    return [action for action in description if type(action).__name__ == kind]


def test_every_parameter_that_is_set_is_one_of_the_nodes(description):
    node = of(description, "Node")[0]
    assert (node.named["package"], node.named["executable"], node.named["name"]) == (
        "gdfusion_ros", "occupancy_node", "gdfusion",
    )  # fmt: skip
    _, strings, clock = node.named["parameters"]
    assert set(strings) <= {entry.name for entry in PARAMETERS}
    assert set(clock) == {"use_sim_time"}


def test_every_argument_that_is_used_is_declared(description):
    declared = {action.values[0] for action in of(description, "DeclareLaunchArgument")}
    used: set[str] = set()

    def look(thing: Any) -> None:
        if isinstance(thing, (list, tuple)):
            for part in thing:
                look(part)
        elif isinstance(thing, dict):
            look(list(thing.values()))
        elif isinstance(thing, Thing):
            if type(thing).__name__ == "LaunchConfiguration":
                used.add(thing.values[0])
            look([thing.values, thing.named])

    look(description)
    assert used == declared


def test_the_bag_starts_once_and_only_when_the_node_is_active(description):
    handler = of(description, "RegisterEventHandler")[0].values[0]
    on_output = handler.named["on_stderr"]
    assert handler.named["on_stdout"] is on_output
    assert handler.named["target_action"] is of(description, "Node")[0]
    assert (
        on_output(SimpleNamespace(text=b"[INFO] [1.5] [gdfusion]: gdfusion-small with weights w on cpu\n"))
        is None
    )
    # The words of the node itself.
    assert 'info(f"active: ' in (ROOT / "gdfusion_ros" / "ros" / "node.py").read_text()
    active = SimpleNamespace(text=b"[INFO] [1.5] [gdfusion]: active: 6 cameras, anchor CAM_FRONT\n")
    play = on_output(active)
    assert play.named["cmd"][:3] == ["ros2", "bag", "play"]
    assert on_output(active) is None


def test_a_profile_that_the_user_has_is_kept(description):
    (setting,) = of(description, "SetEnvironmentVariable")
    assert setting.values[0] == setting.values[1].values[0] == "FASTDDS_DEFAULT_PROFILES_FILE"
    assert setting.values[1].named["default_value"].values[0][1:] == ["config", "fastdds_shm.xml"]
