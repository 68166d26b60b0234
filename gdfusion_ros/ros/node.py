"""OccupancyNode: camera images and transforms in, semantic occupancy out.

Callbacks only store. Images are decoded and resized in a pool of threads as they arrive, frames are
assembled by `FrameAssembler`, and one thread runs the network through `OccupancyStream`. A lifecycle node
that configures (loads the network) and activates (subscribes) itself unless `autostart` is off.
"""

from __future__ import annotations

import logging
import os
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

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from gdfusion_ros.assembly.assembler import FrameAssembler
from gdfusion_ros.assembly.loading import LoadedImage, load_image
from gdfusion_ros.assembly.rig import Rig, find_topics, read_rig
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView, Occupancy
from gdfusion_ros.model.model import load_for_rig
from gdfusion_ros.ros.diagnostics import Health
from gdfusion_ros.ros.environment import use_shared_memory
from gdfusion_ros.ros.inference import InferenceWorker, free_memory
from gdfusion_ros.ros.log import NowAndThen, ToRosLog
from gdfusion_ros.ros.parameters import Settings, changed, declare
from gdfusion_ros.ros.publishers import OccupancyPublishers
from gdfusion_ros.ros.state_services import StateServices
from gdfusion_ros.ros.subscriptions import Subscriptions
from gdfusion_ros.stream import OccupancyStream

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
REPEAT_SECONDS = 5.0
"""How often the same problem of the same camera is said again."""
SLOW_SECONDS = 10.0
"""How often it is said again that frames are slow."""
SILENCE_SECONDS = 30.0
"""How often it is said again that cameras are silent."""


@dataclass
class _Running:
    """What exists while the node is active."""

    assembler: FrameAssembler
    worker: InferenceWorker
    decoders: ThreadPoolExecutor
    subscriptions: Subscriptions
    timer: Any


