"""A topics file that cannot be right is refused in one line that names what is wrong."""

from __future__ import annotations

import pytest
import yaml

from gdfusion_ros.assembly.rig import find_topics, read_rig
from gdfusion_ros.errors import UserError

ONE = {"CAM_FRONT": {"image": "/front", "info": "/front/camera_info"}}


def rig_of(tmp_path, changes=None, **content):
    path = tmp_path / "topics.yaml"
    path.write_text(yaml.safe_dump({"cameras": ONE, **content}))
    return read_rig(path, **(changes or {}))


def test_a_rig_has_what_its_file_says_and_what_the_node_says_instead(tmp_path):
    rig = rig_of(tmp_path, {"fixed_frame": "map", "base_frame": ""}, base_frame="rear_axle", transport="raw")
    assert (rig.names, rig.anchor, rig.transport) == (("CAM_FRONT",), "CAM_FRONT", "raw")
    assert (rig.base_frame, rig.fixed_frame) == ("rear_axle", "map")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cameras": {}}, "must map camera names"),
        ({"cameras": {"CAM_FRONT": {"info": "/front/camera_info"}}}, "needs an `image` topic"),
        ({"cameras": {"CAM_FRONT": {"image": "/front", "extrinsic": 1}}}, "unknown key 'extrinsic'"),
        ({"cameras": {"CAM_FRONT": {"image": "/front"}}}, "no CameraInfo topic"),
        ({"anchor": "CAM_BACK"}, "anchor camera 'CAM_BACK'"),
        ({"anchors": "CAM_FRONT"}, "unknown key 'anchors'"),
        ({"transport": "h264"}, "transport is 'h264'"),
        ({"motion": "gps"}, "motion is 'gps'"),
        ({"cameras": {f"C{i}": ONE["CAM_FRONT"] for i in range(33)}}, "33 cameras, more than 32"),
    ],
)
def test_what_cannot_be_a_rig_is_named(tmp_path, content, words):
    with pytest.raises(UserError, match=words) as error:
        rig_of(tmp_path, **content)
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_preset_and_no_file_lists_the_presets():
    with pytest.raises(UserError, match="autoware, dataset_bridge, nuscenes, nuscenes2bag"):
        find_topics("waymo")
