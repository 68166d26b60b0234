"""Ten thousand frames through one stream: does it stay the size it is, and finite?

    python benchmark/long_stream.py
    python benchmark/long_stream.py --frames 500 --model bevdetocc-gf --weights random:0

Frames of the made-up world are driven over and over, forth and back, so that one sequence goes on without end. Prints
one JSON object: bytes of the temporal state, resident memory (after a tenth of the frames, when every buffer is there,
at the end, and the most), whether every number of the state and every vector of the flow is finite, and how far the
labels' shares have moved between the beginning and the end. Fails when the state changes its size, memory grows by
--growth MB or more, or something is not finite.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from gdfusion_ros import CameraFrame, Occupancy, OccupancyStream, load_model
from gdfusion_ros.sources.world import WorldSource

DRAWN = 16
"""Frames of the made-up world that are driven over and over."""


def main() -> int:
    """Run it; 0 when the stream is stable."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--model", default="gdfusion-small")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--growth", type=float, default=50.0, help="MB that are a leak (%(default)s)")
    args = parser.parse_args()
    stream = OccupancyStream(load_model(args.model, args.weights))
    sizes, memory, finite = set(), [], True
    shares: list[npt.NDArray[np.float64]] = []
    for number, frame in enumerate(tqdm(endless(args.frames), total=args.frames, disable=None)):
        occupancy = stream.step(frame)
        sizes.add(occupancy.state_bytes)
        finite &= is_finite(stream, occupancy)
        shares.append(np.bincount(occupancy.labels.ravel(), minlength=256) / occupancy.labels.size)
        if number >= args.frames // 10:
            memory.append(resident_mb())
    result: dict[str, Any] = {
        "frames": args.frames,
        "sequences": stream.sequence,
        "state_bytes": sorted(sizes),
        "finite": finite,
        "resident_mb": {"first": memory[0], "last": memory[-1], "most": max(memory)},
        "growth_mb": round(max(memory) - memory[0], 1),
        "label_shift": round(label_shift(shares), 4),
    }
    print(json.dumps(result))
    stable = stream.sequence == 1 and len(sizes) == 1 and finite and result["growth_mb"] < args.growth
    return 0 if stable else 1


def endless(frames: int) -> Iterator[CameraFrame]:
    """The made-up drive forth and back, at half a second a frame, each as many times as needed."""
    drawn = list(WorldSource(seed=5, frames=DRAWN))
    there_and_back = [*range(DRAWN), *range(DRAWN - 2, 0, -1)]
    for number in range(frames):
        frame = drawn[there_and_back[number % len(there_and_back)]]
        shift = drawn[0].stamp_ns + number * 500_000_000 - frame.stamp_ns
        views = tuple(replace(view, stamp_ns=view.stamp_ns + shift) for view in frame.views)
        yield replace(frame, stamp_ns=frame.stamp_ns + shift, views=views)


def is_finite(stream: OccupancyStream, occupancy: Occupancy) -> bool:
    """Whether every number of the temporal state and every vector that is said to be one is finite."""
    assert stream.state is not None
    tensors = all(bool(t.isfinite().all()) for t in stream.state.tensors.values() if t.is_floating_point())
    flow = occupancy.flow
    return tensors and (flow is None or bool(np.isfinite(flow.vectors[flow.valid]).all()))


def label_shift(shares: list[npt.NDArray[np.float64]]) -> float:
    """How much of the grid has other labels at the end than at the beginning: half the sum of absolute differences
    between the mean shares over the last drive forth and back and over the second one."""
    lap = 2 * DRAWN - 2
    early, late = np.mean(shares[lap : 2 * lap] or shares[:1], axis=0), np.mean(shares[-lap:], axis=0)
    return float(np.abs(early - late).sum() / 2)


def resident_mb() -> float:
    """Memory of this process that is in RAM."""
    fields = dict(
        line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    return round(int(fields["VmRSS"].split()[0]) / 1024, 1)


if __name__ == "__main__":
    sys.exit(main())
