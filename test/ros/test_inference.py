"""The inference thread: newest wins, one retry when memory runs out, and it outlives whatever a frame does."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from nodes import wait_for

from gdfusion_ros.assembly.pending import PendingFrame
from gdfusion_ros.frame import Occupancy
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.ros.inference import InferenceWorker


def one_cell(stamp_ns: int) -> Occupancy:
    """A grid of one cell."""
    grid = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1, 1, 1))
    labels = np.zeros((1, 1, 1), np.uint8)
    return Occupancy(labels, grid, OCC3D, stamp_ns, 1, 0, (), (), "net", "random:0", np.eye(4))


class Assembler:
    """Counts what the worker gives back."""

    def __init__(self) -> None:
        self.dropped: list[tuple[int, str]] = []

    def resolve(self, frame):
        return SimpleNamespace(stamp_ns=frame.stamp_ns)

    def drop(self, frame, reason, newer=None):
        self.dropped.append((frame.stamp_ns, reason))


class Stream:
    """Fails as told, and can be held up."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.forgotten: list[str] = []
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()

    def step(self, frame):
        self.begun.set()
        assert self.free.wait(30)
        if self.errors:
            raise self.errors.pop(0)
        return one_cell(frame.stamp_ns)

    def forget(self, reason):
        self.forgotten.append(reason)


@pytest.fixture
def made(monkeypatch):
    """Makes a started worker: (worker, delivered stamps, failures)."""
    workers = []

    def make(stream):
        delivered, failures = [], []
        worker = InferenceWorker(
            Assembler(),
            stream,
            lambda occupancy: delivered.append(occupancy.stamp_ns),
            lambda text, fatal: failures.append((text, fatal)),
        )
        worker.start()
        workers.append(worker)
        return worker, delivered, failures

    yield make
    for worker in workers:
        worker.stop()


def pending(stamp: int) -> PendingFrame:
    return PendingFrame(stamp, {}, None)


def test_the_newest_frame_wins_the_slot(made):
    stream = Stream()
    stream.free.clear()
    worker, delivered, _ = made(stream)
    worker.submit(pending(1))
    assert stream.begun.wait(30)
    for stamp in (2, 3, 4):
        worker.submit(pending(stamp))
    stream.free.set()
    wait_for(lambda: delivered == [1, 4], "the first and the newest frame")
    assert worker.assembler.dropped == [(2, "superseded"), (3, "superseded")]


def test_when_memory_runs_out_the_state_is_dropped_and_the_frame_tried_again(made):
    stream = Stream(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    worker, delivered, failures = made(stream)
    worker.submit(pending(1))
    wait_for(lambda: delivered == [1], "the second try")
    assert stream.forgotten == ["out_of_memory"]
    assert failures == []


def test_when_the_second_try_fails_too_it_is_fatal(made):
    stream = Stream(MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory"))
    worker, delivered, failures = made(stream)
    worker.submit(pending(1))
    wait_for(lambda: failures, "the failure")
    assert failures[0][1]
    assert delivered == []


def test_a_frame_that_does_not_fit_the_model_costs_itself_only(made):
    worker, delivered, failures = made(Stream(ValueError("CAM_BACK: intrinsics")))
    worker.submit(pending(1))
    wait_for(lambda: failures, "the failure")
    worker.submit(pending(2))
    wait_for(lambda: delivered == [2], "the next frame")
    assert not failures[0][1]


def test_an_error_nobody_thought_of_starts_history_anew_and_the_thread_lives_on(made):
    stream = Stream(RuntimeError("shapes do not match"))
    worker, delivered, failures = made(stream)
    worker.submit(pending(1))
    wait_for(lambda: failures, "the failure")
    worker.submit(pending(2))
    wait_for(lambda: delivered == [2], "the next frame")
    assert stream.forgotten == ["failed_frame"]


def test_stopping_drops_what_waits_and_joins_the_thread(made):
    stream = Stream()
    stream.free.clear()
    worker, delivered, _ = made(stream)
    worker.submit(pending(1))
    assert stream.begun.wait(30)
    worker.submit(pending(2))
    threading.Timer(0.2, stream.free.set).start()
    worker.stop()
    assert delivered == [1]
    assert worker.assembler.dropped == [(2, "stopped")]
