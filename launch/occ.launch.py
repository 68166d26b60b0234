"""ros2 launch gdfusion_ros occ.launch.py: the occupancy node, perhaps with a bag and with RViz.

Only what is likely to differ from run to run is an argument. Everything else is a parameter of the node: put it into a
copy of config/node.yaml and give that as `config`.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, ExecuteProcess, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
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
    ("bag", "", "a recording to play, with /clock"),
)


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare("gdfusion_ros")
    value = {name: LaunchConfiguration(name) for name, _, _ in ARGUMENTS}
    has_bag = PythonExpression(["'", value["bag"], "' != ''"])
    sim_time = PythonExpression(
        ["'", value["use_sim_time"], "'.lower() == 'true' or '", value["bag"], "' != ''"]
    )
    profile = PathJoinSubstitution([share, "config", "fastdds_shm.xml"])
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
            # Six cameras do not fit through Fast DDS' default segment. Kilted reads the first, earlier ones the second.
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", profile),
            SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", profile),
            Node(
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
            ),
            ExecuteProcess(
                cmd=["ros2", "bag", "play", "--clock", "100", value["bag"]],
                condition=IfCondition(has_bag),
                output="screen",
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
