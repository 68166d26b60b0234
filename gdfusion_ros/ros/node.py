"""OccupancyNode: camera images and transforms in, semantic occupancy out.

Callbacks only store. Images are decoded and resized in a small pool of threads as they arrive, frames are
assembled by `FrameAssembler`, and one thread runs the network through `OccupancyStream`. A lifecycle node
that configures (loads the network) and activates (subscribes) itself unless `autostart` is off.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from gdfusion_ros.assembly.assembler import FrameAssembler
from gdfusion_ros.assembly.loading import LoadedImage, load_image
from gdfusion_ros.assembly.rig import Rig, find_topics, read_rig
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView, Occupancy
from gdfusion_ros.model.model import load_for_rig
from gdfusion_ros.ros.diagnostics import Health
from gdfusion_ros.ros.inference import InferenceWorker
from gdfusion_ros.ros.parameters import Settings, changed, declare
from gdfusion_ros.ros.publishers import OccupancyPublishers
from gdfusion_ros.ros.subscriptions import Subscriptions
from gdfusion_ros.stream import OccupancyStream

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
DECODERS = 2
"""Threads that decode images: decoding is a fifth of a small network's time, and releases the interpreter."""
REPEAT_SECONDS = 5.0
"""How often the same problem of the same camera is said again."""


@dataclass
class _Running:
    """What exists while the node is active."""

    assembler: FrameAssembler
    worker: InferenceWorker
    decoders: ThreadPoolExecutor
    subscriptions: Subscriptions
    timer: Any


