"""Which frame comes when: a function of the seed and the step, so that a resumed training goes on exactly."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from gdfusion_ros.training.data import Sequence, WorldSequences
from gdfusion_ros.training.nuscenes import NuScenesSequences

CHUNK = 32
"""Sequences whose frames are shuffled together: as many as may be held in memory at a time."""


def single_frame(k: int, sequences: int, frames: int, seed: int) -> tuple[int, int]:
    """(sequence, frame) of the ``k``-th single frame of a training."""
    chunk = min(CHUNK, sequences)
    block, place = divmod(k, chunk * frames)
    shuffled = np.random.default_rng([seed, block]).permutation(chunk * frames)[place]
    return (block * chunk + int(shuffled) // frames) % sequences, int(shuffled) % frames


def stream_frame(step: int, slot: int, slots: int, sequences: int, frames: int) -> tuple[int, int]:
    """(sequence, frame) that stream ``slot`` of ``slots`` shows at a step; all streams begin anew together."""
    block, frame = divmod(step, frames)
    return (block * slots + slot) % sequences, frame


def _give_way() -> None:
    # On a small machine the training's threads would wait for one another at the worker's pace.
    if hasattr(os, "nice"):
        os.nice(10)


class Loader:
    """Sequences by number, the latest kept in memory and the coming ones drawn ahead by worker processes."""

    def __init__(
        self, sequences: WorldSequences | NuScenesSequences, workers: int, keep: int = 2 * CHUNK + 8
    ) -> None:
        self._sequences = sequences
        self._keep = keep
        self._held: OrderedDict[int, Sequence] = OrderedDict()
        self._coming: dict[int, Future[Sequence]] = {}
        self.waited = 0.0
        """Seconds that were spent waiting for sequences to be drawn."""
        # Spawned, not forked: a fork of a process with threads may hang.
        self._pool = (
            ProcessPoolExecutor(workers, get_context("spawn"), initializer=_give_way) if workers else None
        )

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, number: int) -> Sequence:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        begun = time.monotonic()
        future = self._coming.pop(number, None)
        self._held[number] = self._sequences[number] if future is None else future.result()
        self.waited += time.monotonic() - begun
        while len(self._held) > self._keep:
            self._held.popitem(last=False)
        return self._held[number]

    def expect(self, numbers: Iterable[int]) -> None:
        """Begin to draw sequences that will be asked for soon."""
        if self._pool is None:
            return
        for number in numbers:
            if number not in self._held and number not in self._coming:
                self._coming[number] = self._pool.submit(self._sequences.__getitem__, number)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
