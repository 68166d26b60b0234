"""How the cost of a frame grows with the number of voxels and cameras.

    python benchmark/sizes.py --plot docs/images/sizes.png
    python benchmark/sizes.py --voxels 0.8,0.4 --cameras 1,6

One network with made-up weights, over grids of the same extent in finer and finer voxels and over more and more of the
rig's cameras. Prints one JSON object: for each size the processor time of a frame with history (the median of those
behind the first two), the arithmetic of a frame, and the time for each unit of that in parts of the smallest size's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gdfusion_ros.cli.speed import Course, Way, count_gflop
from gdfusion_ros.grid import Triple
from gdfusion_ros.model.config import ModelConfig, load_config
from gdfusion_ros.model.model import load_model
from gdfusion_ros.sources.world import WorldSource


def main() -> None:
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gdfusion-small")
    parser.add_argument(
        "--voxels", default="0.8,0.4,0.2", help="metres, comma-separated (default %(default)s)"
    )
    parser.add_argument("--cameras", default="1,3,6", help="comma-separated (default %(default)s)")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    config = load_config(args.model)
    sizes = [
        (float(voxel), int(count)) for voxel in args.voxels.split(",") for count in args.cameras.split(",")
    ]
    rows = [measure(config, *size, args.frames) for size in tqdm(sizes, disable=None)]
    for row in rows:
        row["ms_per_gflop"] = row["cpu_ms"] / row["gflop"]
        row["against_smallest"] = row["ms_per_gflop"] / rows[0]["ms_per_gflop"]
    result = {"model": config.name, "rows": rows}
    if args.plot is not None:
        draw(result, args.plot)
    print(json.dumps(result))


def measure(config: ModelConfig, voxel: float, cameras: int, frames: int) -> dict[str, Any]:
    """One size."""
    sized = resized(config, voxel, cameras)
    way = Way("fp32", "torch", True, 1)
    course = Course(way, load_model(sized, "random:0"))
    image = config.image
    drawn = list(WorldSource(0, frames, image_size=(image.height, image.width)))
    for number, frame in enumerate(drawn):
        course.step(frame, counts=number >= 2)
    return {
        "voxel_m": voxel,
        "cameras": cameras,
        "cpu_ms": statistics.median(course.cpu_ms),
        "gflop": count_gflop(course.model, drawn[0]),
    }


def resized(config: ModelConfig, voxel: float, cameras: int) -> ModelConfig:
    """The same extent in cubes of ``voxel`` metres, and the first of the cameras."""

    def steps(axis: Triple) -> Triple:
        return (axis[0], axis[1], voxel)

    grid = config.grid
    cubes = replace(grid, x=steps(grid.x), y=steps(grid.y), z=steps(grid.z))
    return replace(config, grid=cubes, cameras=config.cameras[:cameras])


def draw(result: dict[str, Any], path: Path) -> None:
    """Time over arithmetic, a line for each number of cameras, and the line of equal growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for cameras in dict.fromkeys(row["cameras"] for row in rows):
        line = [row for row in rows if row["cameras"] == cameras]
        axes.loglog([r["gflop"] for r in line], [r["cpu_ms"] for r in line], "o-", label=f"{cameras} cameras")
        for row in line:
            axes.annotate(f"{row['voxel_m']} m", (row["gflop"], row["cpu_ms"]), fontsize="x-small")
    first, last = rows[0], max(rows, key=lambda row: float(row["gflop"]))
    proportional = [first["cpu_ms"], first["cpu_ms"] * last["gflop"] / first["gflop"]]
    axes.loglog([first["gflop"], last["gflop"]], proportional, "k:", label="as the arithmetic")
    axes.set(xlabel="GFLOP a frame", ylabel=f"ms of processor time a frame, {result['model']}")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
