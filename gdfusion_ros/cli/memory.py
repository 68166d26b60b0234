"""Memory of networks that stack their history and of those that carry it on: state bytes, and the process's peak.

Each network runs in a process of its own over frames of the made-up world, with made-up weights: memory does not
depend on what they say.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from gdfusion_ros.geometry import inverse

if TYPE_CHECKING:
    from gdfusion_ros.frame import CameraFrame
    from gdfusion_ros.geometry import Matrix
    from gdfusion_ros.model.config import ModelConfig

PAIRS = (
    ("bevdetocc-sf", "bevdetocc-gf"),
    ("fbocc", "fbocc-gf"),
    ("alocc3d", "alocc3d-gf"),
    ("cotr", "cotr-gf"),
)
"""Networks with several frames as input, or their features kept, and the same with GDFusion's state."""
_MEGABYTE = 1e6
_EVERY = 4
"""Of the pixels' rows and columns whose points stand for a LiDAR's."""


def measure(pairs: tuple[tuple[str, str], ...], frames: int) -> dict[str, Any]:
    """A row for each network, and for each pair how much less the second needs, in percent."""
    names = [name for pair in pairs for name in pair]
    rows = {name: measure_alone(name, frames) for name in tqdm(names, "networks", disable=None)}
    return {
        "frames": frames,
        "cores": os.cpu_count(),
        "rows": list(rows.values()),
        "pairs": [
            {
                "stacked": stacked,
                "recurrent": recurrent,
                **{
                    f"{what}_saved_percent": saved(rows[stacked][f"{what}_mb"], rows[recurrent][f"{what}_mb"])
                    for what in ("state", "peak", "frame")
                },
            }
            for stacked, recurrent in pairs
        ],
    }


def saved(before: float, after: float) -> float:
    """Percent of ``before`` that ``after`` does without; negative when it needs more."""
    return 100.0 * (1.0 - after / before) if before else float("nan")


def measure_alone(name: str, frames: int) -> dict[str, Any]:
    """The row of one network, measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run, name, frames).result()


def _run(name: str, frames: int) -> dict[str, Any]:
    from gdfusion_ros.model.config import load_config
    from gdfusion_ros.model.model import load_model

    config = load_config(name)
    # Frames are drawn one by one: forty of them would be memory that no stream holds.
    drawn = drive(config, frames)
    model = load_model(config, "random:0")
    loaded = peak_mb()
    sizes: list[int] = []
    seconds: list[tuple[float, float]] = []
    state = None
    for frame in drawn:
        begin = time.process_time(), time.perf_counter()
        _, state = model(frame, state)
        seconds.append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
        sizes.append(state.bytes)
    # Not the first frame, in which the inference form is made.
    cpu, wall = (statistics.median(column) for column in zip(*(seconds[1:] or seconds)))
    return {
        "model": name,
        "history": config.temporal.history,
        "state_mb": sizes[-1] / _MEGABYTE,
        "state_bytes": sizes,
        "state_constant_from_second_frame": len(set(sizes[1:])) <= 1,
        "loaded_mb": loaded,
        "peak_mb": peak_mb(),
        "frame_mb": peak_mb() - loaded,
        "cpu_s": cpu,
        "wall_s": wall,
    }


def drive(config: ModelConfig, frames: int) -> Iterator[CameraFrame]:
    """A drive through the made-up world as a network's own rig sees it, with a LiDAR where the network needs one."""
    from gdfusion_ros.sources.world import NUSCENES, WorldSource
    from gdfusion_ros.training.lidar import EGO_FROM_LIDAR

    own = {camera.name for camera in NUSCENES.cameras}
    rig = NUSCENES
    if own.issuperset(config.cameras):
        rig = rig.with_cameras(config.cameras)
    else:
        # Somebody else's rig: its names on these cameras.
        cameras = (replace(camera, name=name) for camera, name in zip(rig.cameras, config.cameras))
        rig = replace(rig, cameras=tuple(cameras), anchor=config.cameras[0])
    source = WorldSource(0, frames, rig, (config.image.height, config.image.width))
    for frame, truth in source.pairs():
        points = None
        if getattr(config.architecture, "lidar_depth", False):
            points = _points(frame, truth.depth, EGO_FROM_LIDAR)
        yield replace(frame, ego_from_lidar=EGO_FROM_LIDAR, lidar_points=points)


def _points(
    frame: CameraFrame, depths: Sequence[npt.NDArray[np.float32]], ego_from_lidar: Matrix
) -> npt.NDArray[np.float32]:
    """(P, 3) points in the LiDAR's frame of what some of the cameras' pixels show; ``depths`` are (H, W) in metres."""
    lidar_from_world = inverse(frame.world_from_ego @ ego_from_lidar)
    clouds = []
    for view, depth in zip(frame.views, depths, strict=True):
        rows, columns = np.mgrid[: depth.shape[0] : _EVERY, : depth.shape[1] : _EVERY]
        metres = depth[rows, columns]
        transform = view.image_transform
        pixels = np.stack(
            [columns + transform.left, rows + transform.top, np.full(rows.shape, transform.scale)], axis=-1
        )
        rays = pixels / transform.scale @ np.linalg.inv(view.intrinsics).T
        points = (rays * metres[..., None])[np.isfinite(metres)]
        lidar_from_camera = lidar_from_world @ view.world_from_ego @ view.ego_from_camera
        clouds.append(points @ lidar_from_camera[:3, :3].T + lidar_from_camera[:3, 3])
    return np.concatenate(clouds).astype(np.float32)


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (1e6 bytes)."""
    try:
        # Not ru_maxrss, which on Linux a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / _MEGABYTE
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of peak and state, network by network."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = [row["model"] for row in result["rows"]]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, what, title in zip(
        axes, ("peak_mb", "state_mb"), ("peak of the process", "state"), strict=True
    ):
        axis.barh(names, [row[what] for row in result["rows"]])
        axis.set_xlabel("MB")
        axis.set_title(title)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def table(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = [
        f"{'model':<16} {'history':<10} {'state MB':>9} {'loaded MB':>10} {'peak MB':>9} {'frame MB':>9} "
        f"{'CPU s a frame':>13}"
    ]
    lines += [
        f"{row['model']:<16} {row['history']:<10} {row['state_mb']:9.1f} {row['loaded_mb']:10.0f} "
        f"{row['peak_mb']:9.0f} {row['frame_mb']:9.0f} {row['cpu_s']:13.1f}"
        for row in result["rows"]
    ]
    lines += [
        f"{pair['recurrent']} against {pair['stacked']}: state {-pair['state_saved_percent']:+.1f} %, "
        f"peak {-pair['peak_saved_percent']:+.1f} %, what a frame takes {-pair['frame_saved_percent']:+.1f} %"
        for pair in result["pairs"]
    ]
    return lines
