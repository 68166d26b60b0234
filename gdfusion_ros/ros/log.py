"""The node's words: what the rest of the package warns of, and what must not be said a hundred times a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any


class ToRosLog(logging.Handler):
    """Passes the warnings of the rest of the package on to a node's log."""

    def __init__(self, logger: Any) -> None:
        """``logger`` is a node's (`get_logger`)."""
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Say it with the same severity."""
        if record.levelno >= logging.ERROR:
            self._logger.error(record.getMessage())
        else:
            self._logger.warning(record.getMessage())


class NowAndThen:
    """Says a thing at once when it is new, and then every so often: rclpy's own throttle cannot tell one camera from
    another."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say = say
        self._said: dict[tuple[str, ...], float] = {}

    def __call__(self, text: str, what: tuple[str, ...], seconds: float) -> None:
        """Say ``text``, unless something was said of ``what`` within so many seconds."""
        now = time.monotonic()
        if now - self._said.get(what, -seconds) >= seconds:
            self._said[what] = now
            self._say(text)

    def forget(self, kind: str) -> None:
        """Let everything of which ``what`` begins with this be new again."""
        self._said = {what: when for what, when in self._said.items() if what[0] != kind}
