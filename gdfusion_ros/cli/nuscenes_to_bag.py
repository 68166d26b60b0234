"""Write scenes of nuScenes as rosbag2 recordings that the node plays from, one a scene.

  gdfusion nuscenes-to-bag /data/nuscenes --version v1.0-mini --scenes scene-0103 --out bags
  gdfusion nuscenes-to-bag /data/nuscenes --version v1.0-trainval --sweeps --lidar --out bags

A recording holds the cameras' JPEGs as they are (CompressedImage) with CameraInfo, /tf with the ego pose at every
sensor's exposure, /tf_static, /odom with velocities, /clock, and the LiDAR as PointCloud2 if asked for. Key frames only
(2 Hz), or with the sweeps between them (12 Hz). A scene that is there already is left alone, so the command can be
interrupted and run again; what was written is read back and compared.

nuScenes is licensed for non-commercial use; what you make of it is too.
"""

from __future__ import annotations

import argparse
import shutil
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from gdfusion_ros.cli.inputs import add_json_argument, print_json
from gdfusion_ros.errors import UserError
from gdfusion_ros.geometry import Matrix, quaternion
from gdfusion_ros.sinks.bag import SensorRecorder, Twist, image_topic, info_topic, twist
from gdfusion_ros.sinks.recording import Recording
from gdfusion_ros.sources.bag import open_bag
from gdfusion_ros.sources.nuscenes import LIDAR_FIELDS, lidar_points
from gdfusion_ros.sources.nuscenes_tables import (
    CAMERAS,
    LIDAR,
    ego_pose,
    intrinsics,
    open_nuscenes,
    read_file,
    scene_records,
    sensor_pose,
)

VELOCITY_NS = 50_000_000
"""Velocities are taken over at least this time on each side: poses a few milliseconds apart are mostly noise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "root", type=Path, help="folder of the data set, with samples/, sweeps/ and v1.0-.../"
    )
    parser.add_argument(
        "--version", default="v1.0-mini", help="v1.0-mini, v1.0-trainval or v1.0-test (%(default)s)"
    )
    parser.add_argument("--scenes", nargs="*", default=[], help="names, as scene-0103; all unless given")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the recordings, one folder a scene"
    )
    parser.add_argument(
        "--sweeps", action="store_true", help="also what lies between key frames: 12 Hz, not 2 Hz"
    )
    parser.add_argument("--lidar", action="store_true", help="also LIDAR_TOP, as PointCloud2")
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap", help="(%(default)s)")
    parser.add_argument("--calibration", type=Path, help="write the cameras' calibrations into this YAML too")
    add_json_argument(parser)


@dataclass(frozen=True)
class _Written:
    """What is expected to be in a recording."""

    messages: int
    images: dict[str, list[tuple[int, str]]]
    """Camera -> stamp and file of each image."""


def run(args: argparse.Namespace) -> int:
    """Convert; 0 when every scene is there and reads back as it was written."""
    nuscenes = open_nuscenes(args.root, args.version)
    scenes = scene_records(nuscenes, args.scenes)
    options = f"sweeps={args.sweeps} lidar={args.lidar} storage={args.storage}"
    written, kept = [], []
    for scene in scenes:
        path = args.out / scene["name"]
        if _is_complete(path, scene, options):
            kept.append(str(path))
            print(f"{path} is there already")
            continue
        if path.exists():
            shutil.rmtree(
                path
            )  # what an interrupted run left: a recording without its metadata, or with other options
        expected = _convert(nuscenes, scene, path, args, options)
        _verify(nuscenes, path, expected)
        written.append(str(path))
        print(f"{path}: {expected.messages} messages, read back")
    if args.calibration is not None:
        _write_calibration(nuscenes, scenes[0], args.calibration)
    if args.json:
        print_json({"written": written, "kept": kept, "scenes": [scene["name"] for scene in scenes]})
    return 0


def _is_complete(path: Path, scene: dict[str, Any], options: str) -> bool:
    """Whether a finished recording of the scene with these options is there; the metadata is written last."""
    try:
        content = yaml.safe_load((path / "metadata.yaml").read_text())
        notes = content["rosbag2_bagfile_information"]["custom_data"] or {}
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        if (
            path.exists()
            and not any(path.glob("*.mcap"))
            and not any(path.glob("*.db3"))
            and any(path.iterdir())
        ):
            raise UserError(f"{path} exists and is no recording: choose another --out") from None
        return False
    return bool(notes.get("scene_token") == scene["token"] and notes.get("options") == options)


def _records(nuscenes: Any, scene: dict[str, Any], sweeps: bool) -> list[dict[str, Any]]:
    """The sample_data of the cameras and the LiDAR between the scene's first and last key frame, by time."""
    first = nuscenes.get("sample", scene["first_sample_token"])["data"]
    found = []
    for channel in (*CAMERAS, LIDAR):
        if channel not in first:
            raise UserError(f"{scene['name']} has no {channel}")
        token = first[channel]
        while token:
            record = nuscenes.get("sample_data", token)
            if record["is_key_frame"] or sweeps:
                found.append(record)
            token = record["next"]
    return sorted(found, key=lambda record: record["timestamp"])


