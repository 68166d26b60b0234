"""Does a cheaper precision drift away from float32 as a stream goes on?

    python benchmark/drift.py --plot docs/images/drift.png
    python benchmark/drift.py --model bevdetocc-gf --weights random:0 --frames 10 --ways bf16

Every way runs the same frames of the made-up world with a state of its own. Prints one JSON object: for each way and
frame the share of labels that differ from float32's, and the distance of the carried voxels from float32's in parts of
their size; and both over the first and the last quarter of the frames behind the first. int8 goes through OpenVINO.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gdfusion_ros.cli.speed import Course, Way
from gdfusion_ros.sources.world import WorldSource

WAYS = {
    "fp32": Way("fp32", "torch", True, 1),
    "bf16": Way("bf16", "torch", True, 1),
    "int8": Way("int8", "openvino", True, 1),
}
HISTORY = "voxel"
"""The tensor of the state that is compared."""


def main() -> None:
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gdfusion-small")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--ways", default="bf16,int8", help="comma-separated (default %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.set_defaults(device="cpu")
    args = parser.parse_args()
    result = measure(args)
    if args.plot is not None:
        draw(result, args.plot)
    print(json.dumps(result))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The JSON object that is printed."""
    ways = ["fp32", *args.ways.split(",")]
    first = Course(WAYS["fp32"], WAYS["fp32"].load(args, []))
    image = first.model.config.image
    size = (image.height, image.width)
    calibration = list(WorldSource(1, 4, image_size=size))
    courses = {"fp32": first} | {
        name: Course(WAYS[name], WAYS[name].load(args, calibration)) for name in ways[1:]
    }
    found: dict[str, dict[str, list[float]]] = {name: {"labels": [], "history": []} for name in ways[1:]}
    for frame in tqdm(WorldSource(0, args.frames, image_size=size), total=args.frames, disable=None):
        for course in courses.values():
            course.step(frame, counts=False)
        assert first.state is not None
        history = first.state.tensors[HISTORY]
        for name, part in found.items():
            state = courses[name].state
            assert state is not None
            apart = (state.tensors[HISTORY] - history).norm() / history.norm()
            part["labels"].append(float((courses[name].labels[-1] != first.labels[-1]).mean()))
            part["history"].append(float(apart))
    quarter = max(1, (args.frames - 1) // 4)
    rows = [
        {
            "way": name,
            **{
                f"{what}_first_quarter": float(np.mean(values[1 : 1 + quarter]))
                for what, values in part.items()
            },
            **{f"{what}_last_quarter": float(np.mean(values[-quarter:])) for what, values in part.items()},
            **part,
        }
        for name, part in found.items()
    ]
    return {"model": first.model.name, "weights": first.model.weights, "frames": args.frames, "rows": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    """Both differences of every way over the frames."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    names = {"labels": "share of labels unlike float32's", "history": "distance of the history, relative"}
    for axes, (what, label) in zip(both, names.items()):
        for row in result["rows"]:
            axes.plot(row[what], label=row["way"])
        axes.set(xlabel="frame", ylabel=label, ylim=(0, None))
        axes.legend(fontsize="small")
    figure.suptitle(f"{result['model']}, {result['weights']}", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