class OccupancyNode(LifecycleNode):  # type: ignore[misc]
    """The ROS 2 node. `main` starts one; tests and containers may make it with a model of their own loading."""

    def __init__(self, **arguments: Any) -> None:
        """Declares the parameters; ``arguments`` go to rclpy's Node. Raises ValueError for a value out of bounds."""
        super().__init__("gdfusion", **arguments)
        self.settings: Settings = declare(self)
        self.model: Any = None
        self.rig: Rig | None = None
        self.health = Health(())
        self._outputs: OccupancyPublishers | None = None
        self._running: _Running | None = None
        self._arrivals: dict[int, float] = {}
        self._restart_reason: str | None = None
        self._inference_ms = 0.0
        self._stop_requested: str | None = None
        self._warn = NowAndThen(self.get_logger().warning)
        self._silent: tuple[str, ...] = ()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._state = StateServices(
            self, self.settings.text("state_file"), lambda: self._running.worker if self._running else None
        )
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_timer(1.0, self._every_second, clock=self._steady)

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
        self._outputs = OccupancyPublishers(self, self.model.label_set)
        self.get_logger().info(f"{self.model.name} with weights {self.model.weights} on {self.model.device}")
        if self._random_weights:
            self.get_logger().warning("RANDOM WEIGHTS: the grids have the right form and mean nothing")

    def _activate(self) -> None:
        assert self.rig is not None
        assert self.model is not None
        self.health = Health(self.rig.names)
        # Decoding and resizing release the interpreter, and images of one instant come all at once.
        threads = min(len(self.rig.cameras), len(os.sched_getaffinity(0)))
        decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        assembler = FrameAssembler(
            self.rig,
            self.settings.assembly,
            load=self._load,
            submit=decoders.submit,
            on_problem=self._on_problem,
        )
        stream = OccupancyStream(self.model, self.settings.rules, on_restart=self._on_restart)
        if self.settings.flag("load_state_on_start"):
            self._state.restore(stream)
        worker = InferenceWorker(assembler, stream, self._deliver, self._on_failure)
        worker.start()
        subscriptions = Subscriptions(self, self.rig, self.settings, assembler, self._on_image, self._advance)
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
            self._state.keep(running.worker.stream)
        self._arrivals.clear()
        del running
        free_memory()

    def _clean_up(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy(self)
            self._outputs = None
        self.model = self.rig = None
        self.health = Health(())
        free_memory()

    def close(self) -> None:
        """Stop the inference thread and free everything, whatever the state."""
        self._deactivate()
        self._clean_up()

    # What comes in.

    def _on_image(self, camera: str, message: Any) -> None:
        assert self._running is not None
        assert self.rig is not None
        self.health.cameras[camera].arrived()
        if camera == self.rig.anchor:
            stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            self._arrivals[stamp] = time.perf_counter()
            for old in list(self._arrivals)[:-64]:
                self._arrivals.pop(old, None)
        self._running.assembler.handle_image(camera, message, self._now())

    def _advance(self) -> None:
        if self._running is None:
            return
        for frame in self._running.assembler.poll(self._now()):
            self._running.worker.submit(frame)

    def _now(self) -> int | None:
        """The node's clock, or None while it stands at zero: with use_sim_time, before anything came on /clock.
        Then waiting is measured in stamps, as in a recording."""
        return int(self.get_clock().now().nanoseconds) or None

    def _load(self, camera: str, message: Any, raw: bool, /) -> LoadedImage:
        """Decode, resize and crop an image, in a decoder's thread. The poses come later, at the frame's assembly."""
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
        self._inference_ms = timings["inference"]
        if timings["total"] > slow_ms:
            text = f"slow frame: {timings['total']:.0f} ms from image to grid"
            self._warn(text, ("slow",), SLOW_SECONDS)

    def _on_restart(self, reason: str, frame: CameraFrame) -> None:
        self._restart_reason = reason
        self.health.restarts[reason] += 1
        self.get_logger().info(f"a new sequence starts at {frame.stamp_ns / 1e9:.3f} s: {reason}")
        if reason == "gap" and self._inference_ms > self.settings.number("max_gap") * 1e3:
            text = (
                f"a frame took {self._inference_ms / 1e3:.1f} s, longer than max_gap: no frame has a history"
            )
            self._warn(text, ("max_gap",), SLOW_SECONDS)

    def _on_failure(self, text: str, fatal: bool) -> None:
        self.health.last_error = text
        self.get_logger().error(text)
        if fatal:
            self._stop_requested = text

    # What the node says of itself.

    def _on_problem(self, where: str, reason: str, text: str) -> None:
        self.health.problem(where, reason, text)
        self._warn(f"{where}: {text}", (where, reason), REPEAT_SECONDS)

    def _every_second(self) -> None:
        if self._stop_requested is not None and self._running is not None:
            self.get_logger().error(f"deactivating: {self._stop_requested}")
            self._stop_requested = None
            self.trigger_deactivate()
        if self._running is not None:
            self._say_silence()
            if self._now() is None:
                self._warn("use_sim_time is on, but nothing comes on /clock", ("/clock",), SILENCE_SECONDS)
        self._publish_diagnostics()

    def _say_silence(self) -> None:
        """Name the cameras from which nothing comes, and when they are heard again."""
        assert self.rig is not None
        silent = self.health.silent()
        if silent:
            topic = next(camera.image for camera in self.rig.cameras if camera.name == silent[0])
            known = self.count_publishers(topic)
            why = (
                f"{topic} has a publisher, but nothing arrives (image_reliability? transport? shared memory?)"
                if known
                else f"nobody publishes {topic}"
            )
            self._warn(f"no image from {', '.join(silent)}: {why}", ("silent", *silent), SILENCE_SECONDS)
        elif self._silent:
            self._warn.forget("silent")
            self.get_logger().info("all cameras are heard")
        self._silent = silent

    def _publish_diagnostics(self) -> None:
        health, running, settings = self.health, self._running, self.settings
        statuses = [health.state_status(running is not None, self._random_weights)]
        if running is not None:
            assembler = running.assembler
            error_after = int(settings.number("missing_frames_error"))
            waiting, period = assembler.waiting(), settings.number("inference_period")
            for name, counts in assembler.counts().items():
                statuses.append(health.camera_status(name, counts, waiting[name], error_after, period))
            failed, refused = running.worker.failures, assembler.rejected
            statuses.append(health.frames_status(assembler.frames, failed, refused, error_after))
            statuses.append(health.stage_status(int(settings.number("slow_frames_error"))))
        for one in statuses:
            one.name = f"{self.get_name()}: {one.name}"
        message = DiagnosticArray(status=statuses)
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; gives 0 then, also when one comes while the network runs."""
    stop = threading.Event()
    # Own handlers from the first moment, so that a signal while the network is loaded ends the process in
    # good order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    use_shared_memory()  # the segment that grids go out through is the node's own
    # Images are decoded side by side: within one, threads would only wait for each other.
    cv2.setNumThreads(1)
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    try:
        try:
            node = OccupancyNode()
        except (ValueError, UserError, rclpy.exceptions.InvalidParameterTypeException) as error:
            print(f"occupancy_node: error: {error}", file=sys.stderr)
            return 1
        handler = ToRosLog(node.get_logger())
        logging.getLogger("gdfusion_ros").addHandler(handler)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            if node.settings.flag("autostart") and node.trigger_configure() == SUCCESS and not stop.is_set():
                node.trigger_activate()
            while not stop.is_set():
                _spin_once(executor, node, stop)
        finally:
            node.close()
            logging.getLogger("gdfusion_ros").removeHandler(handler)
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return 0


def _spin_once(executor: SingleThreadedExecutor, node: OccupancyNode, stop: threading.Event) -> None:
    """Run one callback. What it raises is said and does not end the node: the next message may be sound."""
    try:
        executor.spin_once(timeout_sec=0.1)
    except Exception as error:
        node.get_logger().error(f"a callback failed: {error}\n{traceback.format_exc()}")
        node.health.last_error = f"a callback failed: {error}"
        stop.wait(0.1)


if __name__ == "__main__":
    sys.exit(main())
