"""`gdfusion replay` sends what was recorded, from where it is asked to, as `ros2 bag play` would."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from driving import SECOND, START, TWO_CAMERAS, drive
from nodes import Peer, ros_environment, wait_for
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from tf2_msgs.msg import TFMessage

from gdfusion_ros.assembly.messages import stamp_ns
from gdfusion_ros.cli.main import main
from gdfusion_ros.sinks.bag import image_topic, record_frames

pytestmark = pytest.mark.ros

TIMES = [i / 2 for i in range(7)]


def command(bag, *options: str) -> list[str]:
    return [sys.executable, "-m", "gdfusion_ros.cli.main", "replay", str(bag), "--wait", "30", *options]


class Audience:
    """Hears the images of the front camera, the clock and the static transforms."""

    def __init__(self, peer: Peer) -> None:
        self.images: list[CompressedImage] = []
        self.clock: list[int] = []
        self.static: list[TFMessage] = []
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        peer.hear(CompressedImage, image_topic("CAM_FRONT"), self.images.append, QoSProfile(depth=100))
        peer.hear(Clock, "/clock", lambda m: self.clock.append(stamp_ns(m.clock)), QoSProfile(depth=1000))
        peer.hear(TFMessage, "/tf_static", self.static.append, latched)

    def stamps(self) -> list[int]:
        return [stamp_ns(image.header.stamp) for image in self.images]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_from_a_start_on_every_message_is_sent_with_a_clock_and_what_was_latched_before(tmp_path, storage):
    frames = drive(TIMES, cameras=TWO_CAMERAS)
    record_frames(frames, tmp_path / "bag", storage)
    with ros_environment() as environment:
        peer = Peer(environment)
        try:
            audience = Audience(peer)
            options = ("--start", "1.2", "--rate", "4", "--clock", "--json")
            done = subprocess.run(
                command(tmp_path / "bag", *options),
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            expected = [frame.stamp_ns for frame in frames if frame.stamp_ns >= START + 1.2 * SECOND]
            wait_for(lambda: len(audience.images) == len(expected), "the images")
        finally:
            peer.close()
    assert audience.stamps() == expected
    for image, frame in zip(audience.images, frames[-len(expected) :], strict=True):
        assert bytes(image.data) == frame.view("CAM_FRONT").encoded
    assert len(audience.static) == 1
    assert audience.clock == sorted(audience.clock)
    assert audience.clock[0] >= START + 1.2 * SECOND
    assert audience.clock[-1] == max(view.stamp_ns for view in frames[-1].views)
    # 1.8 s of the recording, at four times its speed.
    assert json.loads(done.stdout.splitlines()[-1])["seconds"] == pytest.approx(0.45, abs=0.3)


def test_a_loop_begins_again_until_it_is_interrupted(tmp_path):
    frames = drive([0.0, 0.5], cameras=TWO_CAMERAS)
    record_frames(frames, tmp_path / "bag")
    with ros_environment() as environment:
        peer = Peer(environment)
        player = subprocess.Popen(command(tmp_path / "bag", "--loop"), env=environment)
        try:
            audience = Audience(peer)
            wait_for(lambda: len(audience.images) >= 4, "the second round")
            player.send_signal(signal.SIGINT)
            assert player.wait(60) == 0
        finally:
            player.kill()
            player.wait()
            peer.close()
    assert audience.stamps()[:4] == 2 * [frame.stamp_ns for frame in frames]


def test_a_paced_replay_that_gets_no_grid_says_so(tmp_path, ros_domain, capsys):
    record_frames(drive([0.0, 0.5], cameras=TWO_CAMERAS), tmp_path / "bag")
    options = ["--paced", "--timeout", "0.5", "--wait", "0", "--rate", "0"]
    assert main(["replay", str(tmp_path / "bag"), *options]) == 1
    assert "no grid came on /gdfusion/occupancy" in capsys.readouterr().err


def test_a_recording_of_ros_1_is_refused_with_what_to_do(tmp_path, capsys):
    store = get_typestore(Stores.ROS1_NOETIC)
    with Rosbag1Writer(tmp_path / "old.bag") as bag:
        connection = bag.add_connection("/word", "std_msgs/msg/String", typestore=store)
        message = store.types["std_msgs/msg/String"]("hello")
        bag.write(connection, 1, store.serialize_ros1(message, "std_msgs/msg/String"))
    assert main(["replay", str(tmp_path / "old.bag")]) == 1
    assert "rosbags-convert" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"), [(("--start", "10"), "beyond the recording"), (("--rate", "-1"), "negative")]
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, words, capsys):
    record_frames(drive([0.0, 0.5], cameras=TWO_CAMERAS), tmp_path / "bag")
    assert main(["replay", str(tmp_path / "bag"), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
