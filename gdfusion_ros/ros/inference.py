"""One thread that runs the network, with one slot in front of it in which the newest frame wins."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from gdfusion_ros.assembly.assembler import FrameAssembler
from gdfusion_ros.assembly.pending import PendingFrame
from gdfusion_ros.frame import CameraFrame, Occupancy
from gdfusion_ros.stream import OccupancyStream

log = logging.getLogger(__name__)


@dataclass
class _Waiting:
    frame: PendingFrame
    since: float


class InferenceWorker:
    """Takes frames from an assembler to a stream. Start it, `submit` frames, stop it; each once."""

    def __init__(
        self,
        assembler: FrameAssembler,
        stream: OccupancyStream,
        deliver: Callable[[Occupancy], None],
        on_failure: Callable[[str, bool], None],
    ) -> None:
        """``deliver`` gets every occupancy; ``on_failure(text, fatal)`` every frame that failed. Both in the thread."""
        self.assembler = assembler
        self.stream = stream
        self.failures: Counter[str] = Counter()
        self._deliver = deliver
        self._on_failure = on_failure
        self._condition = threading.Condition()
        self._slot: _Waiting | None = None
        self._stopping = False
        self._stream_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the frame under way end, and wait for the thread. A frame in the slot is dropped."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        if self._slot is not None:
            self.assembler.drop(self._slot.frame, "stopped")
            self._slot = None

    def submit(self, frame: PendingFrame) -> None:
        """Put a frame into the slot; one that waits there is dropped as superseded."""
        with self._condition:
            older, self._slot = self._slot, _Waiting(frame, time.perf_counter())
            if older is not None:
                self.assembler.drop(older.frame, "superseded", newer=frame)
            self._condition.notify()

    @contextmanager
    def between_frames(self) -> Iterator[OccupancyStream]:
        """The stream, while no frame is under way: to reset, save or load it."""
        with self._stream_lock:
            yield self.stream

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._slot is not None or self._stopping)
                if self._stopping:
                    return
                waiting, self._slot = self._slot, None
            assert waiting is not None
            try:
                self._process(waiting)
            except Exception as error:  # the thread lives on whatever one frame does
                log.exception("frame at %d ns failed", waiting.frame.stamp_ns)
                # Whatever it was, it may lie in the state (a loaded file's, say): history starts anew.
                with self._stream_lock:
                    self.stream.forget("failed_frame")
                self._fail("internal", f"frame at {waiting.frame.stamp_ns} ns: {error}", fatal=False)

    def _process(self, waiting: _Waiting) -> None:
        begin = time.perf_counter()
        frame = self.assembler.resolve(waiting.frame)
        if frame is None:
            return
        decoded = time.perf_counter()
        with self._stream_lock:
            try:
                occupancy = self._step_or_retry(frame)
            except ValueError as error:
                self._fail("rejected", str(error), fatal=False)
                return
            except MemoryError as error:
                self._fail("out_of_memory", str(error), fatal=True)
                return
        timings = {
            "wait": (begin - waiting.since) * 1e3,
            "decode": (decoded - begin) * 1e3,
            **occupancy.timings_ms,
        }
        self._deliver(replace(occupancy, timings_ms=timings))

    def _step_or_retry(self, frame: CameraFrame) -> Occupancy:
        """Step; when memory runs out, once more without the temporal state. Raises MemoryError when that fails too."""
        try:
            return self.stream.step(frame)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            log.error("out of memory: the temporal state is dropped and the frame is tried again (%s)", error)
        self.stream.forget("out_of_memory")
        free_memory()
        try:
            return self.stream.step(frame)
        except (RuntimeError, MemoryError) as error:
            if _out_of_memory(error):
                raise MemoryError(f"out of memory even without temporal state: {error}") from None
            raise

    def _fail(self, reason: str, text: str, fatal: bool) -> None:
        self.failures[reason] += 1
        self._on_failure(text, fatal)


def _out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a bare RuntimeError ("not enough memory"); its CUDA one a subclass ("out of
    # memory").
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text


def free_memory() -> None:
    """Give back what is not used any more, the accelerator's too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
