"""What the package promises about itself: arrows between rooms, safe loading, messages, names that agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MESSAGES = {
    "SemanticOccupancy": (
        *("header", "origin", "cell_size", "size_x", "size_y", "size_z", "encoding", "labels", "confidence"),
        *("free_label", "label_set", "label_set_version", "model_id", "sequence", "history_frames"),
        *("cameras", "cameras_used"),
    ),
    "VoxelFlow": (
        *("header", "origin", "cell_size", "size_x", "size_y", "size_z", "kind", "cells", "dense", "indices"),
        *("vx", "vy", "vz", "model_id"),
    ),
    "LabelInfo": ("header", "label_set", "version", "free_label", "unknown_label", "labels"),
    "Label": ("id", "name", "color", "movable", "ground"),
}


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def tracked_files(root: Path) -> list[Path]:
    listing = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [root / name for name in listing.stdout.split("\0") if name and (root / name).is_file()]


def test_the_arrows_between_the_rooms_hold(root):
    lint = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=root, capture_output=True, text=True
    )
    assert lint.returncode == 0, lint.stdout


def test_importing_the_package_needs_neither_ros_nor_torch_nor_the_nuscenes_devkit():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('rclpy', 'torch', 'nuscenes')));"
        "import gdfusion_ros, gdfusion_ros.stream, gdfusion_ros.share, gdfusion_ros.cli.main;"
        "gdfusion_ros.CameraFrame; gdfusion_ros.Occupancy; gdfusion_ros.OccupancyStream; gdfusion_ros.VoxelGrid"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_nothing_loads_pickles_or_evaluates_text(root):
    python = [*(root / "gdfusion_ros").rglob("*.py"), *(root / "launch").rglob("*.py")]
    found = [
        f"{path.relative_to(root)}:{line}: {what}"
        for path in python
        if "msg" not in path.relative_to(root).parts
        for line, what in unsafe_code(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import load",
        "eval('1')",
        "exec('x = 1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
    ],
)
def test_unsafe_code_would_be_found(code):
    assert list(unsafe_code(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "from pickle import UnpicklingError",
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "yaml.safe_load(text)",
    ],
)
def test_safe_code_is_let_through(code):
    assert not list(unsafe_code(ast.parse(code)))


UNSAFE_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")


def unsafe_code(tree: ast.AST):
    """(line, what) of every import or call that can run code hidden in data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in UNSAFE_MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            # The error's name alone is needed to say what a refused checkpoint was.
            if (node.module or "").split(".")[0] in UNSAFE_MODULES and names != {"UnpicklingError"}:
                yield node.lineno, f"from {node.module} import {', '.join(sorted(names))}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (
                called in ("eval", "exec", "__import__")
                or (called == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle", "False") != "False"
                or called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load")
            ):
                yield node.lineno, called


def test_no_tracked_file_names_a_place_on_somebodys_machine(tracked_files, root):
    places = re.compile(
        "|".join(re.escape(f"/{name}/") for name in ("work", "root", "home", "Users")) + r"|/opt/(?!ros)"
    )
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()[:100]}"
        for path in tracked_files
        if path != Path(__file__) and is_text(path)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if places.search(line)
    ]
    assert not found, "\n".join(found)


def is_text(path: Path) -> bool:
    return b"\0" not in path.read_bytes()[:4096]


def test_generated_files_are_not_tracked(tracked_files, root):
    generated = [
        path
        for path in tracked_files
        if path.suffix == ".so" or path.is_relative_to(root / "gdfusion_ros/msg")
    ]
    assert not generated


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_has_its_documented_fields(message, root):
    lines = (root / "msg" / f"{message}.msg").read_text().splitlines()
    fields = []
    for previous, line in zip(["", *lines], lines, strict=False):
        declaration = re.match(r"^[\w/]+(?:\[\])? (\w+)$", line.split("#")[0].strip())
        if declaration:
            name = declaration[1]
            fields.append(name)
            # size_x documents size_y and size_z, and so on: a comment above, or a field of the same group.
            assert previous.startswith("#") or re.match(r"^[\w/]+(?:\[\])? \w+$", previous), (
                f"{name} has no comment"
            )
    assert tuple(fields) == MESSAGES[message]


@pytest.mark.parametrize("message", MESSAGES)
def test_the_built_messages_have_the_same_fields(message):
    from gdfusion_ros import msg as messages

    assert tuple(getattr(messages, message).get_fields_and_field_types()) == MESSAGES[message]


