"""ros2 launch gdfusion_ros occ.launch.py: the occupancy node, perhaps with a bag and with RViz.

Only what is likely to differ from run to run is an argument. Everything else is a parameter of the node: put it into a
copy of config/node.yaml and give that as `config`.
"""

from __future__ import annotations

import os

from launch.actions import DeclareLaunchArgument, ExecuteProcess, RegisterEventHandler, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessIO
from launch.substitutions import (
    EnvironmentVariable,
    LaunchConfiguration,
    PathJoinSubstitution,
    PythonExpression,
)
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

ARGUMENTS = (
    ("model", "gdfusion-small", "network: a name in config/models/ or a path to a model YAML"),
    ("weights", "default", "`default` (the model's own file), a .safetensors file, or random:SEED"),
    ("topics", "nuscenes", "cameras and topics: a preset in config/topics/ or a path to a YAML like it"),
    ("device", "cpu", "where the network runs: cpu, cuda, cuda:1"),
    ("use_sim_time", "false", "take the time from /clock; always so with a bag"),
    ("rviz", "false", "show images and voxels in RViz"),
    ("bag", "", "a recording to play, with /clock, once the node is active"),
)


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare("gdfusion_ros")
    value = {name: LaunchConfiguration(name) for name, _, _ in ARGUMENTS}
    has_bag = PythonExpression(["'", value["bag"], "' != ''"])
    sim_time = PythonExpression(
        ["'", value["use_sim_time"], "'.lower() == 'true' or '", value["bag"], "' != ''"]
    )
    # Six cameras do not fit through Fast DDS' default segment. Before Kilted, Fast DDS knew only the older name.
    older = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    variable = "FASTRTPS_DEFAULT_PROFILES_FILE" if older else "FASTDDS_DEFAULT_PROFILES_FILE"
    profile = PathJoinSubstitution([share, "config", "fastdds_shm.xml"])
    node = Node(
        package="gdfusion_ros",
        executable="occupancy_node",
        name="gdfusion",
        output="screen",
        parameters=[
            LaunchConfiguration("config"),
            {
                name: ParameterValue(value[name], value_type=str)
                for name in ("model", "weights", "topics", "device")
            },
            {"use_sim_time": ParameterValue(sim_time, value_type=bool)},
        ],
    )
    play = ExecuteProcess(cmd=["ros2", "bag", "play", "--clock", "100", value["bag"]], output="screen")
    once_active = _OnceActive(play)
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, default, text in ARGUMENTS
            ),
            DeclareLaunchArgument(
                "config",
                default_value=PathJoinSubstitution([share, "config", "node.yaml"]),
                description="parameter file of the node",
            ),
            SetEnvironmentVariable(variable, EnvironmentVariable(variable, default_value=profile)),
            node,
            RegisterEventHandler(
                OnProcessIO(target_action=node, on_stdout=once_active, on_stderr=once_active),
                condition=IfCondition(has_bag),
            ),
            Node(
                package="rviz2",
                executable="rviz2",
                name="rviz2",
                arguments=["-d", PathJoinSubstitution([share, "config", "occ.rviz"])],
                parameters=[{"use_sim_time": ParameterValue(sim_time, value_type=bool)}],
                condition=IfCondition(value["rviz"]),
            ),
        ]
    )


class _OnceActive:
    """Starts an action when the node says that it is active, once: the bag's first seconds would play to nobody while
    the network is loaded. Its lifecycle events do not serve, as they may come before launch has discovered the node."""

    def __init__(self, action: ExecuteProcess) -> None:
        self._action: ExecuteProcess | None = action

    def __call__(self, event) -> ExecuteProcess | None:
        if b" active: " not in event.text:
            return None
        action, self._action = self._action, None
        return action
