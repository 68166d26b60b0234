"""Shots out of recordings equal what went into them; files made of shots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdfusion_ros.cli import main
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, Occupancy
from gdfusion_ros.sinks.bag import record_frames
from gdfusion_ros.sinks.output import OccupancyRecorder
from gdfusion_ros.sinks.recording import Recording, message_types
from gdfusion_ros.viewer.recordings import Recordings
from gdfusion_ros.viewer.shot import Shot, make_shot

Moment = tuple[CameraFrame, Occupancy, np.ndarray]


@pytest.fixture
def recorded(tmp_path: Path, moments: list[Moment]) -> tuple[Path, Path]:
    """The street as an output recording and as an input recording."""
    with Recording(tmp_path / "output") as recording:
        recorder = OccupancyRecorder(recording)
        for _, occupancy, _ in moments:
            recorder.write(occupancy)
    record_frames((frame for frame, _, _ in moments), tmp_path / "input")
    return tmp_path / "output", tmp_path / "input"


def test_what_was_recorded_is_what_is_shown(recorded: tuple[Path, Path], moments: list[Moment]) -> None:
    with Recordings(recorded) as shots:
        assert len(shots) == 5
        for shot, (frame, occupancy, _) in zip(shots, moments, strict=True):
            expected = make_shot(occupancy, frame)
            for field in ("cells", "labels", "predicted", "confidence", "vectors_valid"):
                np.testing.assert_array_equal(getattr(shot, field), getattr(expected, field))
            np.testing.assert_array_equal(
                shot.vectors[shot.vectors_valid], expected.vectors[expected.vectors_valid]
            )
            np.testing.assert_allclose(shot.world_from_ego, occupancy.world_from_ego, atol=1e-12)
            assert shot.grid == occupancy.grid
            assert (shot.stamp_ns, shot.sequence, shot.history_frames) == (
                occupancy.stamp_ns,
                1,
                expected.history_frames,
            )
            assert shot.flow_kind is expected.flow_kind
            assert set(shot.pictures) == {"CAM_FRONT", "CAM_BACK"}
            for name, picture in shot.pictures.items():
                np.testing.assert_array_equal(picture.image, expected.pictures[name].image)
                assert picture.field_of_view == pytest.approx(expected.pictures[name].field_of_view)
                np.testing.assert_allclose(
                    picture.ego_from_camera, expected.pictures[name].ego_from_camera, atol=1e-9
                )


def test_what_belongs_together_is_found_by_its_stamps_however_late_it_was_recorded(
    recorded: tuple[Path, Path], tmp_path: Path, moments: list[Moment]
) -> None:
    types = message_types().types

    class Late:
        """As `ros2 bag record` writes: each message when it comes, long after the frame it belongs to."""

        def __init__(self, recording: Recording) -> None:
            self.recording, self.delay = recording, 700_000_000

        def write(self, topic: str, kind: str, message: Any, stamp: int) -> None:
            self.delay += 1_000_000
            self.recording.write(topic, kind, message, stamp + self.delay)

    with Recording(tmp_path / "late") as recording:
        late = Late(recording)
        recorder = OccupancyRecorder(late)  # type: ignore[arg-type]
        for number, (_, occupancy, _) in enumerate(moments):
            recorder.write(occupancy)
            values = {"total_ms": f"{100 + number}.5", "sequence": "1", "odd_ms": "unknown"}
            if number == 3:
                values["sequence_started"] = "pose_jump"
            pairs = [types["diagnostic_msgs/msg/KeyValue"](key, value) for key, value in values.items()]
            status = types["diagnostic_msgs/msg/DiagnosticStatus"](0, "latency", "", "", pairs)
            stamp = types["builtin_interfaces/msg/Time"](*divmod(occupancy.stamp_ns, 1_000_000_000))
            header = types["std_msgs/msg/Header"](stamp, "")
            array = types["diagnostic_msgs/msg/DiagnosticArray"](header, [status])
            late.write("/gdfusion/latency", "diagnostic_msgs/msg/DiagnosticArray", array, occupancy.stamp_ns)
    with Recordings([tmp_path / "late", recorded[1]]) as shots:
        assert len(shots) == 5
        for number, (shot, (frame, occupancy, _)) in enumerate(zip(shots, moments, strict=True)):
            expected = make_shot(occupancy, frame)
            assert shot.stamp_ns == expected.stamp_ns
            assert shot.vectors is not None
            np.testing.assert_array_equal(shot.vectors_valid, expected.vectors_valid)
            np.testing.assert_array_equal(
                shot.pictures["CAM_FRONT"].image, expected.pictures["CAM_FRONT"].image
            )
            assert shot.timings_ms == {"total": 100.5 + number}
            assert shot.restart_reason == ("pose_jump" if number == 3 else "")


def test_an_output_alone_shows_grids_without_images(recorded: tuple[Path, Path]) -> None:
    with Recordings(recorded[:1]) as shots:
        assert len(shots[:2]) == 2
        assert shots[-1].stamp_ns > shots[0].stamp_ns
        assert not shots[0].pictures
        assert shots[3].world_from_ego[0, 3] == pytest.approx(6.0)


def test_a_recording_without_grids_is_refused_in_one_line(
    recorded: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no gdfusion_ros/msg/SemanticOccupancy"):
        Recordings([recorded[1]])
    with pytest.raises(UserError, match="no recording"):
        Recordings([tmp_path / "absent"])


def test_pictures_are_written_from_a_recording_without_a_browser(
    recorded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "view",
        *map(str, recorded),
        "--png",
        str(tmp_path / "png"),
        "--frames",
        "2",
        "--color-by",
        "flow",
    ]
    assert main.main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["000000.png", "000001.png"]
    assert "2 pictures" in capsys.readouterr().out


def test_a_rerun_recording_holds_every_shot(shots: list[Shot], tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    from gdfusion_ros.viewer.export import write_rerun

    path = tmp_path / "street.rrd"
    assert write_rerun(shots, path) == 5
    data = path.read_bytes()
    assert data[:3] == b"RRF"
    for name in (b"world/ego/voxels", b"world/ego/flow", b"cameras/CAM_FRONT"):
        assert name in data
    with pytest.raises(UserError, match="no grids"):
        write_rerun([], tmp_path / "none.rrd")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recorded output"),
        (["--live", "--png", "x"], "only shows"),
        (["--live", "out"], "give a recorded"),
    ],
)
def test_unclear_wishes_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main.main(["view", *arguments]) == 1
    assert message in capsys.readouterr().err
