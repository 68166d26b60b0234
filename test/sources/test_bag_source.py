"""A recording gives the frames it was made of, whatever stored it."""

from __future__ import annotations

import numpy as np
import pytest
from driving import drive, rig

from gdfusion_ros.assembly.assembler import AssemblySettings
from gdfusion_ros.assembly.rig import find_topics, read_rig
from gdfusion_ros.errors import UserError
from gdfusion_ros.sinks.bag import record_frames
from gdfusion_ros.sources.bag import BagSource
from gdfusion_ros.sources.nuscenes import FolderSource


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.stamp_ns == other.stamp_ns
        assert np.allclose(one.world_from_ego, other.world_from_ego, atol=1e-9)
        for view in other.views:
            twin = one.view(view.name)
            assert twin.stamp_ns == view.stamp_ns
            assert twin.encoded == view.encoded
            assert np.array_equal(twin.image, view.image)
            assert np.allclose(twin.intrinsics, view.intrinsics)
            assert np.allclose(twin.ego_from_camera, view.ego_from_camera, atol=1e-9)
            assert np.allclose(twin.world_from_ego, view.world_from_ego, atol=1e-9)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_frames_come_back_as_they_were_recorded(tmp_path, storage):
    frames = drive([0.0, 0.5, 1.0, 3.0])
    assert record_frames(frames, tmp_path / "bag", storage) == 4
    assert_same(list(BagSource(tmp_path / "bag", rig())), frames)


def test_real_frames_come_back_from_a_recording(tmp_path, shared_dir):
    source = FolderSource(shared_dir / "data" / "nuscenes_scene0103")
    record_frames(source, tmp_path / "bag")
    found = list(BagSource(tmp_path / "bag", read_rig(find_topics("nuscenes"))))
    assert_same(found, list(source))
    assert np.allclose(found[0].ego_from_lidar, next(iter(source)).ego_from_lidar)


def test_of_a_recording_with_sweeps_the_key_frames_are_taken(tmp_path):
    frames = drive([i / 12 for i in range(25)])
    record_frames(frames, tmp_path / "bag")
    source = BagSource(tmp_path / "bag", rig())
    assert [frame.stamp_ns for frame in source] == [frame.stamp_ns for frame in frames[::6]]
    assert source.assembler.counts()["CAM_BACK"].received == 25


def test_odometry_places_the_cameras_as_tf_does(tmp_path):
    frames = drive([0.0, 0.5])
    record_frames(frames, tmp_path / "bag")
    assert_same(list(BagSource(tmp_path / "bag", rig(motion="odometry"))), frames)


def test_settings_reach_the_assembly(tmp_path):
    record_frames(drive([i / 4 for i in range(8)]), tmp_path / "bag")
    settings = AssemblySettings(inference_period=1.0)
    assert len(list(BagSource(tmp_path / "bag", rig(), settings))) == 2


def test_the_source_can_be_read_again(tmp_path):
    record_frames(drive([0.0, 0.5]), tmp_path / "bag")
    source = BagSource(tmp_path / "bag", rig())
    assert len(list(source)) == len(list(source)) == 2


def test_what_is_no_recording_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no recording"):
        BagSource(tmp_path / "nothing", rig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        BagSource(tmp_path / "empty", rig())


def test_a_recording_with_other_topics_names_the_one_that_is_missing(tmp_path):
    record_frames(drive([0.0]), tmp_path / "bag")
    with pytest.raises(UserError, match="/sensing/camera/camera0"):
        BagSource(tmp_path / "bag", read_rig(find_topics("autoware")))
    with pytest.raises(UserError, match="transport"):
        BagSource(tmp_path / "bag", rig(transport="raw"))


def test_a_truncated_recording_gives_an_error_and_no_crash(tmp_path):
    record_frames(drive([0.0, 0.5]), tmp_path / "bag")
    (file,) = (tmp_path / "bag").glob("*.mcap")
    content = file.read_bytes()
    for length in (10, len(content) // 2, len(content) - 20):
        file.write_bytes(content[:length])
        with pytest.raises(UserError):
            list(BagSource(tmp_path / "bag", rig()))
