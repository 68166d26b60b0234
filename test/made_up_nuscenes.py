"""A tiny data set in nuScenes' own tables and folders, written from camera frames, for the real devkit to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.geometry import Matrix, quaternion
from gdfusion_ros.sinks.bag import pixel_from_calibrated

VERSION = "v1.0-mini"
Tables = dict[str, list[dict[str, Any]]]
TABLES = (
    *("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log"),
    *("scene", "sample", "sample_data", "sample_annotation", "map"),
)
LIDAR_FROM_EGO_HEIGHT = 1.84
EGO_FROM_LIDAR = np.array([[0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, LIDAR_FROM_EGO_HEIGHT], [0, 0, 0, 1.0]])


def token(*words: object) -> str:
    """32 hexadecimal digits, as nuScenes' tokens are."""
    return hashlib.md5("/".join(map(str, words)).encode()).hexdigest()


def write_nuscenes(folder: Path, scenes: Mapping[str, Sequence[CameraFrame]]) -> dict[tuple[str, int], str]:
    """Write the data set; gives the sample tokens by scene and number. Images are stored as lossless PNGs."""
    tables: Tables = {name: [] for name in TABLES}
    samples = {}
    for name, frames in scenes.items():
        _write_scene(folder, tables, name, frames)
        samples |= {(name, k): token("sample", name, k) for k in range(len(frames))}
    known = {row["token"] for row in tables["sample_data"]}
    for row in tables["sample_data"]:
        row["next"] = row["next"] if row["next"] in known else ""
    (folder / "maps").mkdir(parents=True)
    cv2.imwrite(str(folder / "maps" / "map.png"), np.zeros((8, 8), np.uint8))
    tables["map"].append(
        {
            "token": token("map"),
            "log_tokens": [log["token"] for log in tables["log"]],
            "category": "semantic_prior",
            "filename": "maps/map.png",
        }
    )
    (folder / VERSION).mkdir()
    for table, rows in tables.items():
        (folder / VERSION / f"{table}.json").write_text(json.dumps(rows))
    return samples


def _write_scene(folder: Path, tables: Tables, name: str, frames: Sequence[CameraFrame]) -> None:
    tables["log"].append(
        {
            "token": token("log", name),
            "logfile": name,
            "vehicle": "made-up",
            "date_captured": "2026-01-01",
            "location": "nowhere",
        }
    )
    tables["scene"].append(
        {
            "token": token("scene", name),
            "log_token": token("log", name),
            "nbr_samples": len(frames),
            "first_sample_token": token("sample", name, 0),
            "last_sample_token": token("sample", name, len(frames) - 1),
            "name": name,
            "description": "made up",
        }
    )
    for k, frame in enumerate(frames):
        tables["sample"].append(
            {
                "token": token("sample", name, k),
                "timestamp": frame.stamp_ns // 1000,
                "prev": token("sample", name, k - 1) if k else "",
                "next": token("sample", name, k + 1) if k + 1 < len(frames) else "",
                "scene_token": token("scene", name),
            }
        )
        for view in frame.views:
            file = f"samples/{view.name}/{name}__{view.name}__{view.stamp_ns // 1000}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / file), cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR))
            _write_data(
                tables, name, k, view.name, "camera", file, view.stamp_ns, view.world_from_ego, view.ego_from_camera,
                (pixel_from_calibrated(view) @ view.intrinsics).tolist(), view.image.shape[:2],
            )  # fmt: skip
        file = f"samples/LIDAR_TOP/{name}__LIDAR_TOP__{frame.stamp_ns // 1000}.pcd.bin"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        points = np.zeros((2, 5), np.float32) if frame.lidar_points is None else frame.lidar_points
        np.pad(points, ((0, 0), (0, 5 - points.shape[1]))).astype(np.float32).tofile(folder / file)
        pose = (
            frame.world_from_ego if frame.world_from_ego_at_lidar is None else frame.world_from_ego_at_lidar
        )
        place = EGO_FROM_LIDAR if frame.ego_from_lidar is None else frame.ego_from_lidar
        _write_data(tables, name, k, "LIDAR_TOP", "lidar", file, frame.stamp_ns, pose, place, [], (0, 0))


def _write_data(
    tables: Tables, scene: str, k: int, channel: str, modality: str, file: str, stamp_ns: int,
    world_from_ego: Matrix, ego_from_sensor: Matrix, intrinsic: list, size: tuple[int, int],
) -> None:  # fmt: skip
    sensor, calibrated = token("sensor", channel), token("calibrated", scene, channel)
    if all(row["token"] != sensor for row in tables["sensor"]):
        tables["sensor"].append({"token": sensor, "channel": channel, "modality": modality})
    if all(row["token"] != calibrated for row in tables["calibrated_sensor"]):
        tables["calibrated_sensor"].append(
            {
                "token": calibrated,
                "sensor_token": sensor,
                "translation": ego_from_sensor[:3, 3].tolist(),
                "rotation": quaternion(ego_from_sensor).tolist(),
                "camera_intrinsic": intrinsic,
            }
        )
    pose = token("pose", scene, k, channel)
    tables["ego_pose"].append(
        {
            "token": pose,
            "timestamp": stamp_ns // 1000,
            "rotation": quaternion(world_from_ego).tolist(),
            "translation": world_from_ego[:3, 3].tolist(),
        }
    )
    tables["sample_data"].append(
        {
            "token": token("data", scene, k, channel),
            "sample_token": token("sample", scene, k),
            "ego_pose_token": pose,
            "calibrated_sensor_token": calibrated,
            "timestamp": stamp_ns // 1000,
            "fileformat": file.rpartition(".")[2],
            "is_key_frame": True,
            "height": size[0],
            "width": size[1],
            "filename": file,
            "prev": token("data", scene, k - 1, channel) if k else "",
            "next": token("data", scene, k + 1, channel),
        }
    )
