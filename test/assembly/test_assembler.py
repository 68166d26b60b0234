"""Frames are made of the images that belong together, and every image is accounted for."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from driving import (
    NUSCENES,
    OFFSETS_MS,
    SECOND,
    SIZE,
    START,
    camera_info,
    compressed,
    drive,
    ego_from_camera,
    ego_pose,
    intrinsics,
    jpeg,
    picture,
    rig,
    stamped_transform,
    tf,
)

from gdfusion_ros.assembly.assembler import MAX_PLACING, AssemblySettings, FrameAssembler
from gdfusion_ros.frame import CameraFrame

IMAGE = jpeg(picture(0))
MS = 1_000_000


class Rig:
    """Feeds an assembler as a rig of cameras would, and collects its frames."""

    def __init__(self, cameras=NUSCENES, settings: AssemblySettings = AssemblySettings(), **changes) -> None:
        self.problems: list[tuple[str, str]] = []
        self.assembler = FrameAssembler(
            rig(cameras, **changes),
            settings,
            on_problem=lambda where, reason, text: self.problems.append((where, reason)),
        )
        self.cameras = cameras
        self.frames: list[CameraFrame] = []
        self.tf_static()
        for name in cameras:
            self.assembler.handle_camera_info(name, camera_info(START, name))

    def tf_static(self) -> None:
        message = tf(
            *(stamped_transform(0, "base_link", name, ego_from_camera(name)) for name in self.cameras)
        )
        self.assembler.handle_transforms(message, static=True)

    def pose(self, stamp: int) -> None:
        message = tf(stamped_transform(stamp, "odom", "base_link", ego_pose((stamp - START) / SECOND)))
        self.assembler.handle_transforms(message, static=False)

    def image(self, camera: str, stamp: int, data: bytes = IMAGE, pose: bool = True) -> None:
        if pose:
            self.pose(stamp)
        self.assembler.handle_image(camera, compressed(stamp, data, camera))
        self.poll()

    def shoot(self, seconds: float, without: tuple[str, ...] = ()) -> None:
        """All cameras around one time."""
        order = sorted(self.cameras, key=lambda name: OFFSETS_MS[NUSCENES.index(name)])
        for name in order:
            if name not in without:
                offset = OFFSETS_MS[NUSCENES.index(name)] * MS
                self.image(name, START + round(seconds * SECOND) + offset)

    def poll(self, now_ns: int | None = None) -> None:
        self.resolve(self.assembler.poll(now_ns))

    def flush(self) -> None:
        self.resolve(self.assembler.flush())

    def resolve(self, pending) -> None:
        self.frames += [f for f in (self.assembler.resolve(one) for one in pending) if f is not None]

    @property
    def stamps(self) -> list[float]:
        return [(frame.stamp_ns - START) / SECOND for frame in self.frames]

    def drops(self) -> Counter[str]:
        result: Counter[str] = Counter()
        for counts in self.assembler.counts().values():
            result.update(counts.dropped)
        return result

    def assert_counts_add_up(self) -> None:
        waiting = self.assembler.waiting()
        for name, counts in self.assembler.counts().items():
            assert counts.received == counts.used + counts.dropped.total() + waiting[name], (name, counts)


def test_a_frame_is_made_as_soon_as_all_its_images_are_there():
    cameras = Rig()
    cameras.shoot(0.0)
    assert cameras.stamps == [0.0]
    assert [view.name for view in cameras.frames[0].views] == list(NUSCENES)
    cameras.assert_counts_add_up()


def test_every_camera_is_placed_at_its_own_exposure():
    cameras = Rig()
    cameras.shoot(0.0)
    cameras.shoot(0.5)
    for frame, at in zip(cameras.frames, (0.0, 0.5), strict=True):
        assert np.array_equal(frame.world_from_ego, ego_pose(at))
        for view in frame.views:
            exposure = at + OFFSETS_MS[NUSCENES.index(view.name)] * 1e-3
            assert view.stamp_ns == START + round(exposure * SECOND)
            assert np.allclose(view.world_from_ego, ego_pose(exposure), atol=1e-9)
            assert np.allclose(view.ego_from_camera, ego_from_camera(view.name))
            assert np.array_equal(view.intrinsics, intrinsics())


def test_of_twelve_images_a_second_every_sixth_makes_a_frame():
    cameras = Rig()
    for i in range(25):
        cameras.shoot(i / 12)
    assert cameras.stamps == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert cameras.drops() == {"between_frames": (25 - 5) * 6 - sum(cameras.assembler.waiting().values())}
    cameras.assert_counts_add_up()


def test_with_a_period_of_zero_every_anchor_image_makes_a_frame():
    cameras = Rig(settings=AssemblySettings(inference_period=0.0))
    for i in range(12):
        cameras.shoot(i / 12)
    assert len(cameras.frames) == 12


def test_an_image_that_was_lost_does_not_make_each_frame_take_the_next_ones():
    cameras = Rig(settings=AssemblySettings(inference_period=0.0))
    for i in range(20):
        cameras.shoot(i / 10, without=("CAM_BACK",) if i == 5 else ())
    cameras.flush()
    assert cameras.stamps == pytest.approx([i / 10 for i in range(20) if i != 5])


def test_a_trigger_that_jitters_does_not_cost_key_frames():
    rng = random.Random(0)
    cameras = Rig()
    for i in range(61):
        cameras.shoot(i / 12 + rng.uniform(-0.008, 0.008))
    assert len(cameras.frames) == 11


def test_the_nearest_image_is_taken_however_the_cameras_messages_interleave():
    frames = drive([i / 12 for i in range(30)])
    events = [(view.stamp_ns, view.name, view.encoded) for frame in frames for view in frame.views]
    poses = sorted({stamp for stamp, _, _ in events})
    rng = random.Random(1)
    results = []
    for shuffle in range(4):
        cameras = Rig()
        for stamp in poses:
            cameras.pose(stamp)
        queues = {name: [e for e in sorted(events) if e[1] == name] for name in NUSCENES}
        if shuffle == 0:
            order = sorted(events)
        else:  # each camera in its own order, otherwise mixed by up to three images
            order = []
            while any(queues.values()):
                oldest = min(queue[0][0] for queue in queues.values() if queue)
                ready = [q for q in queues.values() if q and q[0][0] < oldest + 120 * MS]
                order.append(rng.choice(ready).pop(0))
        for stamp, name, data in order:
            cameras.image(name, stamp, data, pose=False)
        cameras.flush()
        cameras.assert_counts_add_up()
        results.append([[view.stamp_ns for view in frame.views] for frame in cameras.frames])
    assert results[0] == results[1] == results[2] == results[3]
    assert len(results[0]) == 5


def test_a_frame_without_a_camera_is_skipped_and_the_next_begins_anew():
    cameras = Rig()
    cameras.shoot(0.0)
    cameras.shoot(0.5, without=("CAM_BACK",))
    cameras.shoot(1.0)
    assert cameras.stamps == [0.0, 1.0]
    assert cameras.frames[1].restart_reason == "camera_was_missing"
    assert ("CAM_BACK", "missing") in cameras.problems
    assert cameras.assembler.frames.dropped == {"camera_missing": 1}
    cameras.assert_counts_add_up()


def test_a_missing_camera_can_be_blank():
    cameras = Rig(settings=AssemblySettings(missing_camera="blank"))
    cameras.shoot(0.0)
    cameras.shoot(0.5, without=("CAM_BACK",))
    cameras.shoot(1.0)
    assert cameras.stamps == [0.0, 0.5, 1.0]
    back = cameras.frames[1].view("CAM_BACK")
    assert back.missing
    assert back.image.shape == (*SIZE, 3)
    assert not back.image.any()
    assert cameras.frames[2].restart_reason is None


def test_without_a_word_from_the_anchor_the_clock_ends_the_wait():
    cameras = Rig(settings=AssemblySettings(missing_camera="blank"))
    cameras.pose(START)
    cameras.assembler.handle_image("CAM_FRONT", compressed(START, IMAGE), now_ns=5 * SECOND)
    cameras.poll(now_ns=5 * SECOND + 100 * MS)
    assert cameras.frames == []
    cameras.poll(now_ns=5 * SECOND + 300 * MS)
    assert len(cameras.frames) == 1
    assert sum(view.missing for view in cameras.frames[0].views) == 5


def test_duplicates_and_images_out_of_order_are_dropped_and_counted():
    cameras = Rig()
    cameras.shoot(0.0)
    cameras.image("CAM_BACK", START + 25 * MS)
    cameras.image("CAM_BACK", START - 300 * MS)
    cameras.image("CAM_FRONT", START)
    cameras.image("CAM_FRONT", START - 500 * MS)
    assert cameras.drops() == {"duplicate": 2, "out_of_order": 2}
    assert len(cameras.frames) == 1
    cameras.assert_counts_add_up()


def test_an_image_that_comes_after_its_frame_was_given_up_is_late():
    cameras = Rig()
    cameras.shoot(0.0, without=("CAM_BACK",))
    cameras.shoot(0.5, without=("CAM_BACK",))
    cameras.image("CAM_BACK", START - 1 * MS)
    assert cameras.drops()["late"] == 1
    cameras.assert_counts_add_up()


def test_a_recording_that_begins_again_clears_the_buffers_and_goes_on():
    cameras = Rig()
    for _ in range(2):
        for i in range(5):
            cameras.shoot(i / 2)
    assert cameras.stamps == [0.0, 0.5, 1.0, 1.5, 2.0] * 2
    assert ("clock", "clock_jump") in cameras.problems
    cameras.assert_counts_add_up()


def test_a_loop_whose_cameras_jump_at_different_messages_loses_no_frame():
    cameras = Rig()
    for i in range(5):
        cameras.shoot(i / 2)
    for name in ("CAM_BACK", "CAM_FRONT_LEFT"):
        cameras.image(name, START + OFFSETS_MS[NUSCENES.index(name)] * MS)
    for name in ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"):
        cameras.image(name, START + OFFSETS_MS[NUSCENES.index(name)] * MS)
    assert cameras.stamps[-1] == 0.0
    cameras.assert_counts_add_up()


def test_a_frame_waits_for_its_transforms():
    cameras = Rig()
    for name, offset in zip(NUSCENES, OFFSETS_MS, strict=True):
        cameras.image(name, START + offset * MS, pose=False)
    assert cameras.frames == []
    cameras.pose(START - 10 * MS)
    cameras.poll()
    assert cameras.frames == []
    cameras.pose(START + 50 * MS)
    cameras.poll()
    assert cameras.stamps == [0.0]


def test_a_frame_whose_transforms_do_not_come_is_dropped_and_never_taken_to_be_at_the_origin():
    cameras = Rig(settings=AssemblySettings(tf_timeout=0.4))
    for i in range(3):
        for name, offset in zip(NUSCENES, OFFSETS_MS, strict=True):
            cameras.image(name, START + i * SECOND // 2 + offset * MS, pose=False)
    assert cameras.frames == []
    assert cameras.assembler.frames.dropped == {"no_transform": 2}
    cameras.assert_counts_add_up()


def test_with_a_clock_that_stands_still_frames_do_not_pile_up():
    cameras = Rig(settings=AssemblySettings(tf_timeout=10.0))
    for i in range(40):
        for name, offset in zip(NUSCENES, OFFSETS_MS, strict=True):
            stamp = START + i * SECOND // 2 + offset * MS
            cameras.assembler.handle_image(name, compressed(stamp, IMAGE, name), now_ns=1)
        cameras.poll(now_ns=1)
    assert cameras.assembler.frames.dropped["no_transform"] == 40 - MAX_PLACING
    cameras.assert_counts_add_up()


def test_a_clock_that_begins_late_ends_the_wait_of_frames_from_before_it():
    cameras = Rig(settings=AssemblySettings(tf_timeout=0.4))
    for name, offset in zip(NUSCENES, OFFSETS_MS, strict=True):
        cameras.assembler.handle_image(name, compressed(START + offset * MS, IMAGE, name), now_ns=None)
    cameras.poll(now_ns=None)
    cameras.poll(now_ns=100 * SECOND)
    assert cameras.assembler.frames.dropped == {}
    cameras.poll(now_ns=101 * SECOND)
    assert cameras.assembler.frames.dropped == {"no_transform": 1}


def test_a_clock_that_is_set_back_costs_one_more_wait_and_no_frame_for_ever():
    cameras = Rig(settings=AssemblySettings(tf_timeout=0.4))
    for name, offset in zip(NUSCENES, OFFSETS_MS, strict=True):
        cameras.assembler.handle_image(
            name, compressed(START + offset * MS, IMAGE, name), now_ns=5000 * SECOND
        )
    cameras.poll(now_ns=5000 * SECOND + 1)
    for tenths, dropped in ((0, 0), (3, 0), (4, 1)):
        cameras.poll(now_ns=1000 * SECOND + tenths * SECOND // 10)
        assert cameras.assembler.frames.dropped.total() == dropped


def test_a_broken_transform_is_refused_and_counted():
    cameras = Rig()
    message = stamped_transform(START, "odom", "base_link", np.eye(4))
    message.transform.rotation.w = 0.5
    cameras.assembler.handle_transforms(tf(message), static=False)
    assert cameras.assembler.rejected == {"transform": 1}


def test_a_broken_camera_info_is_refused_by_name_and_the_last_good_one_stays():
    cameras = Rig()
    k = intrinsics()
    k[0, 0] = 0.0
    cameras.assembler.handle_camera_info("CAM_BACK", camera_info(START, "CAM_BACK", k=k))
    cameras.shoot(0.0)
    assert cameras.assembler.rejected == {"CAM_BACK camera_info": 1}
    assert np.array_equal(cameras.frames[0].view("CAM_BACK").intrinsics, intrinsics())


def test_a_calibration_that_changes_holds_from_its_stamp_on():
    cameras = Rig()
    cameras.shoot(0.0)
    k = intrinsics() * [[1.1], [1.1], [1.0]]
    k[:2, 2] = intrinsics()[:2, 2]
    cameras.assembler.handle_camera_info("CAM_BACK", camera_info(START + SECOND, "CAM_BACK", k=k))
    cameras.shoot(0.5)
    cameras.shoot(1.0)
    found = [frame.view("CAM_BACK").intrinsics[0, 0] for frame in cameras.frames]
    assert found == pytest.approx([128.0, 128.0, 140.8])


def test_a_calibration_for_another_shape_is_named_and_waits_for_images_of_that_shape():
    cameras = Rig()
    cameras.shoot(0.0)
    cameras.assembler.handle_camera_info(
        "CAM_BACK", camera_info(START + SECOND // 4, "CAM_BACK", size=(120, 160))
    )
    assert cameras.problems == [("CAM_BACK", "other_shape")]
    assert cameras.assembler.rejected == {"CAM_BACK camera_info": 1}
    cameras.shoot(0.5)
    cameras.shoot(1.0, without=("CAM_BACK",))
    cameras.image("CAM_BACK", START + SECOND + 25 * MS, jpeg(picture(1, (120, 160))))
    assert cameras.stamps == [0.0, 0.5, 1.0]
    heights = [frame.view("CAM_BACK").intrinsics[1, 2] for frame in cameras.frames]
    assert heights == [48.0, 48.0, 60.0]


def test_a_lens_distortion_is_named_once():
    cameras = Rig()
    for _ in range(3):
        info = camera_info(START, "CAM_BACK", p=np.zeros((3, 4)))
        info.d = np.array([0.1, 0.0, 0.0, 0.0, 0.0])
        cameras.assembler.handle_camera_info("CAM_BACK", info)
    assert cameras.problems == [("CAM_BACK", "distorted")]


def test_intrinsics_follow_an_image_of_another_size():
    cameras = Rig()
    cameras.shoot(0.0, without=("CAM_BACK",))
    cameras.image("CAM_BACK", START + 25 * MS, jpeg(picture(1, (48, 80))))
    view = cameras.frames[0].view("CAM_BACK")
    assert view.image.shape == (48, 80, 3)
    assert np.allclose(view.intrinsics, np.diag([0.5, 0.5, 1]) @ intrinsics())


def test_an_image_that_cannot_be_decoded_costs_its_frame_only():
    cameras = Rig()
    cameras.shoot(0.0)
    scan = IMAGE.index(b"\xff\xda") + 14
    hostile = IMAGE[:2] + IMAGE[2:scan].replace(b"\xff\xdb", b"\xff\xe5") + IMAGE[scan:]
    cameras.shoot(0.5, without=("CAM_BACK",))
    cameras.image("CAM_BACK", START + SECOND // 2 + 25 * MS, hostile)
    cameras.image("CAM_BACK", START + SECOND // 2 + 26 * MS, b"\xff\xd8 no jpeg at all")
    cameras.shoot(1.0)
    assert cameras.stamps == [0.0, 1.0]
    assert cameras.drops()["undecodable"] == 1
    assert cameras.drops()["refused"] == 1
    assert cameras.frames[1].restart_reason == "camera_was_missing"
    cameras.assert_counts_add_up()


def test_a_frame_that_a_newer_one_supersedes_is_counted():
    cameras = Rig()
    pending = []
    for at in (0.0, 0.5):
        for name, offset in zip(NUSCENES, OFFSETS_MS, strict=True):
            stamp = START + round(at * SECOND) + offset * MS
            cameras.pose(stamp)
            cameras.assembler.handle_image(name, compressed(stamp, IMAGE, name))
        pending += cameras.assembler.poll()
    older, newer = pending
    cameras.assembler.drop(older, "superseded", newer=newer)
    cameras.resolve([newer])
    assert cameras.stamps == [0.5]
    assert cameras.drops() == {"superseded": 6}
    cameras.assert_counts_add_up()


def test_one_camera_is_a_rig_too():
    cameras = Rig(cameras=("CAM_FRONT",))
    for i in range(3):
        cameras.shoot(i / 2)
    assert cameras.stamps == [0.0, 0.5, 1.0]


def test_a_random_storm_of_faults_never_runs_backwards_and_every_image_is_counted():
    rng = random.Random(7)
    cameras = Rig(settings=AssemblySettings(missing_camera="blank"))
    clock = 0.0
    for i in range(400):
        clock += 1 / 12
        if rng.random() < 0.01:
            clock -= rng.uniform(0.1, 5.0)
        for name in NUSCENES:
            fate = rng.random()
            stamp = START + 10 * SECOND + round(clock * SECOND) + OFFSETS_MS[NUSCENES.index(name)] * MS
            if fate < 0.05:
                continue
            if fate < 0.08:
                stamp -= rng.randrange(400 * MS)
            data = IMAGE if fate < 0.97 else IMAGE[: rng.randrange(len(IMAGE))]
            cameras.image(name, stamp, data)
            if fate > 0.99:
                cameras.image(name, stamp, data)
        if i % 50 == 0:
            cameras.assert_counts_add_up()
    cameras.flush()
    cameras.assert_counts_add_up()
    assert not any(cameras.assembler.waiting()[name] > 64 for name in NUSCENES)
    steps = np.diff([frame.stamp_ns for frame in cameras.frames])
    assert ((steps > 0) | (steps < -SECOND + 1)).all(), steps.min()
    assert len(cameras.frames) > 40
