"""The files in config/ and launch/ name what there is: parameters, topics, services, presets, executables."""

from __future__ import annotations

import ast
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from gdfusion_ros.assembly.rig import find_topics, read_rig
from gdfusion_ros.ros.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parent.parent.parent
OUTPUTS = {
    "occupancy", "flow", "label_info", "vision_label_info", "points", "obstacle_points", "autoware_points",
    "occupancy_grid", "flow_markers", "latency",
}  # fmt: skip


def code(name: str) -> str:
    return (ROOT / "gdfusion_ros" / "ros" / name).read_text()


def test_node_yaml_documents_every_parameter_with_its_default():
    text = (ROOT / "config" / "node.yaml").read_text()
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert values == {entry.name: entry.default for entry in PARAMETERS}
    for entry in PARAMETERS:
        before = text[: re.search(rf"^    {entry.name}: ", text, re.M).start()].rstrip()
        comment = before.splitlines()[-1].strip()
        assert comment.startswith(f"# {entry.description}")
        assert comment.endswith("(start)") == entry.read_only


def test_every_parameter_is_described_and_used():
    used = "".join(path.read_text() for path in (ROOT / "gdfusion_ros" / "ros").glob("*.py"))
    for entry in PARAMETERS:
        assert entry.description.endswith((".", ")"))
        assert used.count(f'"{entry.name}"') >= 2, f"{entry.name} is declared, but nobody reads it"


def test_the_interfaces_page_has_every_parameter_with_its_default_and_bounds():
    text = (ROOT / "docs" / "interface.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \| .*", text[text.index("## Parameters") :], re.M))
    assert {name: yaml.safe_load(default) for name, default in rows.items()} == {
        entry.name: entry.default for entry in PARAMETERS
    }
    for entry in PARAMETERS:
        (row,) = re.findall(rf"^\| `{entry.name}` \|.*$", text, re.M)
        assert entry.description in row
        assert row.endswith("(start) |") == entry.read_only
        if entry.bounds:
            assert f"{entry.bounds[0]:g} to {entry.bounds[1]:g}." in row
        assert all(f"`{choice}`" in row for choice in entry.choices if choice)


def test_the_interfaces_page_names_every_output_service_and_reason():
    text = (ROOT / "docs" / "interface.md").read_text()
    named = set(re.findall(r"`(?:~/)?(\w+)`", text))
    assert OUTPUTS | {"reset", "save_state", "load_state"} <= named
    sources = [*(ROOT / "gdfusion_ros" / "assembly").glob("*.py"), ROOT / "gdfusion_ros" / "stream.py"]
    sources += [ROOT / "gdfusion_ros" / "ros" / name for name in ("inference.py", "state_services.py")]
    calls = r'(?:_drop_frame|drop|drop_after|clear|PlacementError|_fail|forget|reset)\([^()]*?"(\w+)"'
    reasons: set[str] = set()
    for path in sources:
        found = path.read_text()
        reasons |= set(re.findall(calls, found)) | set(re.findall(r'dropped\["(\w+)"\]', found))
        reasons |= set(re.findall(r'^        (?:if .*\n        )?    return "(\w+)"$', found, re.M))
    assert {
        "late",
        "superseded",
        "no_transform",
        "gap",
        "out_of_memory",
        "internal",
        "first_frame",
    } <= reasons
    assert reasons - {"reset", "scene_changed"} <= named, "a reason that nobody can look up"


def test_the_outputs_are_those_that_the_publishers_make():
    published = set(re.findall(r'publisher\(.*?"(\w+)"', code("publishers.py")))
    assert published == OUTPUTS


def test_the_security_policy_names_every_topic_and_service_of_the_node():
    root = ElementTree.parse(ROOT / "config" / "sros2" / "policy.xml").getroot()
    topics = {
        kind: {t.text for e in root.iter("topics") if e.get(kind) for t in e}
        for kind in ("publish", "subscribe")
    }
    rig = read_rig(find_topics("nuscenes"))
    assert {camera.image for camera in rig.cameras} | {camera.info for camera in rig.cameras} <= topics[
        "subscribe"
    ]
    assert {"/tf", "/tf_static", "/odom"} <= topics["subscribe"]
    assert {f"/gdfusion/{output}" for output in OUTPUTS} <= topics["publish"]
    services = {s.text for s in root.iter("service")}
    offered = set(re.findall(r'create_service\(Trigger, "~/(\w+)"', code("state_services.py")))
    assert offered == {"reset", "save_state", "load_state"}
    assert {f"/gdfusion/{name}" for name in offered} <= services


def test_the_views_show_topics_that_exist():
    outputs = {f"/gdfusion/{output}" for output in OUTPUTS}
    rviz = yaml.safe_load((ROOT / "config" / "occ.rviz").read_text())
    shown = {d["Topic"]["Value"] for d in rviz["Visualization Manager"]["Displays"] if "Topic" in d}
    assert {topic for topic in shown if topic.startswith("/gdfusion")} <= outputs
    foxglove = json.loads((ROOT / "config" / "foxglove" / "occupancy.json").read_text())
    assert set(foxglove["configById"]["3D!occupancy"]["topics"]) <= outputs
    panels = set(foxglove["configById"])
    assert set(re.findall(r'"([A-Za-z3]\w*!\w+)"', json.dumps(foxglove["layout"]))) == panels


def test_the_launch_file_names_arguments_executables_and_files_that_exist():
    text = (ROOT / "launch" / "occ.launch.py").read_text()
    tree = ast.parse(text)
    (arguments,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "ARGUMENTS"
    )
    defaults = {name: default for name, default, _ in ast.literal_eval(arguments)}
    assert set(defaults) == {"model", "weights", "topics", "device", "use_sim_time", "rviz", "bag"}
    declared = {entry.name: entry.default for entry in PARAMETERS}
    for name in ("model", "weights", "topics", "device"):
        assert defaults[name] == declared[name]
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert 'executable="occupancy_node"' in text
    assert "install_executable(occupancy_node" in cmake
    for file in re.findall(r'"config", "([\w.]+)"', text):
        assert (ROOT / "config" / file).is_file()


@pytest.mark.parametrize("name", ["occ.launch.py"])
def test_launch_files_are_installed(name):
    assert re.search(r"install\(DIRECTORY config launch", (ROOT / "CMakeLists.txt").read_text())
    assert (ROOT / "launch" / name).is_file()
