"""Fixtures of single modules: the temporal cues alone with every number whole, and one preprocessed image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gdfusion_ros.cli.fixtures import Arrays, RecordedImages, read_json, read_npz
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraView
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion
from gdfusion_ros.model.config import DepthBins, ImageConfig, TemporalConfig
from gdfusion_ros.model.fusion.geometry import GeometryFusion
from gdfusion_ros.model.fusion.temporal import RecurrentFusion
from gdfusion_ros.model.images import normalise_image, prepare_view
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch
from gdfusion_ros.model.weights import published_name

MODULE_BOUND = 1e-4
"""Of a tensor's largest value: what any number of a module's output may be off (gdfusion-spec.md 13)."""
FIXTURE_GATE = "geometry.gate_net."


@dataclass(frozen=True)
class ModuleError:
    """The largest error of one tensor in one frame."""

    frame: int
    name: str
    error: float
    """In parts of the tensor's largest value."""


def compare_fusion(prefix: Path) -> list[ModuleError]:
    """Errors of the four temporal cues over the frames in ``<prefix>_{meta.json,weights.npz,frames.npz}``."""
    meta = read_json(prefix.with_name(prefix.name + "_meta.json"))
    weights = read_npz(prefix.with_name(prefix.name + "_weights.npz"))
    frames = read_npz(prefix.with_name(prefix.name + "_frames.npz"))
    try:
        return _run_fusion(meta, weights, frames)
    except KeyError as error:
        raise UserError(f"{prefix} is no complete fixture: {error} is missing") from error


def _run_fusion(meta: dict[str, Any], weights: Arrays, frames: Arrays) -> list[ModuleError]:
    config = meta["grid_config"]
    x, y, z = (tuple(float(value) for value in config[axis]) for axis in "xyz")
    bins = DepthBins(*(float(value) for value in config["depth"]))
    grid = VoxelGrid.from_bounds(x, y, z)  # type: ignore[arg-type]
    depths = bins.lower + bins.step * torch.arange(bins.count, dtype=torch.float32)
    cues = RecurrentFusion(meta["C"], grid, TemporalConfig(motion_rate=meta["motion_lr"])).eval()
    geometry = GeometryFusion(depths, tuple(meta["input_size"])).eval()
    _fill(cues, weights, lambda name: published_name("temporal." + name, cues))
    _fill(geometry.history_gate, weights, lambda name: FIXTURE_GATE + name)

    errors: list[ModuleError] = []
    state: TemporalState | None = None
    geometry_state = None
    for i in range(meta["frames"]):

        def array(name: str, i: int = i) -> Tensor:
            return torch.from_numpy(frames[f"{i}/{name}"])

        if frames[f"{i}/start"]:
            state = geometry_state = None
        seen: dict[str, Tensor] = {}
        with torch.inference_mode():
            motion = EgoMotion(array("curr_to_prev_ego")[None], array("cur2adj"))
            fused, tensors = cues(array("x"), state, motion.previous_from_current, Watch(seen.__setitem__))
            logits = array("geometry_logits_in").flatten(0, 1)
            _, geometry_state = geometry(logits, logits.softmax(dim=1), geometry_state, _rig(array), motion)
        state = TemporalState(1 if state is None else state.frames + 1, tensors)
        own = {
            "geometry_logits_fused": geometry_state.logits,
            "voxel_out": seen["voxel_fused"],
            "scene_out": fused.voxels,
            "state/V": tensors["voxel"],
            "state/M": tensors["motion"],
            "state/aW": tensors["scene_weight"],
            "state/ab": tensors["scene_bias"],
            "state/k": torch.tensor([float(state.frames)]),
        }
        errors += [
            ModuleError(i, name, _error(tensor, frames[f"{i}/{name}"])) for name, tensor in own.items()
        ]
    return errors


def _rig(array: Any) -> CameraRig:
    intrinsics = array("intrin")
    eye = torch.eye(3).expand_as(intrinsics)
    zero = torch.zeros(intrinsics.shape[:-1])
    return CameraRig(intrinsics, eye, zero, array("post_rot"), array("post_tran"), torch.eye(3)[None])


def _fill(module: nn.Module, weights: Arrays, name_of: Any) -> None:
    module.load_state_dict({name: torch.from_numpy(weights[name_of(name)]) for name in module.state_dict()})


def _error(own: Tensor, expected: npt.NDArray[Any]) -> float:
    """Largest difference in parts of the largest value; infinite for NaN and for another number of values."""
    if own.numel() != expected.size:
        return float("inf")
    difference = np.abs(own.reshape(-1).numpy() - expected.reshape(-1)).max()
    error = float(difference / max(float(np.abs(expected).max()), 1e-12))
    return error if np.isfinite(error) else float("inf")


def compare_preprocessing(file: Path, images: RecordedImages) -> list[ModuleError]:
    """Errors of a preprocessed image: ``<scene>_frame<N>_<CAMERA>_<H>x<W>.npz`` with cropped_rgb and tensor."""
    stored = read_npz(file)
    try:
        head, size = file.stem.rsplit("_", 1)
        frame, camera = head.split("_frame", 1)[1].split("_", 1)
        height, width = (int(part) for part in size.split("x"))
        image = images.image(int(frame), camera)
    except (ValueError, IndexError) as error:
        raise UserError(f"{file.name} is not named <scene>_frame<N>_<CAMERA>_<H>x<W>.npz") from error
    raw = CameraView(camera, image, np.eye(3), np.eye(4), np.eye(4), 0)
    view = prepare_view(raw, ImageConfig(height, width))
    own = {"cropped_rgb": view.image.astype(np.float32), "tensor": normalise_image(view.image)}
    return [
        ModuleError(int(frame), name, _error(torch.from_numpy(own[name]), stored[name].astype(np.float32)))
        for name in own
    ]
