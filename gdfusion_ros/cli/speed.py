"""What `gdfusion bench speed` measures: ways of computing one network, side by side."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from gdfusion_ros.cli.memory import peak_mb
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.grid import OCC3D, VoxelGrid
from gdfusion_ros.model.compiled import PRECISIONS
from gdfusion_ros.model.inference import Backend, Precision, has_bfloat16
from gdfusion_ros.model.model import OccupancyModel, load_model
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

if TYPE_CHECKING:
    from gdfusion_ros.sources.world.ground_truth import GroundTruth

WARM_UP = 2
"""Frames that do not count: the first of a sequence, and the first with a history."""


@dataclass(frozen=True)
class Way:
    """One way of computing a network."""

    precision: Precision
    backend: Backend
    kernels: bool
    threads: int

    def calibration(self, args: argparse.Namespace) -> list[CameraFrame]:
        """What other backends than torch are prepared with."""
        return [] if self.backend == "torch" else list(_world(args, seed=1, frames=2))

    def load(self, args: argparse.Namespace, calibration: list[CameraFrame]) -> OccupancyModel:
        """The model computed in this way."""
        return load_model(
            args.model, args.weights, args.device, self.kernels, self.precision, self.backend, calibration
        )


@dataclass
class Course:
    """A way under measurement."""

    way: Way
    model: OccupancyModel
    state: TemporalState | None = None
    labels: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)

    def step(self, frame: CameraFrame, counts: bool) -> None:
        """One frame; its times count after the warm-up."""
        watch = Watch()
        with threads(self.way.threads):
            wall, cpu = time.perf_counter(), time.process_time()
            prediction, self.state = self.model(frame, self.state, watch)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.labels.append(prediction.labels)
        if counts:
            self.wall_ms.append(wall * 1e3)
            self.cpu_ms.append(cpu * 1e3)
            self.stages_ms.append(dict(watch.timings_ms))


def plan(args: argparse.Namespace) -> list[Way]:
    """The ways that the arguments ask for, the plain network first. Raises UserError."""
    precisions = _choices(args.precisions, get_args(Precision), "--precisions")
    backends = _choices(args.backends, get_args(Backend), "--backends")
    try:
        numbers = [int(text) for text in args.threads.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"--threads takes whole numbers such as 1,2, not {args.threads!r}")
    if args.frames <= WARM_UP:
        raise UserError(f"--frames must be more than {WARM_UP}: the first {WARM_UP} do not count")
    plain = [] if args.no_plain else [Way("fp32", "torch", False, numbers[0])]
    all_ways = itertools.product(precisions, backends, numbers)
    return plain + [Way(p, b, True, n) for p, b, n in all_ways if p in PRECISIONS[b]]


def measure(args: argparse.Namespace, ways: list[Way]) -> dict[str, Any]:
    """The table of all ways: see ``gdfusion bench --help``."""
    courses = [Course(way, way.load(args, way.calibration(args))) for way in ways]
    frames, truths = _frames(args, courses[0].model)
    gflop = count_gflop(courses[0].model, frames[0])
    for i, frame in enumerate(tqdm(frames, "frames", disable=None)):
        for course in courses:
            course.step(frame, counts=i >= WARM_UP)
    peaks = {precision: peak_gflops(precision) for precision in ("fp32", "bf16")}
    reference = None if args.no_plain else courses[0]
    rows = []
    for course in courses:
        row = _row(course, reference, truths, gflop, peaks)
        row["peak_mb"] = None if args.no_memory else peak_memory(args, course.way)
        rows.append({"model": courses[0].model.name, **row})
    return {
        "model": courses[0].model.name,
        "weights": courses[0].model.weights,
        "gflop": gflop,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "peak_gflops": peaks,
        },
        "frames": len(frames) - WARM_UP,
        "rows": rows,
    }


def _row(
    course: Course, plain: Course | None, truths: list[GroundTruth], gflop: float, peaks: dict[str, float]
) -> dict[str, Any]:
    way = course.way
    cpu = statistics.median(course.cpu_ms)
    # Where the processor has no bfloat16, that is computed in float32.
    peak = peaks["bf16" if way.precision != "fp32" else "fp32"] or peaks["fp32"]
    agreement = [float((a == b).mean()) for a, b in zip(course.labels, plain.labels)] if plain else []
    return {
        "precision": way.precision,
        "backend": way.backend,
        "kernels": way.kernels,
        "threads": way.threads,
        "latency_ms": statistics.median(course.wall_ms),
        "latency_p95_ms": float(np.percentile(course.wall_ms, 95)),
        "cpu_ms": cpu,
        "stages_ms": {
            name: statistics.median(stages[name] for stages in course.stages_ms)
            for name in course.stages_ms[0]
        },
        "ratio_to_plain": statistics.median(plain.cpu_ms) / cpu if plain else None,
        "label_agreement": min(agreement) if agreement else None,
        "miou": _miou(course, truths),
        "fraction_of_peak": gflop / (cpu / 1e3) / peak,
    }


def _miou(course: Course, truths: list[GroundTruth]) -> float | None:
    """Mean IoU on the world over the frames; None for random weights and other label sets than the world's."""
    from gdfusion_ros.evaluation.miou import ConfusionMatrix

    model = course.model
    if model.weights.startswith("random") or model.label_set.name != "occ3d":
        return None
    matrix = ConfusionMatrix(model.label_set)
    for labels, truth in zip(course.labels, truths):
        matrix.add(labels, truth.labels)
    return float(matrix.miou())


