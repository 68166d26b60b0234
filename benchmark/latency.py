"""From a camera's header stamp to the grid: what does the node add to the network's own time?

    python benchmark/latency.py
    python benchmark/latency.py --image-size 900 1600 --model bevdetocc-gf --weights random:0 --frames 10

Six cameras expose at the same instant and send their JPEGs of the made-up world at once, with the ego pose of that
instant, twice a second, to the node in a process of its own; the stamps are the system's time. For each grid: the time
from the stamp to its arrival here, and what the node says the network took (`inference` in ~/latency). The rest is the
node's: transport there and back, checking, decoding, resizing, matching, placing, waiting, packing, publishing. Prints
one JSON object; on a machine that does something else too, the processor's queue is part of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from running import Listener, Wire, listening, node_process, own_domain, sensor_topics

from gdfusion_ros.frame import CameraView
from gdfusion_ros.sinks.bag import SensorRecorder, pixel_from_calibrated
from gdfusion_ros.sources.world import WorldSource

WARM = 3
"""Frames that do not count: the first builds tables, the second is the first with a history."""
AHEAD_NS = 100_000_000
"""How long before its stamp a frame's messages are packed."""
QUALITY = 80
"""Of the JPEGs: at 900 x 1600 they are then as large as nuScenes' own, 100 to 160 kB."""


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--period", type=float, default=0.5, help="seconds between frames (%(default)s)")
    parser.add_argument("--image-size", type=int, nargs=2, default=(96, 256), metavar=("H", "W"))
    parser.add_argument("--model", default="gdfusion-small")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--out", type=Path, default=Path("latency_output"), help="folder (%(default)s)")
    args = parser.parse_args()
    own_domain()
    with listening() as (node, listener):
        wire = Wire(node)
        sensors = SensorRecorder(wire)  # type: ignore[arg-type]
        drive = list(WorldSource(seed=1, frames=args.frames + WARM, image_size=tuple(args.image_size)))
        with node_process(args.out, model=args.model, weights=args.weights, inference_period=0.0):
            for number, frame in enumerate(drive):
                images = [(view, jpeg(view)) for view in frame.views]
                if number == 0:
                    wire.settle(sensor_topics(view.name for view in frame.views))
                    sensors.static({view.name: view.ego_from_camera for view in frame.views}, time.time_ns())
                    time.sleep(0.5)
                stamp = time.time_ns() + AHEAD_NS
                with wire.together_at(stamp):
                    sensors.ego(stamp, frame.world_from_ego, (np.zeros(3), np.zeros(3)))
                    for view, encoded in images:
                        k = pixel_from_calibrated(view) @ view.intrinsics
                        sensors.camera(view.name, stamp, k, view.image.shape[:2], encoded)
                wait_for_grid(listener, stamp)
                time.sleep(max(0.0, args.period - (time.time_ns() - stamp) * 1e-9))
            time.sleep(1.0)
    grids = listener.grids[WARM:]
    whole = [(grid.arrived_ns - grid.stamp_ns) * 1e-6 for grid in grids]
    network = [float(listener.latencies[grid.stamp_ns]["inference_ms"]) for grid in grids]
    added = [a - b for a, b in zip(whole, network, strict=True)]
    stages = {
        stage: spread([float(listener.latencies[grid.stamp_ns][f"{stage}_ms"]) for grid in grids])
        for stage in ("wait", "decode", "inference", "publish", "total")
    }
    result: dict[str, Any] = {
        "frames": len(grids),
        "stamp_to_grid_ms": spread(whole),
        "network_ms": spread(network),
        "added_ms": spread(added),
        "added_share": round(statistics.median(added) / statistics.median(network), 3),
        "stages_ms": stages,
    }
    print(json.dumps(result))
    return 0 if grids else 1


def jpeg(view: CameraView) -> bytes:
    """The view's image as a camera would send it."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and 95th percentile."""
    return {
        "least": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "p95": round(float(np.percentile(values, 95)), 2),
    }


def wait_for_grid(listener: Listener, stamp: int) -> None:
    """Return when the grid and its latency have come; SystemExit when they do not."""
    deadline = time.monotonic() + 120
    while stamp not in listener.latencies or not any(grid.stamp_ns == stamp for grid in listener.grids[-3:]):
        if time.monotonic() > deadline:
            raise SystemExit("no grid came")
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(main())
