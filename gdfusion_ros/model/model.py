"""OccupancyModel: camera frames in, labels out, the temporal state handed through. And ``load_model``."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import CameraFrame, CameraView, Flow, FlowKind
from gdfusion_ros.geometry import Matrix, inverse
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.kernels import head as kernel
from gdfusion_ros.kernels import library
from gdfusion_ros.labels import LabelSet
from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion
from gdfusion_ros.model.compiled import Call, Runtime, compile_blocks, record
from gdfusion_ros.model.config import ModelConfig, load_config
from gdfusion_ros.model.images import network_image, prepare_view
from gdfusion_ros.model.inference import Backend, Precision, has_bfloat16, inference_form, keeps_kernels
from gdfusion_ros.model.lidar import lidar_depth
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks import FAMILIES
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch
from gdfusion_ros.model.weights import fill_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What a network says about one frame."""

    labels: npt.NDArray[np.uint8]
    """(X, Y, Z) ids of the model's label set."""
    confidence: npt.NDArray[np.uint8] | None
    """(X, Y, Z) probability of the winning class, 255 = 1."""
    flow: Flow | None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by stage."""


class OccupancyModel:
    """A network with its weights: frame and state in, prediction and next state out. Holds no state of its own."""

    def __init__(
        self,
        config: ModelConfig,
        network: nn.Module,
        weights: str,
        device: str = "cpu",
        kernels: bool = True,
        precision: Precision = "fp32",
        backend: Backend = "torch",
        calibration: Sequence[CameraFrame] = (),
    ) -> None:
        self.config = config
        self.network = network.eval().to(device)
        """The plain network, which the weights belong to and which can be trained."""
        self.kernels = kernels and library.allowed()
        """Whether frames go through the network's inference form and the CPU kernels, not the plain network."""
        self.precision, self.backend, self.calibration = precision, backend, tuple(calibration)
        self.name = config.name
        self.weights = weights
        """``random:SEED``, or the file's name and the beginning of its sha256."""
        self.grid: VoxelGrid = config.grid.output
        self.label_set: LabelSet = config.labels.labels
        self.cameras = config.cameras
        self.device = torch.device(device)

    def prepare(self, view: CameraView) -> CameraView:
        """The view at the network's image size, still uint8. A prepared view stays as it is."""
        return prepare_view(view, self.config.image)

    def __call__(
        self, frame: CameraFrame, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[Prediction, TemporalState]:
        """The prediction for a frame, and the state for the next one.

        ``state`` is what the frame before handed on, or None to begin a new sequence. Views may be raw or prepared.
        Raises ValueError when the frame lacks a camera, or what the network's grid needs.
        """
        watch = watch or Watch()
        if state is not None and state.model != self.name:
            raise ValueError(f"the temporal state is of the model {state.model!r}, not of {self.name!r}")
        with watch.stage("preprocess"):
            poses = self.ego_poses(frame)
            batch = self.network_input(frame, poses, None if state is None else state.poses)
        with torch.inference_mode(), library.switched(self.kernels):
            output, new_state = self.inference_network(batch, state, watch)
            with watch.stage("postprocess"):
                labels, confidence = self._labels(output)
                flow = self._flow(output, labels, first=state is None)
        prediction = Prediction(labels, confidence, flow, watch.timings_ms)
        return prediction, replace(new_state, poses=poses, model=self.name)

    @cached_property
    def inference_network(self) -> nn.Module:
        """What frames go through. Made from ``network`` with the first frame; later changes of that do not reach it."""
        if not self.kernels:
            return self.network
        if self.backend == "torch":
            return inference_form(self.network, self.precision)
        return self._compiled(self.backend)

    def _compiled(self, backend: Runtime) -> nn.Module:
        if self.device.type != "cpu" or not self.calibration:
            raise UserError(
                f"the backend {backend} runs on the CPU, and needs a frame at least to be prepared with"
            )
        calls = self.record_blocks(self.calibration)
        calls = {
            name: of for name, of in calls.items() if not keeps_kernels(self.network.get_submodule(name))
        }
        # The plain network keeps its blocks; the copy shares their weights while it has them.
        shared = {id(tensor): tensor for tensor in (*self.network.parameters(), *self.network.buffers())}
        compiled = compile_blocks(copy.deepcopy(self.network, shared), backend, self.precision, calls)
        # What stays in torch of an int8 network has bfloat16 where that is faster, as what stays in the runtime has.
        narrow = self.precision == "bf16" or (self.precision == "int8" and has_bfloat16(self.device))
        return inference_form(compiled, "bf16" if narrow else "fp32")

    def record_blocks(self, frames: Sequence[CameraFrame]) -> dict[str, list[Call]]:
        """The calls of each of the network's blocks (gdfusion_ros.model.compiled) over consecutive frames."""

        def run() -> None:
            state = None
            for frame in frames:
                poses = self.ego_poses(frame)
                batch = self.network_input(frame, poses, None if state is None else state.poses)
                _, state = self.network(batch, state)
                state = replace(state, poses=poses, model=self.name)

        return record(self.network, run)

    def _views(self, frame: CameraFrame) -> list[CameraView]:
        try:
            return [frame.view(name) for name in self.cameras]
        except KeyError as error:
            raise ValueError(
                f"{self.name} needs the cameras {', '.join(self.cameras)}: {error.args[0]}"
            ) from error

    def ego_poses(self, frame: CameraFrame) -> dict[str, Matrix]:
        """float64 poses of a frame that ego motion to the next one is made from: ``world_from_history`` (4, 4), the
        pose that the history moves by, and ``world_from_camera`` (N, 4, 4), each at its own exposure."""
        cameras = np.stack([view.world_from_ego @ view.ego_from_camera for view in self._views(frame)])
        if self.config.temporal.warp == "grid":
            return {"world_from_history": self._world_from_grid(frame), "world_from_camera": cameras}
        at_lidar = frame.world_from_ego_at_lidar
        # Oddity (spec 12.3): the grid lies at the anchor's exposure, but history moves between the LiDAR's poses.
        # Oddity (spec 12.4): so it does for grids in the LiDAR frame, though their axes are turned by 90 degrees.
        return {
            "world_from_history": frame.world_from_ego if at_lidar is None else at_lidar,
            "world_from_camera": cameras,
        }

    def _world_from_grid(self, frame: CameraFrame) -> Matrix:
        if self.grid.frame == "ego":
            return frame.world_from_ego
        if frame.ego_from_lidar is None:
            raise ValueError(
                f"{self.name} has its grid in the LiDAR frame, and the frame has no ego_from_lidar"
            )
        at_lidar = frame.world_from_ego_at_lidar
        return (frame.world_from_ego if at_lidar is None else at_lidar) @ frame.ego_from_lidar

    def network_input(
        self, frame: CameraFrame, poses: Mapping[str, Matrix], previous: Mapping[str, Matrix] | None
    ) -> NetworkInput:
        """A frame as tensors; ``previous`` are the poses of the frame before, None at a sequence's start."""
        views = [self.prepare(view) for view in self._views(frame)]
        images = np.stack([network_image(view.image, self.config.image) for view in views])
        previous = poses if previous is None else previous
        # In float64: far from the map's origin, neighbouring float32 numbers are decimetres apart.
        motion = EgoMotion(
            self._tensor(inverse(previous["world_from_history"]) @ poses["world_from_history"]),
            self._tensor(inverse(previous["world_from_camera"]) @ poses["world_from_camera"]),
        )
        grid_from_world = inverse(self._world_from_grid(frame))
        grid_from_camera = np.stack([grid_from_world @ v.world_from_ego @ v.ego_from_camera for v in views])
        transforms = [view.image_transform for view in views]
        rig = CameraRig(
            intrinsics=self._tensor(np.stack([view.intrinsics for view in views])),
            rotation=self._tensor(grid_from_camera[:, :3, :3]),
            translation=self._tensor(grid_from_camera[:, :3, 3]),
            image_rotation=self._tensor(np.stack([np.diag([t.scale, t.scale, 1.0]) for t in transforms])),
            image_translation=self._tensor(np.array([[-t.left, -t.top, 0.0] for t in transforms])),
            augmentation=torch.eye(3, device=self.device)[None],
        )
        depth = None
        if getattr(self.config.architecture, "lidar_depth", False):
            depth = self._tensor(lidar_depth(frame, views, self.config.image, self.config.depth_bins))
        return NetworkInput(self._tensor(images), rig, motion, depth)

    def _tensor(self, array: npt.NDArray[np.floating]) -> Tensor:
        """One sample as a float32 batch."""
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None].to(self.device)

    def label_logits(self, logits: Tensor) -> Tensor:
        """Logits by label (labels, Y, X, Z) from the network's (K, Y, X, Z)."""
        # Channel 0 is void and never a target; the label of channel k is k - 1. Shifted by one, every label is wrong.
        logits = logits[1:] if self.config.labels.void_channel else logits
        if self.config.labels.excluded:
            logits = logits.clone()
            logits[list(self.config.labels.excluded)] = -torch.inf
        return logits

    def _labels(self, output: NetworkOutput) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Labels and confidence (X, Y, Z) from the logits (K, Y, X, Z), or the network's own labels."""
        if output.labels is None and library.usable(output.logits):
            return kernel.classify(
                output.logits[0], int(self.config.labels.void_channel), self.config.labels.excluded
            )
        logits = self.label_logits(output.logits[0])
        best, labels = logits.max(dim=0)
        if output.labels is not None:
            labels = output.labels[0].long()
            best = logits.gather(0, labels[None])[0]
        probability = (best - logits.logsumexp(dim=0)).exp()
        # The network's rows are y and its columns x; the grid's first index is x.
        return (
            labels.to(torch.uint8).transpose(0, 1).contiguous().cpu().numpy(),
            (probability * 255).round().to(torch.uint8).transpose(0, 1).contiguous().cpu().numpy(),
        )

    def _flow(self, output: NetworkOutput, labels: npt.NDArray[np.uint8], first: bool) -> Flow | None:
        """The flow field (X, Y, Z, 3) over the output grid, where the network has one."""
        if output.velocity is not None:
            vectors = torch.nn.functional.pad(output.velocity[0].transpose(0, 1), (0, 1))
            # Velocities are learned on what can move; elsewhere the head says whatever it likes.
            movable = self.label_set.table(self.label_set.movable_ids).take(labels)
            return Flow(FlowKind.VELOCITY, vectors.float().contiguous().cpu().numpy(), movable)
        if output.offsets is None or output.offsets_inside is None:
            return None
        cells = output.offsets[0] if output.offsets.dim() == 5 else output.offsets[0].unsqueeze(1)
        inside = output.offsets_inside[0].view(cells.shape[1:])
        metres = cells * cells.new_tensor(self.config.grid.features.cell_size[: len(cells)]).view(-1, 1, 1, 1)
        vectors = torch.nn.functional.pad(metres.permute(3, 2, 1, 0), (0, 3 - len(cells)))
        valid = inside.permute(2, 1, 0) & (not first)
        for axis, times in enumerate(self.config.grid.upsampling):
            vectors, valid = vectors.repeat_interleave(times, axis), valid.repeat_interleave(times, axis)
        return Flow(
            FlowKind.HISTORY_DISPLACEMENT,
            vectors.float().contiguous().cpu().numpy(),
            valid.contiguous().cpu().numpy(),
        )


