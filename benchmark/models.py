"""What every network of this package needs on this machine: one full-size stream of each, in a process of its own.

  python benchmark/models.py --out runs/models.json                    all networks; those measured before are left out
  python benchmark/models.py --out runs/models.json cotr cotr-gf       only these, anew
  python benchmark/models.py --out runs/models.json --write            writes the table of docs/models.md

A network runs over frames of the made-up world with made-up weights, in float32 with the CPU kernels, on as many
threads as OMP_NUM_THREADS says. CPU time is that of a frame with history (the median of all but the first), the peak
is the largest resident memory of the process, the state is what a stream holds between two frames.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gdfusion_ros.cli.memory import measure_alone
from gdfusion_ros.model.config import load_config, model_names

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- measured: benchmark/models.py --write -->", "<!-- end of what is measured -->"

PUBLISHED = {
    "bevdetocc-gf": "mIoU 43.6",
    "fbocc-gf": "mIoU 42.1",
    "alocc3d-gf": "mIoU 46.5",
    "alocc3d-gf-wo-mask": "mIoU 38.4, RayIoU 44.1",
    "alocc3d-gf-lidar-depth": "mIoU 54.9",
    "alocc3d-gf-surroundocc": "mIoU 25.5",
    "alocc2d-gf-openoccupancy": "mIoU 17.9",
    "alocc2d-gf-openoccupancy-lidar-depth": "mIoU 24.5",
    "bevdetocc-sf": "mIoU 41.9",
    "fbocc": "mIoU 39.8",
    "alocc3d": "mIoU 45.5",
    "alocc2d": "mIoU 44.8",
    "alocc2d-mini": "mIoU 41.4",
    "alocc-flow-3d": "OccScore 43.1",
    "alocc-flow-2d": "OccScore 41.9",
    "cotr": "mIoU 41.4",
    "surroundocc": "mIoU 20.3",
}
"""As the authors' repositories and papers give them; not measured here, where no published weights were at hand."""


def main() -> None:
    """Measure what is missing, or write the page's table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="only these, anew (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file that keeps what was measured")
    parser.add_argument("--frames", type=int, default=3, help="of each stream (%(default)s)")
    parser.add_argument("--write", action="store_true", help="write the table instead of measuring")
    args = parser.parse_args()
    rows: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if args.write:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text[: text.index(BEGIN)], text[text.index(END) :]
        PAGE.write_text("\n".join([before + BEGIN, *table(rows), after]), encoding="utf-8")
        return
    for name in tqdm(args.models or [n for n in model_names() if n not in rows], "networks"):
        row = measure_alone(name, args.frames)
        # Somebody else may have measured meanwhile.
        rows = json.loads(args.out.read_text()) if args.out.is_file() else {}
        rows[name] = {"frames": args.frames, **row}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
        print(f"{name}: {row['cpu_s']:.1f} CPU s a frame, peak {row['peak_mb']:.0f} MB", flush=True)


def table(rows: dict[str, Any]) -> list[str]:
    """The page's table, a line for each network that was measured."""
    lines = [
        "| model | labels | images | voxels | published | CPU s a frame | peak, MB | state, bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in model_names():
        if name in rows:
            config, row = load_config(name), rows[name]
            images = (len(config.cameras), config.image.height, config.image.width)
            lines.append(
                f"| `{name}` | {config.labels.set} | {_times(images)} | {_times(config.grid.output.shape)} "
                f"| {PUBLISHED.get(name, '')} | {row['cpu_s']:.1f} | {row['peak_mb']:,.0f} "
                f"| {row['state_bytes'][-1]:,} |"
            )
    return lines


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))


if __name__ == "__main__":
    main()
