"""Runs a network as the reference was run, and keeps what a fixture has numbers for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gdfusion_ros.cli.fixtures import NetworkFixture, TensorRecord
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.geometry import Matrix
from gdfusion_ros.model.blocks.cameras import EgoMotion
from gdfusion_ros.model.model import OccupancyModel, build_network
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.watch import Watch
from gdfusion_ros.model.weights import load_entries

HOOKED = {"depth_aspp": "depth_net.depth_conv.3", "depth_dcn": "depth_net.depth_conv.4"}
"""Tensors of fixtures that are the output of a module inside a block, and which module."""
BY_HEAD = ("labels_encoder", "labels_decoder")
"""Labels of a network with two heads; what it gives as ``labels`` is made of them."""


@dataclass(frozen=True)
class Nudge:
    """A change of the inputs that is about as small as float32 can tell."""

    noise: torch.Generator
    size: float = 0.0
    """Of the noise: of images relatively, of positions in metres."""
    history: float = 0.0
    """Metres by which all of the history lies further along each axis. Noise moves a position on the border of two
    cells one way or the other by chance; of two opposed shifts one crosses the border."""

    def __call__(self, values: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``values`` with normal noise of the nudge's size, times ``scale``."""
        return values + self.size * scale * torch.randn(values.shape, generator=self.noise)


class ReferenceModel(OccupancyModel):
    """An OccupancyModel that takes poses as the reference did, and whose inputs can be nudged."""

    nudge: Nudge | None = None
    logits: Tensor | None = None
    """(K, Y, X, Z) of the last frame."""

    def _labels(self, output: NetworkOutput) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        self.logits = output.logits[0]
        return super()._labels(output)

    def ego_poses(self, frame: CameraFrame) -> dict[str, Matrix]:
        """The reference held its poses in float32 before it computed the motion of each camera from them. At the
        coordinates of a city that is 0.05 mm, which made-up weights make visible in the cost volume."""
        poses = super().ego_poses(frame)
        views = [frame.view(name) for name in self.cameras]
        poses["world_from_camera"] = np.stack(
            [_single(v.world_from_ego) @ _single(v.ego_from_camera) for v in views]
        )
        return poses

    def network_input(self, frame: CameraFrame, poses: Any, previous: Any) -> NetworkInput:
        """The input, images, camera positions and motion changed a little where ``nudge`` is set."""
        batch = super().network_input(frame, poses, previous)
        nudge = self.nudge
        if nudge is None:
            return batch

        def moved(transforms: Tensor) -> Tensor:
            result = transforms.clone()
            result[..., :3, 3] = nudge(result[..., :3, 3])
            return result

        motion = batch.motion
        if previous is not None:
            motion = EgoMotion(moved(motion.previous_from_current), moved(motion.previous_camera_from_camera))
            motion.previous_from_current[..., :3, 3] += nudge.history
        rig = replace(batch.rig, translation=nudge(batch.rig.translation))
        return replace(batch, images=nudge(batch.images, batch.images), rig=rig, motion=motion)


def _single(matrix: Matrix) -> Matrix:
    return matrix.astype(np.float32).astype(np.float64)


@dataclass
class FrameRun:
    """What a network gave for one frame of a fixture, as far as the fixture has numbers for it."""

    samples: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    std: dict[str, float] = field(default_factory=dict)
    absmax: dict[str, float] = field(default_factory=dict)
    labels: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    deficit: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """(X, Y, Z) by how much the expected label's logit is below the best."""
    margin: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """(X, Y, Z) difference of the two best logits."""
    by_head: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """(X, Y, Z) the labels of each head, of networks with two."""

    def take(self, name: str, tensor: Tensor, record: TensorRecord) -> None:
        """Keep the samples of a tensor that the fixture has."""
        if tensor.numel() != record.count:
            raise ValueError(
                f"{name} has the shape {list(tensor.shape)}, the fixture's is {list(record.shape)}"
            )
        self.samples[name] = tensor.reshape(-1)[:: record.stride].float().numpy().copy()
        self.std[name], self.absmax[name] = float(tensor.float().std()), float(tensor.abs().max())


def build_model(fixture: NetworkFixture, where: str, kernels: bool = False) -> ReferenceModel:
    """The fixture's network with the fixture's weights, plain or in its inference form with the CPU kernels. Raises
    UserError when the weights do not fit."""
    network = build_network(fixture.config)
    load_entries(network, fixture.weights, where, fixture.config.temporal)
    return ReferenceModel(fixture.config, network, "fixture", kernels=kernels)


def run_network(
    model: ReferenceModel, fixture: NetworkFixture, nudge: Nudge | None = None
) -> Iterator[FrameRun]:
    """The network over the fixture's frames, from nudged inputs where wanted."""
    model.nudge = nudge
    state = None
    for i, frame in enumerate(fixture.frames):
        run = FrameRun()

        def listen(name: str, tensor: Tensor, run: FrameRun = run) -> None:
            if name in fixture.tensors:
                run.take(name, tensor, fixture.tensors[name])
            if name in BY_HEAD:
                run.by_head[name] = tensor.numpy()

        with _hooked(model, fixture, listen):
            prediction, state = model(frame, None if fixture.starts[i] else state, Watch(listen))
        run.deficit, run.margin = _label_margins(model, _by_logits(fixture, i))
        for name, tensor in state.tensors.items():
            if f"state/{name}" in fixture.tensors:
                run.take(f"state/{name}", tensor, fixture.tensors[f"state/{name}"])
        run.labels = prediction.labels
        yield run


@contextmanager
def _hooked(
    model: ReferenceModel, fixture: NetworkFixture, listen: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Show the outputs of the modules in HOOKED that the fixture has numbers for."""
    hooks = [
        model.inference_network.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, name=name: listen(name, output)
        )
        for name, module in HOOKED.items()
        if name in fixture.tensors
    ]
    yield
    for hook in hooks:
        hook.remove()


def _by_logits(fixture: NetworkFixture, i: int) -> npt.NDArray[np.uint8]:
    """(X, Y, Z) the expected labels that belong to the logits alone."""
    return fixture.expected.get(f"{i}/{BY_HEAD[0]}", fixture.expected[f"{i}/labels"])


def _label_margins(
    model: ReferenceModel, expected: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    assert model.logits is not None, "the network has run"
    logits = model.label_logits(model.logits).transpose(1, 2)
    best = logits.topk(2, dim=0).values
    chosen = torch.from_numpy(expected.astype(np.int64)).clamp(max=len(logits) - 1)[None]
    return (best[0] - logits.gather(0, chosen)[0]).numpy(), (best[0] - best[1]).numpy()
