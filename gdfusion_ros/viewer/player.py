"""Timelines: a recorded one to play and step through, and a live one that follows what comes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from gdfusion_ros.viewer.page import Page
from gdfusion_ros.viewer.shot import Shot

KEPT = 60
"""Live shots that can be gone back to."""


class Player:
    """Buttons, a slider and a thread that shows one shot after the other."""

    def __init__(self, page: Page, shots: Sequence[Shot], rate: float = 10.0) -> None:
        """``rate`` is in shots a second; a player that cannot keep up shows every shot, later."""
        self.page = page
        self.shots = shots
        self._lock = threading.Lock()
        self._playing = threading.Event()
        self._closed = threading.Event()
        gui = page.server.gui
        with page.timeline:
            self.slider: Any = gui.add_slider(
                "Frame", min=0, max=max(1, len(shots) - 1), step=1, initial_value=0
            )
            self.play = gui.add_button("Play")
            self.step = gui.add_button_group("Step", ("Previous", "Next"))
            self.rate = gui.add_slider("Frames a second", min=0.5, max=30.0, step=0.5, initial_value=rate)
        self.slider.on_update(lambda _: self.show(int(self.slider.value)))
        self.play.on_click(lambda _: self.pause() if self._playing.is_set() else self.resume())
        self.step.on_click(lambda _: self.move(1 if self.step.value == "Next" else -1))
        self._shown = -1
        self.show(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def show(self, number: int) -> None:
        """Go to a shot."""
        with self._lock:
            number = min(max(number, 0), len(self.shots) - 1)
            if number == self._shown:
                return
            self._shown = number
            self.page.show(self.shots[number], number, f"frame {number + 1} of {len(self.shots)}")
        if int(self.slider.value) != number:
            self.slider.value = number

    def move(self, by: int) -> None:
        """Stop playing and step."""
        self.pause()
        self.show(self._shown + by)

    def resume(self) -> None:
        """Play on, from the beginning when at the end."""
        if self._shown >= len(self.shots) - 1:
            self.show(0)
        self.play.label = "Pause"
        self._playing.set()

    def pause(self) -> None:
        """Stop playing."""
        self.play.label = "Play"
        self._playing.clear()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._playing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._playing.wait()
            begin = time.monotonic()
            if self._shown >= len(self.shots) - 1:
                self.pause()
                continue
            self.show(self._shown + 1)
            # Interrupted at once by close, within a frame by pause.
            self._closed.wait(max(0.0, 1.0 / self.rate.value - (time.monotonic() - begin)))


class LivePlayer:
    """Shows the newest shot as it comes; holding lets one look at the last ones."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.shots: deque[Shot] = deque(maxlen=KEPT)
        self.received = 0
        self._lock = threading.Lock()
        gui = page.server.gui
        with page.timeline:
            self.follow: Any = gui.add_checkbox("Follow", True)
            self.back: Any = gui.add_slider("Frames back", min=0, max=KEPT - 1, step=1, initial_value=0)
        self.back.on_update(lambda _: self._look_back())

    def add(self, shot: Shot, age_ms: float | None = None) -> None:
        """Take in a new shot; ``age_ms`` is the time since its exposure."""
        with self._lock:
            self.shots.append(shot)
            self.received += 1
            if self.follow.value:
                words = f"grid {self.received}" + (
                    "" if age_ms is None else f", {age_ms:.0f} ms after the exposure"
                )
                self.page.show(shot, self.received, words)

    def _look_back(self) -> None:
        with self._lock:
            back = int(self.back.value)
            if not self.shots or (back == 0 and self.follow.value):
                return
            self.follow.value = False
            place = max(0, len(self.shots) - 1 - back)
            self.page.show(
                self.shots[place], self.received - (len(self.shots) - 1 - place), f"{back} grids ago"
            )
