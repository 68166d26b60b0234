"""One source through one network, offline: the loop that `gdfusion run` and its batches share, and its single step."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gdfusion_ros.cli.inputs import source_of, spread
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, Occupancy
from gdfusion_ros.stream import OccupancyStream, SequenceRules

if TYPE_CHECKING:
    from gdfusion_ros.model.model import OccupancyModel


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads for the network inside the `with`; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stream_of(
    model: OccupancyModel,
    args: argparse.Namespace,
    on_restart: Callable[[str, CameraFrame], None] | None = None,
) -> OccupancyStream:
    """A stream with the rules that the node has under the same options."""
    rules = SequenceRules(restart_after_missing=args.missing_camera == "skip")
    return OccupancyStream(model, rules, on_restart)


def step(stream: OccupancyStream, frame: CameraFrame) -> Occupancy:
    """The stream's next step. Raises UserError when the frame does not fit the network."""
    try:
        return stream.step(frame)
    except ValueError as error:
        raise UserError(f"the frame at {frame.stamp_ns} ns does not fit the model: {error}") from None


def run_source(
    name: str,
    args: argparse.Namespace,
    load_for: Callable[[object], OccupancyModel],
    write: Callable[[int, Occupancy], None],
    progress: bool = True,
) -> dict[str, Any]:
    """Run the source of this name; ``write`` takes each grid with its number, ``load_for(source)`` gives the network.

    Gives what was made, ready for JSON. Raises UserError when the source cannot be read, a frame does not fit the
    network, or no frame came.
    """
    source = source_of(name, args)
    stream = stream_of(load_for(source), args)
    state_bytes: list[int] = []
    stages: dict[str, list[float]] = {}
    total = (
        min((n for n in (len(source), args.frames) if n), default=None)
        if isinstance(source, Sized)
        else args.frames
    )
    bar = tqdm(
        islice(source, args.frames), total=total, unit="frame", desc="run", disable=None if progress else True
    )
    for number, frame in enumerate(bar):
        occupancy = step(stream, frame)
        write(number, occupancy)
        state_bytes.append(occupancy.state_bytes)
        for stage, value in occupancy.timings_ms.items():
            stages.setdefault(stage, []).append(value)
    dropped = images_dropped(source)
    if not state_bytes:
        reasons = ", ".join(f"{count} {why}" for why, count in dropped.items())
        raise UserError(f"{name} gave no frame" + (f"; images not used: {reasons}" if reasons else ""))
    return {
        "frames": len(state_bytes),
        "sequences_started": stream.sequence,
        "restarts": dict(stream.restarts),
        "images_dropped": dropped,
        "state_bytes": state_bytes,
        "latency_ms": {stage: spread(values) for stage, values in stages.items()},
        "model": stream.model.name,
        "weights": stream.model.weights,
    }


def images_dropped(source: object) -> dict[str, int]:
    """Why images of a recording were not used."""
    from gdfusion_ros.sources.bag import BagSource

    if not isinstance(source, BagSource):
        return {}
    drops: Counter[str] = Counter()
    for counts in source.assembler.counts().values():
        drops.update(counts.dropped)
    return dict(drops)
