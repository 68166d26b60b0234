"""Look at an installation, and at a live graph, and say in plain words what is wrong.

  gdfusion doctor                        the installation
  gdfusion doctor --live                 also listen to the cameras, /tf and the node for a few seconds
  gdfusion doctor --live --topics autoware --seconds 10

Exit code 0 when nothing is an error.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdfusion_ros.cli.inputs import add_json_argument, add_rig_arguments, print_json, rig_of
from gdfusion_ros.errors import UserError

if TYPE_CHECKING:
    from gdfusion_ros.ros.listening import Finding

MARKS = {"ok": "ok  ", "warning": "WARN", "error": "FAIL"}
SHARED_MEMORY = 256 << 20
"""Bytes of /dev/shm below which six cameras' segments of 128 MB do not fit."""
NODE = "/gdfusion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--live", action="store_true", help="listen to the graph too")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to listen (%(default)s)")
    parser.add_argument(
        "--sim-time", action="store_true", help="take the time from /clock, as with a recording"
    )
    add_rig_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Look and tell; 0 when there is no error."""
    findings = list(_installation())
    if args.live and not any(one.level == "error" for one in findings):
        findings += _live(args)
    for one in findings:
        print(f"{MARKS[one.level]} {one.what:<18} {one.text}")
    errors = sum(one.level == "error" for one in findings)
    warnings = sum(one.level == "warning" for one in findings)
    print(f"{errors} errors, {warnings} warnings")
    if args.json:
        content = [{"level": one.level, "what": one.what, "text": one.text} for one in findings]
        print_json({"errors": errors, "warnings": warnings, "findings": content})
    return 1 if errors else 0


def _finding(level: Any, what: str, text: str) -> Finding:
    from gdfusion_ros.ros.listening import Finding

    return Finding(level, what, text)


def _installation() -> Iterator[Finding]:
    try:
        import rclpy  # noqa: F401

        from gdfusion_ros.msg import SemanticOccupancy  # noqa: F401
    except ImportError as error:
        # Findings live beside rclpy's subscriptions; without it there is nothing more to look at.
        raise UserError(
            f"ROS 2 or this package's messages cannot be imported ({error}): `pip install -e .` builds the messages; "
            "on a ROS installation source its setup.bash and the workspace's"
        ) from None
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _files,
        _models,
        _environment,
        _shared_memory,
    )
    for check in checks:
        yield from check()


def _python() -> Iterator[Finding]:
    good = (3, 10) <= sys.version_info[:2] <= (3, 12)
    text = f"{platform.python_version()} at {sys.executable}"
    yield _finding(
        "ok" if good else "warning", "python", text if good else f"{text}; tested are 3.10 to 3.12"
    )


def _packages() -> Iterator[Finding]:
    for name in ("torch", "numpy", "rosbags", "safetensors", "rclpy"):
        try:
            yield _finding("ok", name, version(name))
        except PackageNotFoundError:
            found = importlib.util.find_spec(name) is not None
            yield _finding(
                "ok" if found else "error", name, "installed" if found else f"missing: pip install {name}"
            )
    if importlib.util.find_spec("nuscenes") is None:
        yield _finding("warning", "nuscenes-devkit", "missing: only `gdfusion nuscenes-to-bag` needs it")


def _files() -> Iterator[Finding]:
    from gdfusion_ros.share import share_dir

    try:
        folder = share_dir()
    except FileNotFoundError as error:
        yield _finding("error", "files", str(error))
        return
    names = ("config/fastdds_shm.xml", "config/node.yaml", "launch/occ.launch.py")
    missing = [name for name in names if not (folder / name).is_file()]
    text = f"{folder} lacks {', '.join(missing)}: install again" if missing else str(folder)
    yield _finding("error" if missing else "ok", "files", text)


def _models() -> Iterator[Finding]:
    from gdfusion_ros.model.config import load_config
    from gdfusion_ros.model.weights import default_file
    from gdfusion_ros.share import share_dir

    ready, bare = [], []
    for file in sorted((share_dir() / "config" / "models").glob("*.yaml")):
        try:
            default_file(load_config(file))
            ready.append(file.stem)
        except UserError:
            bare.append(file.stem)
    text = f"weights of {', '.join(ready)} are here" if ready else "no weights are here"
    if bare:
        text += f"; {len(bare)} models have none: `gdfusion weights fetch NAME`, a file, or random:0"
    yield _finding("ok" if ready else "warning", "models", text)


def _environment() -> Iterator[Finding]:
    profile = os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE") or os.environ.get(
        "FASTRTPS_DEFAULT_PROFILES_FILE"
    )
    middleware = os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    if "fastrtps" not in middleware:
        yield _finding("ok", "middleware", f"{middleware}; config/fastdds_shm.xml is for Fast DDS only")
    elif profile is None:
        yield _finding(
            "warning",
            "middleware",
            "Fast DDS without a profile loses a third of six cameras' images: export "
            "FASTDDS_DEFAULT_PROFILES_FILE=.../config/fastdds_shm.xml for whoever publishes them (the launch file, "
            "`gdfusion replay` and `gdfusion demo` do)",
        )
    elif not Path(profile).is_file():
        yield _finding("error", "middleware", f"the Fast DDS profile {profile} does not exist")
    else:
        yield _finding("ok", "middleware", f"Fast DDS with {profile}")
    domain, reach = (
        os.environ.get("ROS_DOMAIN_ID", "0"),
        os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET"),
    )
    if not domain.isdigit() or int(domain) > 101:
        yield _finding("error", "domain", f"ROS_DOMAIN_ID is {domain!r}: use 0 to 101")
    else:
        yield _finding("ok", "domain", f"{domain}, discovery {reach}; all processes need the same")


def _shared_memory() -> Iterator[Finding]:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        yield _finding("warning", "shared memory", "there is no /dev/shm: large images go over UDP")
        return
    text = f"/dev/shm has {free >> 20} MB free"
    if free < SHARED_MEMORY:
        yield _finding("warning", "shared memory", f"{text}; start the container with --shm-size=1g")
    else:
        yield _finding("ok", "shared memory", text)


def _live(args: argparse.Namespace) -> list[Finding]:
    from gdfusion_ros.ros.environment import use_shared_memory

    use_shared_memory()
    import rclpy
    from rclpy.parameter import Parameter

    from gdfusion_ros.ros.listening import Listener

    rig, _ = rig_of(args)
    rclpy.init(args=[])
    node = rclpy.create_node(
        "gdfusion_doctor", parameter_overrides=[Parameter("use_sim_time", value=bool(args.sim_time))]
    )
    try:
        return [*Listener(node, rig).listen(args.seconds), *_node(node)]
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _node(node: Any) -> Iterator[Finding]:
    """Whether the occupancy node is there, and what state it is in."""
    import rclpy
    from lifecycle_msgs.srv import GetState

    names = {f"{space.rstrip('/')}/{name}" for name, space in node.get_node_names_and_namespaces()}
    if NODE not in names:
        yield _finding("warning", "node", f"{NODE} is not running")
        return
    client = node.create_client(GetState, f"{NODE}/get_state")
    if not client.wait_for_service(timeout_sec=2.0):
        yield _finding("warning", "node", f"{NODE} does not answer: it is loading its network, or hangs")
        return
    answer = client.call_async(GetState.Request())
    rclpy.spin_until_future_complete(node, answer, timeout_sec=5.0)
    state = answer.result().current_state.label if answer.done() and answer.result() else "silent"
    if state == "active":
        yield _finding("ok", "node", f"{NODE} is active")
    else:
        hint = "its log says what it could not load" if state == "unconfigured" else "activate it"
        yield _finding("error", "node", f"{NODE} is {state}: {hint}")
    yield from _clock(node)
    for subscriber in node.get_subscriptions_info_by_topic(f"{NODE}/occupancy"):
        yield _finding("ok", "subscriber", f"{subscriber.node_name} listens to {NODE}/occupancy")


def _clock(node: Any) -> Iterator[Finding]:
    """Whether the occupancy node takes its time from where the graph's time comes from."""
    import rclpy
    from rcl_interfaces.srv import GetParameters

    client = node.create_client(GetParameters, f"{NODE}/get_parameters")
    if not client.wait_for_service(timeout_sec=2.0):
        return
    answer = client.call_async(GetParameters.Request(names=["use_sim_time"]))
    rclpy.spin_until_future_complete(node, answer, timeout_sec=5.0)
    if not answer.done() or not answer.result().values:
        return
    simulated, published = answer.result().values[0].bool_value, bool(node.count_publishers("/clock"))
    if simulated and not published:
        yield _finding("error", "clock", f"{NODE} has use_sim_time, but nobody publishes /clock")
    elif published and not simulated:
        hint = "start it with use_sim_time when a recording plays"
        yield _finding("warning", "clock", f"/clock is published, but {NODE} does not use it: {hint}")
    else:
        yield _finding("ok", "clock", "from /clock" if simulated else "the system's")
