"""FrameAssembler: messages in, CameraFrames out. The node and the bag reader feed it the same way.

A frame goes through three stages. Its anchor image is selected (`KeyFrames`), the images of the other
cameras are matched to it (`CameraQueue.choose`), and every camera is placed by transforms at its own
exposure. `poll` moves frames on as far as the messages allow and hands out those that are placed, in order;
`resolve` decodes their images, which a live node does in another thread. Every image received is counted
once: used, dropped for a reason, or still waiting.

Waiting is measured in stamps, by how far the anchor camera has gone on since, so that a recording gives the
same frames as it gave live. A live node also passes its clock, which ends the wait when the anchor camera
itself falls silent.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Literal, Protocol

import numpy as np

from gdfusion_ros.assembly.calibration import read_camera_info
from gdfusion_ros.assembly.codec import ImageError, check_compressed, check_raw
from gdfusion_ros.assembly.loading import LoadedImage, Loader, Loading, LoadOnDemand, load_image
from gdfusion_ros.assembly.matching import JUMP_NS, CameraCounts, CameraQueue, KeyFrames, Shot
from gdfusion_ros.assembly.messages import SECOND, Message, stamp_ns
from gdfusion_ros.assembly.pending import FrameCounts, PendingFrame
from gdfusion_ros.assembly.placement import CalibrationHistory, PlacementError, place
from gdfusion_ros.assembly.rig import Rig
from gdfusion_ros.assembly.transforms import TransformBuffer
from gdfusion_ros.frame import CameraFrame, CameraView
from gdfusion_ros.geometry import transform

log = logging.getLogger(__name__)

MAX_PLACING = 16
"""Frames that may wait for their transforms; the oldest go first. Clocks that stand still would let them pile up."""


@dataclass(frozen=True)
class AssemblySettings:
    """How frames are made; seconds everywhere."""

    sync_tolerance: float = 0.15
    """How far an image's stamp may be from the anchor's."""
    inference_period: float = 0.5
    """Time between two frames: the published weights were trained on 2 Hz key frames."""
    missing_camera: Literal["skip", "blank"] = "skip"
    """What to do when a camera gives no image: no frame, or a black image in its place."""
    image_timeout: float = 0.25
    """How long after the anchor image another camera's may still come."""
    tf_timeout: float = 0.5
    """How long a frame waits for its transforms and calibrations."""


class Submit(Protocol):
    """Begins a piece of work, now or later, here or in another thread."""

    def __call__(self, work: Callable[[], LoadedImage], /) -> Loading:
        """The work's result, now or later."""
        ...