class OccupancyNode(LifecycleNode):  # type: ignore[misc]
    """The ROS 2 node. `main` starts one; tests and containers may make it with a model of their own
    loading."""

    def __init__(self, **arguments: Any) -> None:
        """Declares the parameters; ``arguments`` go to rclpy's Node. Raises ValueError for a value out of
        bounds."""
        super().__init__("gdfusion", **arguments)
        self.settings: Settings = declare(self)
        self.model: Any = None
        self.rig: Rig | None = None
        self.health = Health(())
        self._outputs: OccupancyPublishers | None = None
        self._running: _Running | None = None
        self._arrivals: dict[int, float] = {}
        self._restart_reason: str | None = None
        self._stop_requested: str | None = None
        self._told: dict[tuple[str, str], float] = {}
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/save_state", self._on_save_state)
        self.create_service(Trigger, "~/load_state", self._on_load_state)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_timer(1.0, self._publish_diagnostics, clock=self._steady)

    # The life cycle.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the rig and load the network."""
        return self._transition("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and run."""
        return self._transition("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop running; the network stays loaded, the temporal state goes."""
        return self._transition("deactivate", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network."""
        return self._transition("clean up", self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything."""
        return self._transition("shut down", self.close)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured again."""
        return self._transition("recover", self.close)

    def _transition(self, what: str, do: Callable[[], None]) -> TransitionCallbackReturn:
        # rclpy swallows what a transition raises, so it is said here.
        try:
            do()
        except UserError as error:
            self.get_logger().error(f"cannot {what}: {error}")
            self.health.last_error = str(error)
            return FAILURE
        except Exception as error:
            self.get_logger().error(f"cannot {what}: {error}\n{traceback.format_exc()}")
            self.health.last_error = f"cannot {what}: {error}"
            return TransitionCallbackReturn.ERROR
        return SUCCESS

    def _configure(self) -> None:
        settings = self.settings
        calibration = settings.text("calibration")
        keys = ("transport", "base_frame", "fixed_frame", "motion", "odometry_topic", "lidar_frame")
        self.rig = read_rig(
            find_topics(settings.text("topics")),
            Path(calibration) if calibration else None,
            **{key: settings.text(key) for key in keys},
        )
        if settings.number("threads"):
            import torch

            torch.set_num_threads(int(settings.number("threads")))
        name, weights = settings.text("model"), settings.text("weights")
        self.model = load_for_rig(name, weights, settings.text("device"), self.rig.names)
        self.health = Health(self.rig.names)
        self._outputs = OccupancyPublishers(self, self.model.label_set)
        self.get_logger().info(f"{self.model.name} with weights {self.model.weights} on {self.model.device}")
        if self._random_weights:
            self.get_logger().warning("RANDOM WEIGHTS: the grids have the right form and mean nothing")

    def _activate(self) -> None:
        assert self.rig is not None
        assert self.model is not None
        decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        assembler = FrameAssembler(
            self.rig,
            self.settings.assembly,
            load=self._load,
            submit=decoders.submit,
            on_problem=self._on_problem,
        )
        stream = OccupancyStream(self.model, self.settings.rules, on_restart=self._on_restart)
        state_file = self.settings.text("state_file")
        if self.settings.flag("load_state_on_start") and Path(state_file).is_file():
            stream.load(Path(state_file))
            self.get_logger().info(f"temporal state read from {state_file}")
        worker = InferenceWorker(assembler, stream, self._deliver, self._on_failure)
        worker.start()
        subscriptions = Subscriptions(self, self.rig, self.settings, assembler, self._advance, self._on_image)
        timer = self.create_timer(0.05, self._advance, clock=self._steady)
        self._running = _Running(assembler, worker, decoders, subscriptions, timer)
        self.get_logger().info(f"active: {len(self.rig.cameras)} cameras, anchor {self.rig.anchor}")

    def _deactivate(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        running.subscriptions.destroy()
        self.destroy_timer(running.timer)
        running.worker.stop()
        running.decoders.shutdown(wait=True, cancel_futures=True)
        if self.settings.flag("save_state_on_exit"):
            self._save_state(running.worker.stream)
        self._arrivals.clear()

    def _clean_up(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy(self)
            self._outputs = None
        self.model = self.rig = None
        self.health = Health(())

    def close(self) -> None:
        """Stop the inference thread and free everything, whatever the state."""
        self._deactivate()
        self._clean_up()

    # What comes in.

    def _on_image(self, camera: str, message: Any) -> None:
        self.health.cameras[camera].arrived()
        if self.rig is None or camera != self.rig.anchor:
            return
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        self._arrivals[stamp] = time.perf_counter()
        while len(self._arrivals) > 64:
            self._arrivals.pop(next(iter(self._arrivals)), None)

    def _advance(self) -> None:
        if self._running is None:
            return
        for frame in self._running.assembler.poll(int(self.get_clock().now().nanoseconds)):
            self._running.worker.submit(frame)

    def _load(self, camera: str, message: Any, raw: bool, /) -> LoadedImage:
        """Decode, resize and crop an image, in a decoder's thread. The poses come later, at the frame's
        assembly."""
        image = load_image(camera, message, raw).image
        nowhere = np.eye(4)
        view = self.model.prepare(CameraView(camera, image, np.eye(3), nowhere, nowhere, 0))
        return LoadedImage(view.image, view.image_transform)

    # What goes out. Called in the inference thread.

    def _deliver(self, occupancy: Occupancy) -> None:
        assert self.rig is not None
        assert self._outputs is not None
        settings, rig = self.settings, self.rig
        frame = rig.base_frame if occupancy.grid.frame == "ego" else rig.lidar_frame or "LIDAR_TOP"
        timings = dict(occupancy.timings_ms)
        timings["publish"] = self._outputs.publish(occupancy, frame, settings)
        arrived = self._arrivals.pop(occupancy.stamp_ns, None)
        timings["total"] = 0.0 if arrived is None else (time.perf_counter() - arrived) * 1e3
        reason, self._restart_reason = self._restart_reason, None
        self._outputs.publish_latency(occupancy, timings, reason)
        slow_ms = settings.number("slow_frame") * 1e3
        self.health.frame_made(occupancy, timings, slow_ms)
        if timings["total"] > slow_ms:
            text = f"slow frame: {timings['total']:.0f} ms from image to grid"
            self.get_logger().warning(text, throttle_duration_sec=10.0)

    def _on_restart(self, reason: str, frame: CameraFrame) -> None:
        self._restart_reason = reason
        self.health.restarts[reason] += 1
        self.get_logger().info(f"a new sequence starts at {frame.stamp_ns / 1e9:.3f} s: {reason}")

    def _on_failure(self, text: str, fatal: bool) -> None:
        self.health.last_error = text
        self.get_logger().error(text)
        if fatal:
            self._stop_requested = text

    # Small services.

    def _on_problem(self, where: str, reason: str, text: str) -> None:
        self.health.problem(where, reason, text)
        # At once when it is new, then every few seconds: rclpy's own throttle cannot tell one camera from another.
        now = time.monotonic()
        if now - self._told.get((where, reason), -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._told[where, reason] = now
            self.get_logger().warning(f"{where}: {text}")

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._running is None:
            response.success, response.message = False, "the node is not active"
            return response
        with self._running.worker.between_frames() as stream:
            stream.reset("reset_service")
        response.success, response.message = True, "the next frame starts a new sequence"
        return response

    def _on_save_state(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._with_state_file(response, self._save_state)

    def _on_load_state(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def load(stream: OccupancyStream) -> str:
            path = self.settings.text("state_file")
            stream.load(Path(path))
            return f"read from {path}"

        return self._with_state_file(response, load)

    def _save_state(self, stream: OccupancyStream) -> str:
        path = self.settings.text("state_file")
        if stream.state is None or not path:
            return "there is nothing to save"
        stream.save(Path(path))
        return f"written to {path}"

    def _with_state_file(
        self, response: Trigger.Response, do: Callable[[OccupancyStream], str]
    ) -> Trigger.Response:
        if self._running is None or not self.settings.text("state_file"):
            response.success = False
            response.message = (
                "the node is not active" if self._running is None else "set the parameter state_file"
            )
            return response
        try:
            with self._running.worker.between_frames() as stream:
                response.message = do(stream)
            response.success = True
        except (UserError, OSError) as error:
            response.success, response.message = False, str(error)
        return response

    def _on_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        settings, result = changed(self.settings, list(parameters))
        if result.successful and settings is not self.settings:
            self.settings = settings
            if self._running is not None:
                self._running.assembler.configure(settings.assembly)
                self._running.worker.stream.rules = settings.rules
        return result

    @property
    def _random_weights(self) -> bool:
        return self.model is not None and str(self.model.weights).startswith("random")

    def _publish_diagnostics(self) -> None:
        if self._stop_requested is not None and self._running is not None:
            self.get_logger().error(f"deactivating: {self._stop_requested}")
            self._stop_requested = None
            self.trigger_deactivate()
        statuses = [self.health.state_status(self._random_weights)]
        if self._running is not None:
            error_after = int(self.settings.number("missing_frames_error"))
            waiting = self._running.assembler.waiting()
            for name, counts in self._running.assembler.counts().items():
                statuses.append(self.health.camera_status(name, counts, waiting[name], error_after))
            statuses.append(self.health.stage_status(int(self.settings.number("slow_frames_error"))))
        for one in statuses:
            one.name = f"{self.get_name()}: {one.name}"
        message = DiagnosticArray(status=statuses)
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


class _ToRosLog(logging.Handler):
    """Passes the warnings of the rest of the package on to the node's log."""

    def __init__(self, node: OccupancyNode) -> None:
        super().__init__(logging.WARNING)
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Say it with the same severity."""
        if record.levelno >= logging.ERROR:
            self._logger.error(record.getMessage())
        else:
            self._logger.warning(record.getMessage())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; gives 0 then, also when one comes while the network runs."""
    stop = threading.Event()
    # Own handlers from the first moment, so that a signal while the network is loaded ends the process in
    # good order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    try:
        try:
            node = OccupancyNode()
        except (ValueError, UserError, rclpy.exceptions.InvalidParameterTypeException) as error:
            print(f"occupancy_node: error: {error}", file=sys.stderr)
            return 1
        handler = _ToRosLog(node)
        logging.getLogger("gdfusion_ros").addHandler(handler)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            if node.settings.flag("autostart") and node.trigger_configure() == SUCCESS and not stop.is_set():
                node.trigger_activate()
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.1)
        finally:
            node.close()
            logging.getLogger("gdfusion_ros").removeHandler(handler)
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
