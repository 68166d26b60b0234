"""Whatever bytes come in, what comes out is a result or a refusal: thousands of made-up inputs, no crash.

Inputs are sound ones with bytes changed, cut out or repeated, as faulty links and attackers make them, and free
inventions. A refusal is an exception that the callers know (ImageError, CalibrationError, UserError, ValueError).
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from driving import (
    START,
    TWO_CAMERAS,
    camera_info,
    compressed,
    drive,
    ego_pose,
    jpeg,
    picture,
    raw,
    rig,
    stamped_transform,
    tf,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gdfusion_ros.assembly.assembler import AssemblySettings, FrameAssembler
from gdfusion_ros.assembly.codec import (
    RAW_ENCODINGS,
    ImageError,
    decode_compressed,
    decode_raw,
    encode_png,
)
from gdfusion_ros.assembly.rig import read_calibration, read_rig
from gdfusion_ros.errors import UserError
from gdfusion_ros.model.weights import read_entries
from gdfusion_ros.sinks.bag import record_frames
from gdfusion_ros.sinks.recording import message_types
from gdfusion_ros.sources.bag import BagSource

many = settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
some = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))

SMALL = picture(3, (24, 32))


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Sound bytes with some of them changed, a piece cut out, or a piece repeated."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["change", "cut", "repeat", "end", "header"]))
        if kind == "change":
            data[where : where + 1] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "cut":
            del data[where : where + draw(st.integers(1, 64))]
        elif kind == "repeat":
            data[where:where] = data[where : where + draw(st.integers(1, 64))]
        elif kind == "end":
            del data[where:]
        else:  # most of what can go wrong is said in the first bytes
            at = draw(st.integers(0, min(64, max(len(data) - 1, 0))))
            data[at : at + 2] = draw(st.binary(min_size=2, max_size=2))
    return bytes(data)


@many
@given(st.one_of(damaged(jpeg(SMALL)), damaged(encode_png(SMALL)), st.binary(max_size=300)))
def test_compressed_images(data):
    try:
        image = decode_compressed(compressed(START, data))
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


@many
@given(
    encoding=st.one_of(st.sampled_from(RAW_ENCODINGS), st.text(max_size=10)),
    width=st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
    height=st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
    step=st.one_of(st.integers(0, 400), st.integers(0, 2**32 - 1)),
    length=st.integers(0, 5000),
    bigendian=st.integers(0, 255),
)
def test_raw_images(encoding, width, height, step, length, bigendian):
    message = raw(START, SMALL, "rgb8")
    message.encoding, message.width, message.height, message.step = encoding, width, height, step
    message.data, message.is_bigendian = np.zeros(length, np.uint8), bigendian
    try:
        image = decode_raw(message)
    except ImageError:
        return
    assert image.shape == (height, width, 3)


numbers = st.floats(allow_nan=True, allow_infinity=True)


@many
@given(st.lists(numbers, min_size=9, max_size=9), st.lists(numbers, min_size=12, max_size=12), st.data())
def test_camera_info(k, p, data):
    size = data.draw(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)))
    assembler = FrameAssembler(rig(), on_problem=lambda *_: None)
    message = camera_info(START, "CAM_FRONT", np.array(k).reshape(3, 3), size, np.array(p).reshape(3, 4))
    message.header.stamp.sec = data.draw(st.integers(-(2**31), 2**31 - 1))
    for name in ("x_offset", "y_offset", "width", "height"):
        setattr(message.roi, name, data.draw(st.one_of(st.just(0), st.integers(0, 2**32 - 1))))
    assembler.handle_camera_info("CAM_FRONT", message)


@many
@given(
    st.lists(numbers, min_size=7, max_size=7),
    st.text(max_size=8),
    st.text(max_size=8),
    st.integers(-(2**31), 2**31 - 1),
)
def test_transforms(values, parent, child, seconds):
    message = stamped_transform(START, "odom", "base_link", ego_pose(0.0))
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z, q.x, q.y, q.z, q.w = values
    message.header.frame_id, message.child_frame_id, message.header.stamp.sec = parent, child, seconds
    assembler = FrameAssembler(rig(), on_problem=lambda *_: None)
    assembler.handle_transforms(tf(message), static=False)
    try:
        found = assembler.transforms.lookup("odom", "base_link", START)
    except LookupError:
        return
    assert np.isfinite(found).all()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_order_of_messages_is_survived_and_counted(data):
    assembler = FrameAssembler(
        rig(TWO_CAMERAS), AssemblySettings(missing_camera="blank"), on_problem=lambda *_: None
    )
    image = jpeg(SMALL)
    for _ in range(data.draw(st.integers(1, 40))):
        stamp = START + data.draw(st.integers(-(10**9), 4 * 10**9))
        kind = data.draw(st.sampled_from(["image", "image", "info", "tf", "poll"]))
        camera = data.draw(st.sampled_from(TWO_CAMERAS))
        if kind == "image":
            assembler.handle_image(camera, compressed(stamp, image, camera))
        elif kind == "info":
            assembler.handle_camera_info(
                camera, camera_info(stamp, camera, size=(24, 32), k=np.diag([20, 20, 1.0]))
            )
        elif kind == "tf":
            pose = stamped_transform(stamp, "odom", "base_link", ego_pose(0.0))
            place = stamped_transform(stamp, "base_link", camera, ego_pose(0.0))
            assembler.handle_transforms(tf(pose), static=False)
            assembler.handle_transforms(tf(place), static=True)
        else:
            for frame in assembler.poll():
                assembler.resolve(frame)
    for frame in assembler.flush():
        assembler.resolve(frame)
    waiting = assembler.waiting()
    for name, counts in assembler.counts().items():
        assert counts.received == counts.used + counts.dropped.total() + waiting[name]


@cache
def recorded(storage: str) -> tuple[bytes, str]:
    """A sound recording's file and its name."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        frames = drive([0.0, 0.5], cameras=TWO_CAMERAS, size=(24, 32))
        record_frames(frames, Path(folder) / "bag", storage)  # type: ignore[arg-type]
        (file,) = (f for f in (Path(folder) / "bag").iterdir() if f.suffix in (".mcap", ".db3"))
        return file.read_bytes(), (Path(folder) / "bag" / "metadata.yaml").read_text()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_recordings(tmp_path, storage):
    content, metadata = recorded(storage)
    folder = tmp_path / "bag"
    folder.mkdir()
    (folder / "metadata.yaml").write_text(metadata)
    file = folder / yaml.safe_load(metadata)["rosbag2_bagfile_information"]["relative_file_paths"][0]

    @some
    @given(damaged(content))
    def read(data):
        file.write_bytes(data)
        try:
            frames = list(BagSource(folder, rig(TWO_CAMERAS)))
        except UserError as error:
            one_line(error)
            return
        assert len(frames) <= 2

    read()