def build_network(config: ModelConfig) -> nn.Module:
    """The network that a configuration describes, with PyTorch's initial weights."""
    return FAMILIES[config.family](config)


def load_model(
    model: str | Path | ModelConfig,
    weights: str | Path | None = None,
    device: str = "cpu",
    kernels: bool = True,
    precision: Precision = "fp32",
    backend: Backend = "torch",
    calibration: Sequence[CameraFrame] = (),
) -> OccupancyModel:
    """A model by its name, YAML or configuration, with weights.

    ``weights``: a ``.safetensors`` or published ``.pth`` file; ``random:SEED``; ``default`` for the file that the
    model names; None for random ones, with a warning. Raises UserError when the model or the weights are no good.
    ``kernels``: the network's inference form and the CPU kernels (gdfusion_ros.model.inference), or the plain network;
    ``precision``: of the inference form's convolutions; ``backend``: what computes them; ``calibration``: consecutive
    frames that other backends than torch are prepared with, and int8 is calibrated on.
    """
    config = model if isinstance(model, ModelConfig) else load_config(model)
    if weights is None:
        log.warning(
            "%s has random weights: what it predicts means nothing; give weights='default' or a file",
            config.name,
        )
        weights = "random:0"
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    network = build_network(config)
    description = fill_weights(network, config, weights)
    return OccupancyModel(config, network, description, device, kernels, precision, backend, calibration)


def load_for_rig(
    model: str | Path, weights: str | Path | None, device: str, cameras: Sequence[str]
) -> OccupancyModel:
    """A model for a rig with these cameras. When they are not those of its file, the network is made for the rig's
    own, with a warning: its weights were trained on another rig. Raises UserError as `load_model` does."""
    config = load_config(model)
    if not set(config.cameras) <= set(cameras):
        log.warning(
            "the rig has the cameras %s, but the weights of %s were trained on %s: expect less",
            ", ".join(cameras),
            config.name,
            ", ".join(config.cameras),
        )
        config = config.for_cameras(cameras)
    return load_model(config, weights, device)