def test_the_index_formula_of_the_message_is_that_of_its_worked_example(root):
    text = (root / "msg/SemanticOccupancy.msg").read_text()
    assert "labels[x + size_x * (y + size_y * z)]" in text
    x, y, z = (int((value - low) / 0.4) for value, low in ((10.1, -40), (-3.0, -40), (0.5, -1)))
    assert f"labels[{x} + 200 * ({y} + 200 * {z})] = labels[{x + 200 * (y + 200 * z)}]" in text


def test_tf_messages_have_the_type_hash_of_the_original():
    import tf2_msgs.msg  # noqa: F401
    from rosbags.typesys import Stores, get_typestore

    share = Path(sys.prefix) / "share/tf2_msgs/msg/TFMessage.json"
    if not share.is_file():
        pytest.skip("tf2_msgs is that of a ROS installation")
    expected = get_typestore(Stores.ROS2_JAZZY).hash_rihs01("tf2_msgs/msg/TFMessage")
    assert expected in share.read_text()


def test_version_and_name_are_the_same_everywhere(root, project):
    package_xml = (root / "package.xml").read_text()
    assert f"<version>{project['project']['version']}</version>" in package_xml
    assert f"<name>{project['project']['name']}</name>" in package_xml
    assert f"project({project['project']['name']})" in (root / "CMakeLists.txt").read_text()
    assert project["project"]["version"] in (root / "CHANGELOG.md").read_text()


def test_cmake_builds_every_message_and_asks_only_for_declared_packages(root):
    cmake = (root / "CMakeLists.txt").read_text()
    assert sorted(re.findall(r"^\s+(msg/\w+\.msg)$", cmake, re.M)) == sorted(
        f"msg/{name}.msg" for name in MESSAGES
    )
    assert sorted(path.stem for path in (root / "msg").glob("*.msg")) == sorted(MESSAGES)
    package_xml = (root / "package.xml").read_text()
    for package in re.findall(r"find_package\((\w+)", cmake):
        assert re.search(rf"<\w*depend>{package}</\w*depend>", package_xml), (
            f"package.xml leaves out {package}"
        )


def test_executables_console_scripts_and_launch_files_name_things_that_exist(root, project):
    cmake = (root / "CMakeLists.txt").read_text()
    executables = dict(re.findall(r"^install_executable\((\w+) ([\w.]+)\)", cmake, re.M))
    assert set(executables) == {"occupancy_node", "gdfusion"}
    modules = [
        *executables.values(),
        *(target.split(":")[0] for target in project["project"]["scripts"].values()),
    ]
    for module in modules:
        assert has_main(root / (module.replace(".", "/") + ".py")), f"{module} has no main()"
    launch_files = list((root / "launch").glob("*.launch.py"))
    assert launch_files
    for path in launch_files:
        text = path.read_text()
        for package in re.findall(r"\bpackage=[\"']([\w-]+)[\"']", text):
            assert package in ("gdfusion_ros", "rviz2"), f"{path.name}: package {package}"
        own_nodes = re.findall(r"package=[\"']gdfusion_ros[\"'],\s*executable=[\"'](\w+)[\"']", text)
        assert set(own_nodes) <= set(executables), f"{path.name}: {own_nodes}"
        for name in re.findall(r"[\"']([\w.]+\.(?:yaml|xml|rviz))[\"']", text):
            assert list((root / "config").rglob(name)), f"{path.name}: there is no config/.../{name}"


def has_main(path: Path) -> bool:
    return any(
        isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text()).body
    )


def test_every_command_has_its_module():
    from gdfusion_ros.cli.main import COMMANDS

    missing = [name for name in COMMANDS if find_spec(f"gdfusion_ros.cli.{name.replace('-', '_')}") is None]
    assert not missing


def test_the_two_lists_of_build_requirements_agree(project):
    assert project["build-system"]["requires"] == project["dependency-groups"]["build"]


def test_every_requirement_is_pinned(root, project):
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (root / "constraints.txt").read_text(), re.M))
    requirements = [
        *project["project"]["dependencies"],
        *(name for extra in project["project"]["optional-dependencies"].values() for name in extra),
        *(name for group in project["dependency-groups"].values() for name in group),
    ]
    names = {
        re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower() for requirement in requirements
    }
    assert not names - pinned
