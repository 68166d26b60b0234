"""A tiny data set in nuScenes' own table format, for the real devkit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from driving import NUSCENES, OFFSETS_MS, SECOND, START, ego_from_camera, ego_pose, intrinsics, jpeg, picture
from PIL import Image

from gdfusion_ros.geometry import quaternion, transform

VERSION = "v1.0-mini"
TABLES = ("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log")
TABLES += ("scene", "sample", "sample_data", "sample_annotation", "map")
SIZE = (90, 160)
LIDAR_MS = 36
"""The sweep ends so long after CAM_FRONT's exposure."""
EGO_FROM_LIDAR = transform((0.94, 0.0, 1.84), (np.cos(-np.pi / 4), 0, 0, np.sin(-np.pi / 4)))


def token(*parts: object) -> str:
    """A stable token."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def write_nuscenes(
    root: Path, scenes: tuple[str, ...] = ("scene-0001",), key_frames: int = 4, rate: int = 12
) -> Path:
    """Scenes of key frames at 2 Hz with sweeps between them, six cameras and the LiDAR."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    (root / "maps").mkdir(parents=True)
    Image.new("L", (2, 2)).save(root / "maps" / "map.png")
    channels = [*NUSCENES, "LIDAR_TOP"]
    for channel in channels:
        modality = "lidar" if channel == "LIDAR_TOP" else "camera"
        tables["sensor"].append({"token": token("sensor", channel), "channel": channel, "modality": modality})
    for number, name in enumerate(scenes):
        _scene(root, tables, channels, name, number, key_frames, rate // 2)
    logs = [record["token"] for record in tables["log"]]
    tables["map"].append(
        {"token": token("map"), "category": "semantic_prior", "filename": "maps/map.png", "log_tokens": logs}
    )
    (root / VERSION).mkdir()
    for table, records in tables.items():
        (root / VERSION / f"{table}.json").write_text(json.dumps(records))
    return root


def _scene(
    root: Path,
    tables: dict[str, Any],
    channels: list[str],
    name: str,
    number: int,
    key_frames: int,
    per_key: int,
) -> None:
    begin_us = START // 1000 + number * 100_000_000
    log = token("log", name)
    tables["log"].append(
        {
            "token": log,
            "logfile": f"log{number}",
            "vehicle": "n000",
            "date_captured": "",
            "location": "nowhere",
        }
    )
    samples = [token("sample", name, k) for k in range(key_frames)]
    tables["scene"].append(
        {
            "token": token("scene", name),
            "log_token": log,
            "nbr_samples": key_frames,
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": name,
            "description": "a drive along a bend",
        }
    )
    for k, sample in enumerate(samples):
        tables["sample"].append(
            {
                "token": sample,
                "timestamp": begin_us + k * 500_000 + LIDAR_MS * 1000,
                "prev": samples[k - 1] if k else "",
                "next": samples[k + 1] if k + 1 < key_frames else "",
                "scene_token": token("scene", name),
            }
        )
    for channel in channels:
        calibrated = token("calibrated", name, channel)
        camera = channel in NUSCENES
        pose = ego_from_camera(channel) if camera else EGO_FROM_LIDAR
        tables["calibrated_sensor"].append(
            {
                "token": calibrated,
                "sensor_token": token("sensor", channel),
                "translation": pose[:3, 3].tolist(),
                "rotation": quaternion(pose).tolist(),
                "camera_intrinsic": intrinsics(SIZE).tolist() if camera else [],
            }
        )
        offset = OFFSETS_MS[NUSCENES.index(channel)] if camera else LIDAR_MS
        count = (key_frames - 1) * per_key + 1
        names = [token("data", name, channel, i) for i in range(count)]
        for i in range(count):
            stamp = begin_us + round(i * 500_000 / per_key) + offset * 1000
            key = i % per_key == 0
            world_from_ego = ego_pose((stamp - START // 1000) / 1e6)
            tables["ego_pose"].append(
                {
                    "token": token("pose", name, channel, i),
                    "timestamp": stamp,
                    "translation": world_from_ego[:3, 3].tolist(),
                    "rotation": quaternion(world_from_ego).tolist(),
                }
            )
            suffix = "jpg" if camera else "pcd.bin"
            file = f"{'samples' if key else 'sweeps'}/{channel}/{name}__{channel}__{stamp}.{suffix}"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(_content(camera, number * 1000 + i * 10 + channels.index(channel)))
            tables["sample_data"].append(
                {
                    "token": names[i],
                    "sample_token": samples[min(-(-i // per_key), key_frames - 1)],
                    "ego_pose_token": token("pose", name, channel, i),
                    "calibrated_sensor_token": calibrated,
                    "timestamp": stamp,
                    "fileformat": "jpg" if camera else "pcd",
                    "is_key_frame": key,
                    "height": SIZE[0] if camera else 0,
                    "width": SIZE[1] if camera else 0,
                    "filename": file,
                    "prev": names[i - 1] if i else "",
                    "next": names[i + 1] if i + 1 < count else "",
                }
            )


def _content(camera: bool, seed: int) -> bytes:
    if camera:
        return jpeg(picture(seed, SIZE))
    return np.random.default_rng(seed).normal(size=(50, 5)).astype(np.float32).tobytes()


def stamp_of_key(k: int) -> int:
    """CAM_FRONT's stamp of a key frame of the first scene, in nanoseconds."""
    return START + k * SECOND // 2