def _world(args: argparse.Namespace, seed: int, frames: int) -> Iterable[CameraFrame]:
    from gdfusion_ros.model.config import load_config
    from gdfusion_ros.sources.world import WorldSource

    image = load_config(args.model).image
    return WorldSource(seed, frames, image_size=(image.height, image.width))


def _frames(args: argparse.Namespace, model: OccupancyModel) -> tuple[list[CameraFrame], list[GroundTruth]]:
    from gdfusion_ros.sources.world import WorldSource

    image = model.config.image
    world = WorldSource(0, args.frames, image_size=(image.height, image.width), grid=_world_grid(model))
    pairs = list(tqdm(world.pairs(), "drawing the world", args.frames, disable=None))
    return [frame for frame, _ in pairs], [truth for _, truth in pairs]


def _world_grid(model: OccupancyModel) -> VoxelGrid:
    # The ground truth of a grid in another frame would need the world to be drawn there: such a model gets no score.
    return model.grid if model.grid.frame == "ego" else OCC3D


def count_gflop(model: OccupancyModel, frame: CameraFrame) -> float:
    """Convolutions and matrix products of one frame of the plain network, in 1e9 multiplications and additions."""
    batch = model.network_input(frame, model.ego_poses(frame), None)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.network(batch, None)
    return counter.get_total_flops() / 1e9


def peak_gflops(precision: str) -> float:
    """GFLOP/s that one core reaches in a large 3x3 convolution; 0 for bfloat16 where the processor has none."""
    if precision == "bf16" and not has_bfloat16(torch.device("cpu")):
        return 0.0
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    convolution = torch.nn.Conv2d(256, 256, 3, padding=1).to(dtype)
    convolution = convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(1, 256, 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode(), threads(1):
        for _ in range(6):
            begin = time.process_time()
            convolution(x)
            times.append(time.process_time() - begin)
    return 2 * 256 * 256 * 9 * 64 * 64 / min(times) / 1e9


def peak_memory(args: argparse.Namespace, way: Way) -> float:
    """Peak memory in MB of a process that loads the model and runs three frames of a sequence in this way."""
    # Drawn here: what draws the world is no part of what runs a network.
    frames = list(_world(args, seed=0, frames=3))
    calibration = way.calibration(args)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run_alone, args, way, calibration, frames).result()


def _run_alone(
    args: argparse.Namespace, way: Way, calibration: list[CameraFrame], frames: list[CameraFrame]
) -> float:
    course = Course(way, way.load(args, calibration))
    for frame in frames:
        course.step(frame, counts=False)
    return peak_mb()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """This many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw(result: dict[str, Any], path: Path) -> None:
    """The stages of every row as stacked bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"]
    names = [
        f"{r['precision']}, {r['backend'] if r['kernels'] else 'plain'}, {r['threads']} thread{'s'[: r['threads'] - 1]}"
        for r in rows
    ]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.5 * len(rows)), layout="constrained")
    left = np.zeros(len(rows))
    for stage in rows[0]["stages_ms"]:
        widths = np.array([row["stages_ms"].get(stage, 0.0) for row in rows])
        axes.barh(names, widths, left=left, label=stage)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel(f"ms a frame, {result['model']}, {result['machine']['processor']}")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _choices(text: str, known: tuple[str, ...], option: str) -> list[Any]:
    chosen = text.split(",")
    for name in chosen:
        if name not in known:
            raise UserError(f"{option}: there is no {name!r}; there are {', '.join(known)}")
    return chosen


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
