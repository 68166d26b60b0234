"""Score a network against ground truth, or against LiDAR where there are no labels.

  gdfusion evaluate --source world --seeds 0:40 --frames 20         the made-up world, exact labels and velocities
  gdfusion evaluate --source nuscenes DATAROOT --labels GTS         nuScenes with Occ3D, SurroundOcc or OpenOccupancy
  gdfusion evaluate --source bag RECORDING                          LiDAR as a witness
  gdfusion evaluate --source folder FRAMES                          the same for a folder with a frames.json

With --out DIR: summary.json, frames.csv, classes.png, confusion.png and the ten worst frames as pictures. Shares are
in percent, velocities in metres per second. With --json the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gdfusion_ros.cli.arguments import add_model_arguments, load, seed_range
from gdfusion_ros.cli.datasets import (
    LABEL_FORMS,
    Item,
    Labels,
    bag_items,
    folder_items,
    nuscenes_items,
    world_items,
)
from gdfusion_ros.cli.inputs import add_json_argument, add_rig_arguments, print_json, rig_of
from gdfusion_ros.cli.offline import step, stream_of
from gdfusion_ros.errors import UserError
from gdfusion_ros.evaluation.lidar import LidarWitness
from gdfusion_ros.evaluation.report import Report, write_json
from gdfusion_ros.evaluation.score import Scores

if TYPE_CHECKING:
    from gdfusion_ros.model.model import OccupancyModel
    from gdfusion_ros.stream import OccupancyStream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "path", nargs="?", type=Path, help="data root, recording or folder; nothing for the world"
    )
    parser.add_argument("--source", choices=["world", "nuscenes", "bag", "folder"], required=True)
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder for tables and pictures")
    add_json_argument(parser)
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")
    parser.add_argument(
        "--rays",
        action=argparse.BooleanOptionalAction,
        help="RayIoU too (default: for nuscenes)",
    )
    parser.add_argument(
        "--without-history",
        action=argparse.BooleanOptionalAction,
        help="also score with the state reset before every frame (default: for the world)",
    )
    tables = parser.add_argument_group("nuscenes")
    tables.add_argument("--labels", type=Path, metavar="DIR", help="ground truth (default: PATH/gts)")
    tables.add_argument(
        "--labels-form", choices=LABEL_FORMS, default="occ3d", help="whose labels (%(default)s)"
    )
    tables.add_argument("--version", help="tables, as v1.0-mini (default: those that are there)")
    tables.add_argument(
        "--scenes", nargs="+", default=(), metavar="NAME", help="as scene-0103 (default: all)"
    )
    tables.add_argument(
        "--camera-mask",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="count only what cameras see, where the labels say what that is",
    )
    world = parser.add_argument_group("world")
    world.add_argument(
        "--seeds", type=seed_range, default=range(40), metavar="A:B", help="sequences (default 0:40)"
    )
    world.add_argument("--frames", type=int, default=20, help="frames a sequence (default 20)")
    world.add_argument("--weather", help="day, dusk, night, fog or 'night fog' (default: each seed's own)")
    world.add_argument("--pose-noise", type=float, default=0.0, help="drift of the poses in metres a frame")
    bag = parser.add_argument_group("bag")
    add_rig_arguments(parser)
    bag.add_argument("--lidar", metavar="TOPIC", help="point clouds (default: the recording's first)")


def run(args: argparse.Namespace) -> int:
    """Score, print, write. Raises UserError for wrong input."""
    model = load(args, rig_of(args)[0].names if args.source == "bag" else ())
    rays = args.source == "nuscenes" if args.rays is None else args.rays
    fresh = args.source == "world" if args.without_history is None else args.without_history
    evaluation = Evaluation(stream_of(model, args), rays, stream_of(model, args) if fresh else None)
    total = _length(args)
    with tqdm(total=total, unit="frame", disable=None) as bar:
        for item in items(args, model):
            evaluation.add(item)
            bar.update()
            if args.max_frames and evaluation.frames >= args.max_frames:
                break
    if not evaluation.frames:
        raise UserError(
            f"{args.path} gave no frames; is it the right recording, and are its topics the right ones?"
        )
    summary = {"source": args.source, **evaluation.summary(occurring_only=args.source == "world")}
    if args.out and evaluation.report.rows:
        evaluation.report.write(args.out, summary, evaluation.scores.seen)
    elif args.out:
        write_json(args.out, summary)
    print(table(summary))
    if args.json:
        print_json(summary)
    return 0


def items(args: argparse.Namespace, model: OccupancyModel) -> Iterator[Item]:
    """The frames that the arguments name."""
    if args.source == "world":
        size = (model.config.image.height, model.config.image.width)
        try:
            yield from world_items(args.seeds, args.frames, model.grid, size, args.weather, args.pose_noise)
        except ValueError as error:
            raise UserError(str(error)) from error
        return
    if args.path is None:
        raise UserError(f"--source {args.source} needs a path; `gdfusion evaluate --help` shows how")
    if args.source == "nuscenes":
        folder = args.labels or args.path / "gts"
        labels = Labels(args.labels_form, folder, model.label_set, args.camera_mask)
        if not folder.is_dir():
            raise UserError(f"there are no labels at {folder}; --labels says where they are")
        yield from nuscenes_items(args.path, args.version, args.scenes, labels)
    elif args.source == "folder":
        yield from folder_items(args.path)
    else:
        yield from bag_items(args.path, *rig_of(args), args.lidar)


def _length(args: argparse.Namespace) -> int | None:
    total = len(args.seeds) * args.frames if args.source == "world" else None
    return min(filter(None, (total, args.max_frames)), default=None)


class Evaluation:
    """One model over one set of frames: with its history and, if asked, also without."""

    def __init__(
        self, stream: OccupancyStream, rays: bool = False, without_history: OccupancyStream | None = None
    ) -> None:
        """``without_history`` is a stream of its own, reset before each frame."""
        model = self.model = stream.model
        self.rays = rays
        self.frames = 0
        self.scores = Scores(model.label_set)
        self.report = Report()
        self.witness = LidarWitness()
        self._stream = stream
        self._fresh = without_history
        self._fresh_scores = Scores(model.label_set)
        self._milliseconds: list[float] = []

    def add(self, item: Item) -> None:
        """Run one frame and score it."""
        begin = time.perf_counter()
        occupancy = step(self._stream, item.frame)
        self._milliseconds.append((time.perf_counter() - begin) * 1e3)
        self.frames += 1
        self.witness.add(item.frame, occupancy)
        if item.truth is None:
            return
        origins = item.origins if self.rays else None
        own = self.scores.add(occupancy, item.truth, origins)
        self.report.add(item.frame, occupancy, item.truth, own)
        if self._fresh is not None:
            self._fresh.reset("without_history")
            self._fresh_scores.add(step(self._fresh, item.frame), item.truth, origins)

    def summary(self, occurring_only: bool) -> dict[str, Any]:
        """Everything measured, ready for JSON."""
        result: dict[str, Any] = {
            "model": self.model.name,
            "weights": self.model.weights,
            "frames": self.frames,
            "sequences": self._stream.sequence,
            "median_ms": float(np.median(self._milliseconds)),
        }
        if self.scores.frames:
            result |= self.scores.summary(occurring_only)
        if self._fresh_scores.frames:
            result["without_history"] = self._fresh_scores.summary(occurring_only)
        if self.witness.frames:
            result["lidar"] = self.witness.summary()
        return result


def table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [
        f"{summary['model']} ({summary['weights']}), {summary['frames']} frames in {summary['sequences']} sequences, "
        f"{summary['median_ms']:.0f} ms a frame"
    ]
    names = {
        "miou": "mIoU",
        "iou": "occupied IoU",
        "miou_movable": "mIoU of movable classes",
        "miou_hidden": "mIoU hidden now, seen before",
        "miou_everywhere": "mIoU without the camera mask",
        "rayiou": "RayIoU",
        "occ_score": "OccScore",
        "flow_epe_moving": "flow error, moving (m/s)",
        "flow_zero_epe_moving": "the same for zero flow",
        "flow_epe_static": "flow error, static (m/s)",
    }
    single = summary.get("without_history", {})
    for key, name in names.items():
        if summary.get(key) is not None:
            other = single.get(key)
            lines.append(
                f"  {name:<30}{summary[key]:8.2f}"
                + (f"   without history {other:8.2f}" if other is not None else "")
            )
    for name, iou in summary.get("per_class", {}).items():
        lines.append(f"    {name:<28}" + ("not there" if iou is None else f"{iou:8.2f}"))
    lidar = summary.get("lidar")
    if lidar and lidar["returns"]:
        lines.append(f"  LiDAR returns in occupied voxels {100 * lidar['returns_in_occupied']:.1f} %")
        lines.append(f"  voxels that LiDAR rays crossed, free {100 * lidar['free_space_free']:.1f} %")
        for row in lidar["depth_error"]:
            if row["mean_abs_error_m"] is not None:
                lines.append(
                    f"    {row['from_m']:3.0f} to {row['to_m']:3.0f} m: depth off by {row['mean_abs_error_m']:.2f} m "
                    f"(median {row['median_error_m']:+.2f}), {row['rays_through']} of {row['rays']} rays hit nothing"
                )
    return "\n".join(lines)
