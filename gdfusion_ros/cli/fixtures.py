"""Reads the folders of reference numbers that ``gdfusion parity`` compares with."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch import Tensor

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView, Image, ImageTransform
from gdfusion_ros.grid import Triple
from gdfusion_ros.model.config import DepthBins, ModelConfig, load_config

Arrays = dict[str, npt.NDArray[Any]]
ANCHOR = "CAM_FRONT"
SINGLE_POSES = ("cotr",)
"""Networks whose reference rounded all poses to float32 before it computed anything from them."""


@dataclass(frozen=True)
class TensorRecord:
    """What a fixture says about one named tensor."""

    shape: tuple[int, ...]
    stride: int
    std: list[float]
    """Of the whole tensor, frame by frame."""
    absmax: list[float]
    """Largest absolute value of the whole tensor, frame by frame."""

    @property
    def count(self) -> int:
        """Number of values of the whole tensor."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class NetworkFixture:
    """A network, its weights, its frames and what it must give."""

    config: ModelConfig
    weights: dict[str, Tensor]
    """Under the published names."""
    frames: list[CameraFrame]
    starts: list[bool]
    """For each frame, whether it begins a sequence."""
    tensors: dict[str, TensorRecord]
    expected: Arrays
    """``<frame>/<tensor>``, ``<frame>/labels``, ``<frame>/clear``."""


def read_npz(path: Path) -> Arrays:
    """All arrays of an .npz. Raises UserError when it is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError when it is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_network_fixture(folder: Path, given_images: Path | None) -> NetworkFixture:
    """A folder with meta.json, weights.npz, frames.npz and expected.npz.

    ``given_images`` has the frames.json and JPEGs of fixtures that store no images; None for the default place,
    ``../../data/nuscenes_scene0103`` beside the fixture. Raises UserError.
    """
    meta = read_json(folder / "meta.json")
    try:
        config = fixture_config(meta)
        frames, starts = _frames(folder, meta, config, given_images)
        tensors = {
            name: TensorRecord(tuple(t["shape"]), int(t["stride"]), t["std"], t["absmax"])
            for name, t in meta["tensors"].items()
        }
        weights = _weights(folder, meta)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} is no complete fixture: {error!r}") from error
    return NetworkFixture(config, weights, frames, starts, tensors, read_npz(folder / "expected.npz"))


def fixture_config(meta: dict[str, Any]) -> ModelConfig:
    """The named network's configuration with the fixture's input size, cameras, grid and depth bins."""
    config = load_config(meta["network"])
    # Where images are padded, the input's size is that after padding.
    height, width = meta.get("image_size", meta["input_size"])
    x, y, z, depth = _grid(meta)
    return replace(
        config,
        cameras=tuple(meta["cameras"]),
        image=replace(config.image, height=height, width=width),
        grid=replace(config.grid, x=x, y=y, z=z),
        depth=None if depth is None else DepthBins(*depth),
    )


def _grid(meta: dict[str, Any]) -> tuple[Triple, Triple, Triple, Triple | None]:
    """(lower, upper, step) along x, y and z, and of the depth bins where there are some."""
    if "pc_range" in meta:
        cells = meta["volume_w_x"][0], meta["volume_h_y"][0], meta["volume_z"][0]
        bounds = zip(meta["pc_range"][:3], meta["pc_range"][3:], cells, strict=True)
        x, y, z = ((float(low), float(high), (high - low) / n) for low, high, n in bounds)
        return x, y, z, None
    # Two spellings: "x" and "xbound", "depth" and "dbound".
    bounds_of: dict[str, Triple] = {
        name[0]: (float(lower), float(upper), float(step))
        for name, (lower, upper, step) in meta["grid"].items()
    }
    return bounds_of["x"], bounds_of["y"], bounds_of["z"], bounds_of["d"]


def _weights(folder: Path, meta: dict[str, Any]) -> dict[str, Tensor]:
    stored = read_npz(folder / "weights.npz")
    result = {}
    for name, shape in meta["shapes"].items():
        if name in stored:
            values = stored[name]
        else:
            seed = zlib.crc32((meta["salt"] + name).encode())
            drawn = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
            values = drawn * np.float32(meta["scale"][name])
        if list(values.shape) != list(shape):
            raise UserError(f"{folder}: {name} has the shape {list(values.shape)}, meta.json says {shape}")
        result[name] = torch.from_numpy(np.array(values))
    return result


def _frames(
    folder: Path, meta: dict[str, Any], config: ModelConfig, given_images: Path | None
) -> tuple[list[CameraFrame], list[bool]]:
    arrays = read_npz(folder / "frames.npz")
    count = 1 + max(int(name.split("/")[0]) for name in arrays)
    recorded = None if "0/images" in arrays else RecordedImages(images_folder(folder, given_images))
    frames, starts = [], []
    precision = np.float32 if meta["network"] in SINGLE_POSES else np.float64
    anchor = config.cameras[0] if "key_ego" in meta else ANCHOR
    for i in range(count):
        images = arrays[f"{i}/images"] if recorded is None else None
        transform = _stored_transform(config) if recorded is None else ImageTransform()
        views = tuple(
            CameraView(
                name=name,
                image=recorded.image(i, name) if images is None and recorded is not None else images[n],  # type: ignore[index]
                intrinsics=arrays[f"{i}/K"][n].astype(np.float64),
                ego_from_camera=arrays[f"{i}/sensor2ego"][n].astype(precision).astype(np.float64),
                world_from_ego=arrays[f"{i}/ego2global"][n].astype(precision).astype(np.float64),
                stamp_ns=i,
                image_transform=transform,
            )
            for n, name in enumerate(config.cameras)
        )
        lidar = arrays.get(f"{i}/lidar2ego")
        frames.append(
            CameraFrame(
                stamp_ns=i,
                views=views,
                world_from_ego=next((v for v in views if v.name == anchor), views[0]).world_from_ego,
                world_from_ego_at_lidar=arrays[f"{i}/ego2global_lidar"].astype(np.float64),
                ego_from_lidar=None if lidar is None else lidar.astype(np.float64),
                scene=str(arrays[f"{i}/scene"]),
            )
        )
        starts.append(bool(arrays[f"{i}/start"]))
    return frames, starts


def _stored_transform(config: ModelConfig, calibrated: tuple[int, int] = (900, 1600)) -> ImageTransform:
    """How stored images came from nuScenes' 1600x900: resized to the network's width, the upper rows cropped."""
    scale = config.image.width / calibrated[1]
    return ImageTransform(scale, 0.0, int(calibrated[0] * scale) - config.image.height)


def images_folder(folder: Path, given: Path | None) -> Path:
    """The folder of the real frames: the given one, or the default place beside the fixture."""
    return given or folder.resolve().parents[1] / "data" / "nuscenes_scene0103"


class RecordedImages:
    """The JPEGs of real key frames, by key frame index and camera."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "frames.json").is_file():
            raise UserError(f"{folder} has no frames.json; say with --frames where the real frames are")
        self.folder = folder
        self.files = {
            (frame["index"], name): camera["file"]
            for frame in read_json(folder / "frames.json")["frames"]
            for name, camera in frame["cameras"].items()
        }

    def image(self, frame: int, camera: str) -> Image:
        """(H, W, 3) RGB uint8."""
        if (frame, camera) not in self.files:
            raise UserError(f"{self.folder} has no image of {camera} in key frame {frame}")
        path = self.folder / self.files[frame, camera]
        try:
            with Pillow.open(path) as picture:
                return np.asarray(picture.convert("RGB"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error}") from error
