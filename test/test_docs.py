"""What the documentation says to type is typed, on small stand-ins for what users have; its links are there.

`gdfusion` commands run in this process with a tiny network in place of the named one, on recordings and data sets of
two frames. What cannot run here is checked as far as it goes, and `UNTYPED` says why it is not typed.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from documents import PAGES, ROOT, Block, Place, blocks, build, command_lines, parsed

from gdfusion_ros.cli.main import COMMANDS

MODELS = sorted(path.stem for path in (ROOT / "config" / "models").glob("*.yaml"))

UNTYPED = {
    "cd": "a folder of the reader's",
    "git": "needs the network",
    "pip": "needs the network",
    "sudo": "changes the machine",
    "apt-get": "changes the machine",
    "apt": "changes the machine",
    "docker": "there is none in a test",
    ".": "changes the shell only",
    "source": "changes the shell only",
    "rosdep": "needs a ROS installation",
    "colcon": "needs a ROS installation; test_packaging.py compares what it would build with what pip builds",
    "rviz2": "needs a ROS installation",
    "rosbags-convert": "rosbags' own",
    "export": "changes the shell only",
    "sbatch": "needs a SLURM cluster",
    "ray": "starts a cluster that outlives the test",
    "srun": "needs a SLURM cluster",
}
"""Programs that are not run, and why."""
PARSED_ONLY = {
    "demo": "test/cli/test_demo_command.py runs it",
    "train": "takes hours; test/training runs the training for some steps",
    "bench": "measures the machine for longer than a test may take; test/cli/test_bench.py runs it",
    "parity": "takes stored reference numbers; test/cli/test_parity.py runs it",
}
"""`gdfusion` commands whose arguments are checked and no more, and what else runs them."""
COMMAND_LINES = [(page, words) for page in PAGES for words in command_lines(page)]
GDFUSION = [(page, words[1:]) for page, words in COMMAND_LINES if words[0] == "gdfusion"]
OTHERS = [(page, words) for page, words in COMMAND_LINES if words[0] != "gdfusion"]
EXCERPTS = [block for page in PAGES for block in blocks(page) if block.language in ("python", "yaml", "json")]


def name_of(value: object) -> str:
    if isinstance(value, Block):
        return f"{value.page}:{value.line}"
    return shlex.join(value)[:80] if isinstance(value, list) else str(value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    pytest.importorskip("nuscenes")
    return build(tmp_path_factory.mktemp("place"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to type in, and the signal handlers of before when it is left."""
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.ros
@pytest.mark.usefixtures("here", "ros_domain")
@pytest.mark.parametrize(("page", "words"), GDFUSION, ids=name_of)
def test_a_gdfusion_command_of_the_documentation_works(
    page: str, words: list[str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *arguments = words
    assert command in COMMANDS
    try:
        args, parser = parsed(command, arguments)
    except SystemExit:
        pytest.fail(f"{page}: gdfusion {shlex.join(words)}")
    if command == "weights":
        made_cheap = weights_command(args)
    elif command in PARSED_ONLY:
        return
    else:
        made_cheap = STAND_INS[command](args, place, monkeypatch)
    if made_cheap:
        del parser
        assert import_module(f"gdfusion_ros.cli.{command.replace('-', '_')}").run(args) == 0


# Each gives the arguments stand-ins, and says whether the command can run then.


def weights_command(args: argparse.Namespace) -> bool:
    """Fetching needs the network, converting and joining a checkpoint: test/cli/test_weights.py has made-up ones."""
    if args.action == "info" and args.what not in MODELS:
        args.what = str(ROOT / "weights" / "gdfusion-small.safetensors")
    return args.action in ("info", "keys")


def with_tiny_network(args: argparse.Namespace, place: Place, label_set: str = "occ3d") -> None:
    assert args.model in MODELS or Path(args.model).suffix == ".yaml", args.model
    args.model, args.weights = place.model(label_set), "random:0"


def run_command(args: argparse.Namespace, place: Place, _: pytest.MonkeyPatch) -> bool:
    with_tiny_network(args, place)
    if args.calibration is not None:
        args.calibration = None  # the recording has CameraInfo, and the topics of nuScenes
    args.topics = "nuscenes"
    args.sources = [stand_in(name, place.recording) for name in args.sources]
    args.frames = min(args.frames or 2, 2)
    # A cluster takes long to start: test/cli/test_batch.py runs one.
    args.ray = args.workers = None
    return True


def view_command(args: argparse.Namespace, place: Place, monkeypatch: pytest.MonkeyPatch) -> bool:
    from gdfusion_ros.cli import view

    monkeypatch.setattr(view, "_until_interrupted", lambda page: None)
    if args.png is None and args.html is None and args.rerun is None:
        pytest.importorskip("viser")
        args.port = 0
    if args.rerun is not None:
        pytest.importorskip("rerun")
    with_tiny_network(args, place)
    args.recordings = [place.output, place.recording][: len(args.recordings)]
    if args.source is not None:
        args.source = stand_in(args.source, place.recording)
    args.frames = 2
    return True


def evaluate_command(args: argparse.Namespace, place: Place, _: pytest.MonkeyPatch) -> bool:
    sources = {"nuscenes": place.nuscenes, "bag": place.recording, "folder": place.frames}
    label_set = {"openocc": "openocc", "surroundocc": "surroundocc", "openoccupancy": "surroundocc"}
    with_tiny_network(args, place, label_set.get(args.labels_form, "occ3d"))
    args.path = sources.get(args.source)
    if args.source == "nuscenes":
        args.labels = place.labels(args.labels_form)
    args.seeds, args.frames, args.max_frames = range(1), 2, 2
    return True


def replay_command(args: argparse.Namespace, place: Place, _: pytest.MonkeyPatch) -> bool:
    args.bag, args.rate, args.wait, args.loop = place.recording, 0.0, 0.1, False
    args.paced = False  # nobody makes grids here
    return True


def nuscenes_to_bag_command(args: argparse.Namespace, place: Place, _: pytest.MonkeyPatch) -> bool:
    args.root, args.version = place.nuscenes, "v1.0-mini"
    return True


def doctor_command(args: argparse.Namespace, place: Place, _: pytest.MonkeyPatch) -> bool:
    args.seconds = 0.2
    return not args.live  # without a node it has something to complain about


def export_command(args: argparse.Namespace, place: Place, _: pytest.MonkeyPatch) -> bool:
    pytest.importorskip("onnx")
    with_tiny_network(args, place)
    return True


STAND_INS = {
    "run": run_command,
    "view": view_command,
    "evaluate": evaluate_command,
    "replay": replay_command,
    "nuscenes-to-bag": nuscenes_to_bag_command,
    "doctor": doctor_command,
    "export": export_command,
}


def stand_in(name: str, recording: Path) -> str:
    """A source of this name here: the recording, unless it is the made-up world."""
    if name == "world" or name.startswith("world:"):
        return name
    link = Path(Path(name).name.removesuffix(".bag"))
    if not link.exists():
        link.symlink_to(recording, target_is_directory=True)
    return str(link)


@pytest.mark.parametrize(("page", "words"), OTHERS, ids=name_of)
def test_other_commands_of_the_documentation_name_what_there_is(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = words[0].removeprefix(".venv/bin/")
    monkeypatch.chdir(ROOT)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    elif program == "python" and words[1:3] == ["-m", "pytest"]:
        for path in (word for word in words[3:] if word.startswith("test")):
            assert (ROOT / path).exists(), path
    elif program == "python":
        monkeypatch.setattr(sys, "argv", [words[1], "--help"])
        monkeypatch.setattr(sys, "path", [str((ROOT / words[1]).parent), *sys.path])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(words[1], run_name="__main__")
        assert stop.value.code == 0
        explained = capsys.readouterr().out
        assert all(word in explained for word in words if word.startswith("--"))
    elif program == "gdfusion_occupancy_node" or words[:2] == ["ros2", "launch"]:
        known = launch_arguments() if program == "ros2" else parameters()
        assert [
            word.partition(":=")[0] for word in words if ":=" in word and word.split(":=")[0] not in known
        ] == []
    elif program == "ros2":
        topics_and_types = [word for word in words if "gdfusion_ros/" in word]
        assert all(
            (ROOT / f"{word.removeprefix('gdfusion_ros/')}.msg").is_file() for word in topics_and_types
        )
    else:
        assert program in UNTYPED, f"{page}: how is {shlex.join(words)!r} checked? test_docs.py has to say"


def parameters() -> set[str]:
    content = yaml.safe_load((ROOT / "config" / "node.yaml").read_text())
    return {*next(iter(content.values()))["ros__parameters"], "use_sim_time", "__node", "__ns"}


def launch_arguments() -> set[str]:
    return set(re.findall(r"\(\s*\"(\w+)\",", (ROOT / "launch" / "occ.launch.py").read_text()))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("page", sorted({block.page for block in EXCERPTS if block.language == "python"}))
def test_the_python_of_a_page_runs_or_stands_in_a_source_file(page: str, place: Place) -> None:
    from gdfusion_ros.assembly.rig import find_topics, read_rig
    from gdfusion_ros.sources.bag import BagSource

    sources = [
        path.read_text() for folder in ("gdfusion_ros", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    size = {"size_x": 2, "size_y": 3, "size_z": 4, "labels": bytes(range(24))}
    source = BagSource(place.recording, read_rig(find_topics("nuscenes")))
    tiny = f'load_model({str(place.model())!r}, weights="random:0")'
    names = {"np": np, "m": SimpleNamespace(**size), "source": source}
    for block in blocks(page):
        if block.language != "python":
            continue
        if block.text.startswith(" "):  # cut out of a source file
            lines = [line.strip() for line in block.text.splitlines() if line.strip()]
            assert any(all(line in text for line in lines) for text in sources), f"{page}:{block.line}"
            continue
        text = re.sub(r"load_model\([^()]*\)", tiny, block.text)
        exec(compile(text, f"{page}:{block.line}", "exec"), names)


@pytest.mark.parametrize("block", [one for one in EXCERPTS if one.language != "python"], ids=name_of)
def test_the_yaml_of_a_page_can_be_read(block: Block) -> None:
    assert yaml.safe_load(block.text) is not None


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_a_pages_text_have_the_options_that_it_names(page: str) -> None:
    text = re.sub(
        r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for span in re.findall(r"`(gdfusion [^`]+)`", text):
        command, *rest = span.split()[1:]
        if command == "COMMAND" or command.startswith("-"):
            continue
        assert command in COMMANDS, span
        module = import_module(f"gdfusion_ros.cli.{command.replace('-', '_')}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        known = set(options_of(parser))
        assert [word for word in rest if word.startswith("--") and word not in known] == [], span


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a command and of its sub-commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from options_of(one)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_of_a_page_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or path.name in index, path.name


def test_no_page_names_a_path_of_this_machine() -> None:
    for page in PAGES:
        assert str(ROOT) not in (ROOT / page).read_text(), page