class FrameAssembler:
    """Assembles the frames of one rig. One thread calls everything but `resolve`, which may run in another."""

    def __init__(
        self,
        rig: Rig,
        settings: AssemblySettings = AssemblySettings(),
        load: Loader = load_image,
        submit: Submit = LoadOnDemand,
        on_problem: Callable[[str, str, str], None] | None = None,
    ) -> None:
        """``on_problem(where, reason, text)`` is called for everything that is refused or dropped for a fault."""
        self.rig = rig
        self.settings = settings
        self.transforms = TransformBuffer()
        self.frames = FrameCounts()
        self.rejected: Counter[str] = Counter()
        """Messages other than images that were refused, by what they are and of which camera."""
        self._tolerance_ns = round(settings.sync_tolerance * SECOND)
        self._queues = {name: CameraQueue(name, self._tolerance_ns) for name in rig.names}
        self._calibrations = {
            name: CalibrationHistory(rig.on_file[name].calibration if name in rig.on_file else None)
            for name in rig.names
        }
        self._key_frames = KeyFrames(round(settings.inference_period * SECOND))
        self._check = check_compressed if rig.transport == "compressed" else check_raw
        self._load, self._submit = load, submit
        self._problem = on_problem or (
            lambda where, reason, text: log.warning("%s: %s (%s)", where, text, reason)
        )
        self._anchor_ns: int | None = None
        self._matching: deque[PendingFrame] = deque()
        self._placing: deque[PendingFrame] = deque()
        self._out: set[PendingFrame] = set()
        self._finished: SimpleQueue[tuple[PendingFrame, dict[str, str], str | None]] = SimpleQueue()
        self._skipped = False
        self._skipped_in_resolve = False

    def configure(self, settings: AssemblySettings) -> None:
        """Go on with other settings; frames under way are made by the new ones."""
        self.settings = settings
        self._tolerance_ns = round(settings.sync_tolerance * SECOND)
        self._key_frames.period_ns = round(settings.inference_period * SECOND)
        for queue in self._queues.values():
            queue.tolerance_ns = self._tolerance_ns

    # What comes in.

    def handle_image(self, camera: str, message: Message, now_ns: int | None = None) -> None:
        """Take in an image of ``camera``: checked by its header, but not yet decoded."""
        queue = self._queues[camera]
        queue.counts.received += 1
        try:
            stamp = stamp_ns(message.header.stamp)
            width, height = self._check(message)
        except (ImageError, ValueError) as error:
            queue.counts.dropped["refused"] += 1
            self._problem(camera, "refused", str(error))
            return
        shot, jumped = queue.add(stamp, message, width, height)
        if camera == self.rig.anchor:
            if jumped:
                self._clock_jumped(stamp)
            if shot is None:
                return
            self._anchor_ns = stamp
            if not self._key_frames.is_key(stamp):
                queue.shots.remove(shot)
                queue.counts.dropped["between_frames"] += 1
                return
            self.frames.selected += 1
            # Nearer to this frame than to the next: an image that stands in for a lost one must not be the next's.
            tolerance = min(self._tolerance_ns, (self._key_frames.spacing or 2 * self._tolerance_ns) // 2)
            self._matching.append(PendingFrame(stamp, {}, now_ns, tolerance))
            self._begin_loading(shot)
        elif shot is not None and self._may_be_used(stamp):
            self._begin_loading(shot)

    def handle_camera_info(self, camera: str, message: Message) -> None:
        """Take in a CameraInfo; a broken one is refused and the last good one stays."""
        try:
            stamp = stamp_ns(message.header.stamp)
            calibration = read_camera_info(message)
        except ValueError as error:
            self.rejected[f"{camera} camera_info"] += 1
            self._problem(camera, "camera_info", str(error))
            return
        history, size = self._calibrations[camera], self._queues[camera].last_size
        before = history.at(stamp, size)
        if size and before and before.fits(*size) and not calibration.fits(*size):
            # Counted and named as refused, but remembered: images of its shape may be on their way.
            self.rejected[f"{camera} camera_info"] += 1
            shapes = f"{calibration.width}x{calibration.height}, and the images are {size[0]}x{size[1]}"
            self._problem(camera, "other_shape", f"CameraInfo is for {shapes}: the one before stays")
        if history.add(stamp, calibration) and calibration.distorted:
            self._problem(
                camera,
                "distorted",
                "CameraInfo names a lens distortion: the networks need rectified images (image_proc)",
            )

    def handle_transforms(self, message: Message, static: bool) -> None:
        """Take in a tf2_msgs/TFMessage. With odometry for the motion, only static transforms count."""
        if not static and self.rig.motion == "odometry":
            return
        for one in message.transforms:
            try:
                self.transforms.set_message(one, static)
            except ValueError as error:
                self._refuse_transform(one, str(error))

    def handle_odometry(self, message: Message) -> None:
        """Take in a nav_msgs/Odometry: the pose of the base in the fixed frame."""
        p, q = message.pose.pose.position, message.pose.pose.orientation
        child = message.child_frame_id or self.rig.base_frame
        try:
            pose = transform((p.x, p.y, p.z), (q.w, q.x, q.y, q.z))
            self.transforms.set(message.header.frame_id, child, stamp_ns(message.header.stamp), pose)
        except ValueError as error:
            self.rejected["odometry"] += 1
            self._problem("odometry", "transform", str(error))

    # What goes out.

    def poll(self, now_ns: int | None = None) -> list[PendingFrame]:
        """The frames that have become ready, in order; each is to be given to `resolve` or `drop`."""
        self._settle()
        while self._matching and self._match(self._matching[0], now_ns, final=False):
            self._matching.popleft()
        return list(self._placed(now_ns, final=False))

    def flush(self) -> list[PendingFrame]:
        """The frames that can be made of what has come, when nothing more will: the end of a recording."""
        while self._matching:
            self._match(self._matching.popleft(), None, final=True)
        return list(self._placed(None, final=True))

    def resolve(self, frame: PendingFrame) -> CameraFrame | None:
        """Decode the images of a frame from `poll`; None when it had to be dropped. Frames come here in order.

        May be called in another thread than the rest.
        """
        assert frame.placement is not None
        views, undecodable = [], {}
        for name in self.rig.names:
            shot, placed = frame.shots[name], frame.placement.views[name]
            loaded = None
            if shot is not None:
                try:
                    loaded = self._begin_loading(shot).result()
                except ImageError as error:
                    undecodable[name] = "undecodable"
                    self._problem(name, "undecodable", str(error))
            if loaded is None:
                black = np.zeros((placed.height, placed.width, 3), dtype=np.uint8)
                loaded = LoadedImage(black, missing=True)
            views.append(
                CameraView(
                    name,
                    loaded.image,
                    placed.intrinsics,
                    placed.ego_from_camera,
                    placed.world_from_ego,
                    frame.stamp_ns if shot is None else shot.stamp_ns,
                    loaded.image_transform,
                    loaded.encoded,
                    loaded.missing,
                )
            )
        after_skip, self._skipped_in_resolve = frame.after_skip or self._skipped_in_resolve, False
        anchor_lost = self.rig.anchor in undecodable
        if undecodable and (anchor_lost or self.settings.missing_camera == "skip"):
            self._skipped_in_resolve = True
            self._finished.put((frame, undecodable, "undecodable"))
            return None
        self._finished.put((frame, undecodable, None))
        return CameraFrame(
            frame.stamp_ns,
            tuple(views),
            frame.placement.world_from_ego,
            ego_from_lidar=frame.placement.ego_from_lidar,
            restart_reason="camera_was_missing" if after_skip else None,
        )

    def drop(self, frame: PendingFrame, reason: str, newer: PendingFrame | None = None) -> None:
        """Give up a frame from `poll`, as when a ``newer`` one is to be used instead. Any thread."""
        if newer is not None:
            newer.after_skip |= frame.after_skip
        self._finished.put((frame, {}, reason))

    def counts(self) -> dict[str, CameraCounts]:
        """By camera, where its images went."""
        self._settle()
        return {name: queue.counts for name, queue in self._queues.items()}

    def waiting(self) -> dict[str, int]:
        """By camera, the images that are neither used nor dropped yet."""
        self._settle()
        result = {name: len(queue.shots) for name, queue in self._queues.items()}
        for frame in (*self._placing, *self._out):  # those still matched wait in their queues
            for name, shot in frame.shots.items():
                result[name] += shot is not None
        return result

    # Inside.

    def _refuse_transform(self, message: Message, text: str) -> None:
        self.rejected["transform"] += 1
        child = str(message.child_frame_id)[:80]
        self._problem(f"transform of {child}", "transform", text)

    def _may_be_used(self, stamp: int) -> bool:
        """Whether an image can belong to a frame under way or to the next: worth decoding before it is asked for."""
        near = any(abs(stamp - frame.stamp_ns) <= self._tolerance_ns for frame in self._matching)
        return near or stamp >= self._key_frames.next_after - self._tolerance_ns

    def _begin_loading(self, shot: Shot) -> Loading:
        if shot.loading is None:
            work = partial(self._load, shot.camera, shot.message, self.rig.transport == "raw")
            shot.loading = self._submit(work)
        return shot.loading

    def _clock_jumped(self, stamp: int) -> None:
        """The anchor's stamps went back: what was taken before belongs to another time."""
        for frame in (*self._matching, *self._placing):
            self._drop_frame(frame, "clock_jump")
        self._matching.clear()
        self._placing.clear()
        for queue in self._queues.values():
            queue.drop_after(stamp + JUMP_NS, "clock_jump")
        self.transforms.drop_after(stamp + JUMP_NS)
        for history in self._calibrations.values():
            history.forget_times()
        self._key_frames.restart()
        self._skipped = False
        self._problem(
            "clock", "clock_jump", f"image stamps went back to {stamp / SECOND:.3f} s: buffers cleared"
        )

    def _passed(self, frame: PendingFrame, seconds: float) -> bool:
        """Whether the anchor camera has gone on by so much since the frame."""
        return self._anchor_ns is not None and self._anchor_ns - frame.stamp_ns >= round(seconds * SECOND)

    def _waited(self, frame: PendingFrame, seconds: float, now_ns: int | None) -> bool:
        """Whether so much time has gone by since the frame's anchor image came, by the caller's clock."""
        if now_ns is None:
            return False
        if frame.arrived_ns is None or now_ns < frame.arrived_ns:  # the clock began only now, or jumped back
            frame.arrived_ns = now_ns
        return now_ns - frame.arrived_ns >= round(seconds * SECOND)

    def _match(self, frame: PendingFrame, now_ns: int | None, final: bool) -> bool:
        """Choose the images of a frame. True when that is settled, for better or worse."""
        limit = self.settings.image_timeout
        final = final or self._passed(frame, limit) or self._waited(frame, limit, now_ns)
        stamp, tolerance = frame.stamp_ns, frame.tolerance_ns
        choices = {name: queue.choose(stamp, tolerance, final) for name, queue in self._queues.items()}
        missing = [name for name, (shot, settled) in choices.items() if settled and shot is None]
        skip = bool(missing) and (self.settings.missing_camera == "skip" or self.rig.anchor in missing)
        if not skip and not all(settled for _, settled in choices.values()):
            return False
        frame.shots = {name: shot for name, (shot, _) in choices.items()}
        for name, queue in self._queues.items():
            queue.take(frame.shots[name], frame.stamp_ns)
        for name in missing:
            self._problem(name, "missing", f"no image within {frame.tolerance_ns / SECOND:g} s of the frame")
        if skip:
            self._skipped = True
            self._drop_frame(frame, "camera_missing")
            return True
        frame.after_skip, self._skipped = self._skipped, False
        for shot in frame.shots.values():
            if shot is not None:
                self._begin_loading(shot)
        self._placing.append(frame)
        return True

    def _placed(self, now_ns: int | None, final: bool) -> Iterator[PendingFrame]:
        while self._placing:
            frame = self._placing[0]
            try:
                frame.placement = place(
                    self.rig, frame.stamp_ns, frame.shots, self._calibrations, self.transforms
                )
            except PlacementError as error:
                # Live, transforms wait behind others in their own queue, while images overtake them.
                limit = self.settings.tf_timeout
                waited = self._passed(frame, limit) if now_ns is None else self._waited(frame, limit, now_ns)
                if error.may_come and not waited and not final and len(self._placing) <= MAX_PLACING:
                    return
                self._placing.popleft()
                if self._placing:
                    self._placing[0].after_skip |= frame.after_skip
                else:
                    self._skipped |= frame.after_skip
                self._drop_frame(frame, error.reason)
                self._problem(error.where, error.reason, str(error))
                continue
            self._placing.popleft()
            self._out.add(frame)
            yield frame

    def _drop_frame(self, frame: PendingFrame, reason: str) -> None:
        self.frames.dropped[reason] += 1
        for name, shot in frame.shots.items():
            if shot is not None:
                self._queues[name].counts.dropped[reason] += 1

    def _settle(self) -> None:
        """Count the frames that `resolve` and `drop` are done with; they may run in another thread."""
        while True:
            try:
                frame, undecodable, reason = self._finished.get_nowait()
            except Empty:
                return
            self._out.discard(frame)
            if reason is None:
                self.frames.made += 1
            else:
                self.frames.dropped[reason] += 1
            for name, shot in frame.shots.items():
                counts = self._queues[name].counts
                if shot is None:
                    continue
                if name in undecodable:
                    counts.dropped[undecodable[name]] += 1
                elif reason is None:
                    counts.used += 1
                else:
                    counts.dropped["frame_dropped" if reason == "undecodable" else reason] += 1