@some
@given(st.data())
def test_messages_of_a_recording_that_are_no_messages(data):
    store = message_types()
    sound = bytes(store.serialize_cdr(camera_info(START, "CAM_FRONT"), "sensor_msgs/msg/CameraInfo"))
    content = data.draw(damaged(sound))
    try:
        message = store.deserialize_cdr(content, "sensor_msgs/msg/CameraInfo")
    except Exception:  # what the deserialiser raises is its own; the bag source takes any
        return
    FrameAssembler(rig(), on_problem=lambda *_: None).handle_camera_info("CAM_FRONT", message)


def test_weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(
        {"a.weight": np.ones((3, 4), np.float32), "a.bias": np.zeros(3, np.float16)}, path, {"format": "pt"}
    )
    sound = path.read_bytes()

    @some
    @given(st.one_of(damaged(sound), st.binary(max_size=64)))
    def load(data):
        path.write_bytes(data)
        try:
            entries = read_entries(path)
        except UserError as error:
            one_line(error)
            return
        assert sum(tensor.numel() for tensor in entries.values()) < len(data)

    load()


KEYS = [
    "cameras",
    "CAM_FRONT",
    "image",
    "info",
    "anchor",
    "width",
    "height",
    "intrinsics",
    "base_from_camera",
]
values = st.none() | st.booleans() | numbers | st.text(max_size=5)
trees = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@some
@given(trees)
def test_topics_and_calibration_files(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "file.yaml"
    path.write_text(yaml.safe_dump(content))
    for read in (read_rig, read_calibration):
        try:
            read(path)
        except UserError as error:
            one_line(error)


def one_line(error: UserError) -> None:
    """A refusal is one line that says something."""
    assert str(error)
    assert "\n" not in str(error)


def test_a_stamp_at_the_end_of_time_is_survived():
    assembler = FrameAssembler(rig(TWO_CAMERAS), on_problem=lambda *_: None)
    for seconds in (2**31 - 1, -1, 0):
        message = compressed(0, jpeg(SMALL))
        message.header.stamp.sec = seconds
        assembler.handle_image("CAM_FRONT", message)
    assert assembler.counts()["CAM_FRONT"].dropped["refused"] == 1
    assert math.isfinite(assembler.frames.selected)