def _convert(
    nuscenes: Any, scene: dict[str, Any], path: Path, args: argparse.Namespace, options: str
) -> _Written:
    records = _records(nuscenes, scene, args.sweeps)
    poses = {int(record["timestamp"]) * 1000: ego_pose(nuscenes, record) for record in records}
    stamps = sorted(poses)
    places = {record["channel"]: sensor_pose(nuscenes, record) for record in reversed(records)}
    images: dict[str, list[tuple[int, str]]] = {name: [] for name in CAMERAS}
    messages, last = 1, None
    log = nuscenes.get("log", scene["log_token"])
    with Recording(path, args.storage) as recording:
        recording.note(
            {
                "dataset": f"nuScenes {args.version}",
                "scene": scene["name"],
                "scene_token": scene["token"],
                "location": str(log.get("location", "")),
                "options": options,
            }
        )
        sensors = SensorRecorder(recording)
        sensors.static(places, stamps[0])
        for record in tqdm(records, desc=scene["name"], unit="file", disable=None):
            stamp, channel = int(record["timestamp"]) * 1000, record["channel"]
            if stamp != last:
                sensors.ego(stamp, poses[stamp], _twist_at(stamps, poses, stamp))
                messages, last = messages + 3, stamp
            if channel != LIDAR:
                size = (int(record["height"]), int(record["width"]))
                sensors.camera(
                    channel, stamp, intrinsics(nuscenes, record), size, read_file(nuscenes, record)
                )
                images[channel].append((stamp, record["filename"]))
                messages += 2
            elif args.lidar:
                sensors.points(LIDAR, stamp, lidar_points(read_file(nuscenes, record)), LIDAR_FIELDS)
                messages += 1
    return _Written(messages, images)


def _twist_at(stamps: list[int], poses: dict[int, Matrix], stamp: int) -> Twist:
    """The velocity at a time, from poses a little before and after it."""
    before = stamps[max(bisect_left(stamps, stamp - VELOCITY_NS) - 1, 0)]
    after = stamps[min(bisect_left(stamps, stamp + VELOCITY_NS), len(stamps) - 1)]
    return twist((before, poses[before]), (after, poses[after]))


def _verify(nuscenes: Any, path: Path, expected: _Written) -> None:
    """Read the recording back: all messages, and every JPEG byte for byte. UserError when something differs."""
    found: dict[str, list[int]] = {}
    count = 0
    with open_bag(path) as reader:
        wanted = {image_topic(name): iter(images) for name, images in expected.images.items()}
        for connection, stamp, data in reader.messages():
            count += 1
            found.setdefault(connection.topic, []).append(stamp)
            if connection.topic in wanted:
                image: Any = reader.deserialize(data, connection.msgtype)
                due, file = next(wanted[connection.topic])
                same = image.data.tobytes() == (Path(nuscenes.dataroot) / file).read_bytes()
                if due != stamp or not same:
                    raise UserError(
                        f"{path} does not read back: {file} differs; is the disk full or failing?"
                    )
    if count != expected.messages:
        raise UserError(f"{path} does not read back: {count} of {expected.messages} messages")
    for name, images in expected.images.items():
        if len(found.get(info_topic(name), [])) != len(images):
            raise UserError(f"{path} does not read back: {info_topic(name)} is not complete")


def _write_calibration(nuscenes: Any, scene: dict[str, Any], path: Path) -> None:
    """The cameras' calibrations as the node's parameter `calibration` takes them."""
    data = nuscenes.get("sample", scene["first_sample_token"])["data"]
    cameras = {}
    for name in CAMERAS:
        record = nuscenes.get("sample_data", data[name])
        pose = sensor_pose(nuscenes, record)
        cameras[name] = {
            "width": int(record["width"]),
            "height": int(record["height"]),
            "intrinsics": intrinsics(nuscenes, record).ravel().tolist(),
            "base_from_camera": {
                "translation": pose[:3, 3].tolist(),
                "rotation_wxyz": quaternion(pose).tolist(),
            },
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"cameras": cameras}, sort_keys=False))
