"""nuScenes scenes become recordings that hold what the data set holds, and the node's assembly makes its key frames."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from nuscenes_tables import EGO_FROM_LIDAR, stamp_of_key, write_nuscenes
from rosbags.highlevel import AnyReader

from gdfusion_ros.assembly.rig import find_topics, read_calibration, read_rig
from gdfusion_ros.cli.main import main
from gdfusion_ros.sources.bag import BagSource
from gdfusion_ros.sources.nuscenes_tables import NuScenesSource

pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_nuscenes(tmp_path_factory.mktemp("nuscenes"), ("scene-0001", "scene-0002"))


def convert(data, out, *options) -> int:
    return main(["nuscenes-to-bag", str(data), "--out", str(out), *options])


def rig():
    return read_rig(find_topics("nuscenes"))


@pytest.mark.parametrize("options", [(), ("--sweeps",), ("--sweeps", "--storage", "sqlite3")], ids=" ".join)
def test_the_key_frames_of_a_recording_are_those_of_the_data_set(tmp_path, data, options):
    assert convert(data, tmp_path, "--scenes", "scene-0001", *options) == 0
    found = list(BagSource(tmp_path / "scene-0001", rig()))
    expected = list(NuScenesSource(data, scenes=["scene-0001"]))
    assert [frame.stamp_ns for frame in found] == [stamp_of_key(k) for k in range(4)]
    for one, other in zip(found, expected, strict=True):
        assert one.stamp_ns == other.stamp_ns
        assert np.allclose(one.world_from_ego, other.world_from_ego)
        assert np.allclose(one.ego_from_lidar, EGO_FROM_LIDAR)
        for view in other.views:
            twin = one.view(view.name)
            assert (twin.stamp_ns, twin.encoded) == (view.stamp_ns, view.encoded)
            assert np.array_equal(twin.image, view.image)
            assert np.array_equal(twin.intrinsics, view.intrinsics)
            assert np.allclose(twin.ego_from_camera, view.ego_from_camera)
            assert np.allclose(twin.world_from_ego, view.world_from_ego)


def test_sweeps_lidar_and_the_scenes_token_are_in_the_recording(tmp_path, data):
    assert convert(data, tmp_path, "--scenes", "scene-0002", "--sweeps", "--lidar") == 0
    bag = tmp_path / "scene-0002"
    info = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert info["custom_data"]["scene"] == "scene-0002"
    assert len(info["custom_data"]["scene_token"]) == 32
    counts = {t["topic_metadata"]["name"]: t["message_count"] for t in info["topics_with_message_count"]}
    assert counts["/CAM_BACK/image_rect_compressed"] == counts["/LIDAR_TOP"] == 19
    assert counts["/tf"] == counts["/odom"] == counts["/clock"] == 7 * 19
    with AnyReader([bag]) as reader:
        (lidar,) = (c for c in reader.connections if c.topic == "/LIDAR_TOP")
        cloud = reader.deserialize(next(reader.messages([lidar]))[2], lidar.msgtype)
        assert [field.name for field in cloud.fields] == ["x", "y", "z", "intensity", "ring"]
        assert cloud.header.frame_id == "LIDAR_TOP"
        (odometry,) = (c for c in reader.connections if c.topic == "/odom")
        for _, _, message in reader.messages([odometry]):
            twist = reader.deserialize(message, odometry.msgtype).twist.twist
            assert np.hypot(twist.linear.x, twist.linear.y) == pytest.approx(np.hypot(5.0, 0.3), abs=0.1)
            assert twist.angular.z == pytest.approx(0.05, abs=0.002)


def test_the_command_goes_on_where_it_was_interrupted(tmp_path, data, capsys):
    assert convert(data, tmp_path, "--scenes", "scene-0001") == 0
    assert convert(data, tmp_path, "--scenes", "scene-0001", "scene-0002") == 0
    (tmp_path / "scene-0002" / "metadata.yaml").unlink()  # as if it had been interrupted
    capsys.readouterr()
    assert convert(data, tmp_path, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["kept"] == [str(tmp_path / "scene-0001")]
    assert result["written"] == [str(tmp_path / "scene-0002")]
    assert convert(data, tmp_path, "--scenes", "scene-0001", "--sweeps", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["written"], "other options, another recording"


def test_a_calibration_file_comes_out_that_the_node_reads(tmp_path, data):
    file = tmp_path / "calibration.yaml"
    assert convert(data, tmp_path / "bags", "--scenes", "scene-0001", "--calibration", str(file)) == 0
    first = next(iter(NuScenesSource(data)))
    for name, entry in read_calibration(file).items():
        assert np.allclose(entry.calibration.intrinsics, first.view(name).intrinsics)
        assert np.allclose(entry.ego_from_camera, first.view(name).ego_from_camera)


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--scenes", "scene-9999"), "scene-9999"), (("--version", "v1.0-trainval"), "v1.0-trainval")],
)
def test_what_is_not_in_the_data_set_is_said_in_one_line(tmp_path, data, options, words, capsys):
    assert convert(data, tmp_path, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_file_that_was_not_downloaded_is_named(tmp_path, data, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    missing = sorted((copy / "samples" / "CAM_BACK").iterdir())[1]
    missing.unlink()
    assert convert(copy, tmp_path / "bags", "--scenes", "scene-0001") == 1
    assert missing.name in capsys.readouterr().err


def test_a_folder_that_is_no_recording_is_not_removed(tmp_path, data, capsys):
    (tmp_path / "scene-0001").mkdir()
    (tmp_path / "scene-0001" / "thesis.tex").write_text("years of work")
    assert convert(data, tmp_path, "--scenes", "scene-0001") == 1
    assert (tmp_path / "scene-0001" / "thesis.tex").exists()


def test_frames_of_the_source_know_their_sample_and_their_sweep(data):
    source = NuScenesSource(data)
    assert len(source) == 8
    names, frame = next(source.pairs())
    assert frame.scene == names.scene == "scene-0001"
    assert frame.lidar_points.shape == (50, 3)
    sweep = source.world_from_lidars("scene-0001")[0]
    assert np.allclose(sweep, frame.world_from_ego_at_lidar @ EGO_FROM_LIDAR)
