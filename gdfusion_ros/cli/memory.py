"""Memory of networks that stack their history and of those that carry it on: state bytes, and the process's peak.

Each network runs in a process of its own over frames of the made-up world, with made-up weights: memory does not
depend on what they say.
"""

from __future__ import annotations

import os
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PAIRS = (
    ("bevdetocc-sf", "bevdetocc-gf"),
    ("fbocc", "fbocc-gf"),
    ("alocc3d", "alocc3d-gf"),
    ("cotr", "cotr-gf"),
)
"""Networks with several frames as input, or their features kept, and the same with GDFusion's state."""
_MEGABYTE = 1e6


def measure(pairs: tuple[tuple[str, str], ...], frames: int) -> dict[str, Any]:
    """A row for each network, and for each pair how much less the second needs, in percent."""
    rows = {name: measure_alone(name, frames) for pair in pairs for name in pair}
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
    from gdfusion_ros.sources.world import WorldSource

    config = load_config(name)
    source = WorldSource(0, frames, image_size=(config.image.height, config.image.width))
    # Drawn before the network is there: its memory is not the network's.
    drawn = list(source)
    model = load_model(config, "random:0")
    loaded = _peak()
    sizes: list[int] = []
    state = None
    for frame in drawn:
        _, state = model(frame, state)
        sizes.append(state.bytes)
    return {
        "model": name,
        "history": config.temporal.history,
        "state_mb": sizes[-1] / _MEGABYTE,
        "state_bytes": sizes,
        "state_constant_from_second_frame": len(set(sizes[1:])) <= 1,
        "loaded_mb": loaded,
        "peak_mb": _peak(),
        "frame_mb": _peak() - loaded,
    }


def _peak() -> float:
    """Largest resident memory of this process so far, in MB."""
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
        f"{'model':<16} {'history':<10} {'state MB':>9} {'loaded MB':>10} {'peak MB':>9} {'frame MB':>9}"
    ]
    lines += [
        f"{row['model']:<16} {row['history']:<10} {row['state_mb']:9.1f} {row['loaded_mb']:10.0f} "
        f"{row['peak_mb']:9.0f} {row['frame_mb']:9.0f}"
        for row in result["rows"]
    ]
    lines += [
        f"{pair['recurrent']} against {pair['stacked']}: state {-pair['state_saved_percent']:+.1f} %, "
        f"peak {-pair['peak_saved_percent']:+.1f} %, what a frame takes {-pair['frame_saved_percent']:+.1f} %"
        for pair in result["pairs"]
    ]
    return lines
