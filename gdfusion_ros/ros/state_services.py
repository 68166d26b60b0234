"""The temporal state from outside: ~/reset, ~/save_state, ~/load_state, and a file at the node's start and end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.node import Node
from std_srvs.srv import Trigger

from gdfusion_ros.errors import UserError
from gdfusion_ros.ros.inference import InferenceWorker
from gdfusion_ros.stream import OccupancyStream


class StateServices:
    """Offers the services on a node. They wait for the frame under way; none of them brings the node down."""

    def __init__(self, node: Node, path: str, worker: Callable[[], InferenceWorker | None]) -> None:
        """``path`` is the state file, empty when there is none; ``worker()`` gives None while the node is not
        active."""
        self._log = node.get_logger()
        self._path = Path(path) if path else None
        self._worker = worker
        node.create_service(Trigger, "~/reset", self._on_reset)
        node.create_service(Trigger, "~/save_state", self._on_save)
        node.create_service(Trigger, "~/load_state", self._on_load)

    def restore(self, stream: OccupancyStream) -> None:
        """Go on from the state file, if it is there. A file that is no good costs the history, not the start."""
        if self._path is None or not self._path.is_file():
            return
        try:
            self._log.info(self._load(stream))
        except UserError as error:
            self._log.error(f"starting without history: {error}")

    def keep(self, stream: OccupancyStream) -> None:
        """Write the state file, as at the node's end."""
        if stream.state is None:
            return
        try:
            self._log.info(self._save(stream))
        except (UserError, OSError) as error:
            self._log.error(f"the temporal state is lost: {error}")

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def reset(stream: OccupancyStream) -> str:
            stream.reset("reset_service")
            return "the next frame starts a new sequence"

        return self._answer(response, reset)

    def _on_save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, self._save)

    def _on_load(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, self._load)

    def _answer(self, response: Any, do: Callable[[OccupancyStream], str]) -> Any:
        worker = self._worker()
        try:
            if worker is None:
                raise UserError("the node is not active")
            with worker.between_frames() as stream:
                response.message = do(stream)
            response.success = True
        except (UserError, OSError) as error:
            response.success, response.message = False, str(error)
        return response

    def _save(self, stream: OccupancyStream) -> str:
        path = self._file()
        if stream.state is None:
            raise UserError("there is no temporal state before the first frame")
        stream.save(path)
        return f"temporal state written to {path}"

    def _load(self, stream: OccupancyStream) -> str:
        path = self._file()
        stream.load(path)
        return f"temporal state read from {path}"

    def _file(self) -> Path:
        if self._path is None:
            raise UserError("no file is named for it: start the node with the parameter state_file")
        return self._path
