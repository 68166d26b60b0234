"""What the documentation says to type, and a small world in which it can be typed."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import yaml
from driving import TINY_MODEL, drive
from made_up_nuscenes import write_nuscenes

from gdfusion_ros.cli.main import main
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.geometry import Matrix, quaternion
from gdfusion_ros.sinks.bag import record_frames
from gdfusion_ros.sources.nuscenes_tables import NuScenesSource

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "benchmark/*.md", "weights/*.md", "examples/*.md", "config/*.md")
    for path in ROOT.glob(pattern)
)
EXECUTABLES = (
    "gdfusion",
    "gdfusion_occupancy_node",
    "python",
    ".venv/bin/python",
    "make",
    "ros2",
    "cd",
    "git",
)
"""Beginnings of indented lines that are commands; other indented lines are text."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, and its indented command lines as blocks of their own."""
    begin, language, lines = 0, "", list[str]()
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if begin:
                yield Block(page, begin, language, "\n".join(lines))
                begin = 0
            else:
                begin, language, lines = number, line[3:].strip(), []
        elif begin:
            lines.append(line)
        elif line.startswith("    ") and line.split()[0:1] and line.split()[0] in EXECUTABLES:
            yield Block(page, number, "", line.strip())


def command_lines(page: str) -> list[list[str]]:
    """The words of every command in a page's shell blocks; `a && b` is two, and comments are left out."""
    found = []
    for block in blocks(page):
        if block.language not in ("", "bash", "sh", "console"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                if any(mark in part for mark in "─│▶▼"):
                    continue  # a drawing
                # What a command does may stand behind it, after some spaces.
                command = re.split(r" {2,}", part.strip().removeprefix("$ "))[0]
                words = shlex.split(command, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    found.append(words)
    return found


def parsed(command: str, words: list[str]) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The arguments of `gdfusion COMMAND WORDS`; argparse ends with SystemExit where they are wrong."""
    module = import_module(f"gdfusion_ros.cli.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser(f"gdfusion {command}")
    module.add_arguments(parser)
    return parser.parse_args(words), parser


@dataclass(frozen=True)
class Place:
    """Small stand-ins for what users have: networks, recordings, data sets."""

    folder: Path

    def model(self, label_set: str = "occ3d") -> Path:
        """A tiny network with these labels."""
        return self.folder / f"tiny-{label_set}.yaml"

    @property
    def recording(self) -> Path:
        """Two frames of six cameras with LiDAR."""
        return self.folder / "recording"

    @property
    def output(self) -> Path:
        """What the tiny network makes of it."""
        return self.folder / "outputs" / "recording"

    @property
    def frames(self) -> Path:
        """The same frames as a folder with a frames.json."""
        return self.folder / "frames"

    @property
    def nuscenes(self) -> Path:
        """The same as scene-0103 of nuScenes."""
        return self.folder / "nuscenes"

    def labels(self, form: str) -> Path:
        """Ground truth of it, in the form it is published in."""
        return self.folder / "labels" / form


def build(folder: Path) -> Place:
    """Make the place."""
    place = Place(folder)
    for name, lidar_frame in (("occ3d", False), ("openocc", False), ("surroundocc", True)):
        grid = {**TINY_MODEL["grid"], **({"frame": "lidar"} if lidar_frame else {})}  # type: ignore[dict-item]
        content = {**TINY_MODEL, "labels": {"set": name}, "grid": grid}
        place.model(name).write_text(yaml.safe_dump(content))
    frames = [with_lidar(frame) for frame in drive([0.0, 0.5])]
    record_frames(frames, place.recording)
    arguments = ["--model", str(place.model()), "--weights", "random:0", "--mcap"]
    assert main(["run", str(place.recording), "--out", str(folder / "outputs"), *arguments]) == 0
    write_folder(place.frames, frames)
    write_nuscenes(place.nuscenes, {"scene-0103": frames})
    write_labels(place)
    return place


def with_lidar(frame: CameraFrame) -> CameraFrame:
    """The frame with a ring of returns on the ground around it."""
    turn = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    points = np.stack([8 * np.cos(turn), 8 * np.sin(turn), np.full(100, -1.8), turn, turn], axis=1)
    ego_from_lidar = np.eye(4)
    ego_from_lidar[:3, 3] = (0.94, 0.0, 1.84)
    return replace(
        frame,
        lidar_points=points.astype(np.float32),
        ego_from_lidar=ego_from_lidar,
        world_from_ego_at_lidar=frame.world_from_ego,
    )


def write_folder(folder: Path, frames: list[CameraFrame]) -> None:
    """The frames as images beside a frames.json, as `gdfusion_ros.sources.nuscenes` reads them."""

    def pose(matrix: Matrix) -> dict[str, list[float]]:
        return {"translation": matrix[:3, 3].tolist(), "rotation": quaternion(matrix).tolist()}

    folder.mkdir()
    entries = []
    for number, frame in enumerate(frames):
        cameras = {}
        for view in frame.views:
            file = f"{number}_{view.name}.jpg"
            assert view.encoded is not None
            (folder / file).write_bytes(view.encoded)
            cameras[view.name] = {
                "file": file,
                "width": view.image.shape[1],
                "height": view.image.shape[0],
                "intrinsic": view.intrinsics.tolist(),
                "sensor2ego": pose(view.ego_from_camera),
                "ego2global": pose(view.world_from_ego),
                "timestamp_us": view.stamp_ns // 1000,
            }
        assert frame.lidar_points is not None
        assert frame.ego_from_lidar is not None
        (folder / f"{number}.pcd.bin").write_bytes(frame.lidar_points.tobytes())
        lidar = {"file": f"{number}.pcd.bin", "sensor2ego": pose(frame.ego_from_lidar)}
        entries.append(
            {"cameras": cameras, "lidar": lidar, "ego2global_lidar_time": pose(frame.world_from_ego)}
        )
    (folder / "frames.json").write_text(json.dumps({"scene": "made-up", "frames": entries}))


def write_labels(place: Place) -> None:
    """Ground truth of the nuScenes folder in all four forms: flat road."""
    for names, _ in NuScenesSource(place.nuscenes).pairs():
        for form, road, free in (("occ3d", 11, 17), ("openocc", 10, 16)):
            path = place.labels(form) / names.scene / names.sample_token / "labels.npz"
            path.parent.mkdir(parents=True)
            semantics = np.full((200, 200, 16), free, np.uint8)
            semantics[:, :, 2] = road
            flow = {"flow": np.zeros((200, 200, 16, 2), np.float16)} if form == "openocc" else {}
            np.savez_compressed(path, semantics=semantics, mask_camera=semantics == road, **flow)
        rows = np.array([[10, 20, 5, 11], [30, 40, 5, 15]])
        for path in (
            place.labels("surroundocc") / f"{names.lidar_file}.npy",
            place.labels("openoccupancy") / f"scene_{names.scene_token}/occupancy/{names.lidar_token}.npy",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rows)
