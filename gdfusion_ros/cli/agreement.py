"""How far a network is from a fixture's numbers, and whether that is agreement.

What agreement means stands in the fixtures' README: 99.9 % of a tensor's samples within 1e-3 of its largest value, a
mean error under 1e-4 of it, labels equal on 99.5 % of the clear voxels. Two things are added to it.

Taken alone, those bounds let pass a fixture in which somebody changed one number. So every single sample and voxel
outside the bound is looked at.

And a few cells flip at discontinuities (a point on the border of two voxels, say), differently on every processor. In
sequences of full-size frames what one flip changes spreads through the encoder, so that the last tensors may leave the
bound although everything before them agrees. Whether that is so shows when the network runs again with inputs changed
in the sixth digit: what the network itself moves by as much is excused, and named in the report; labels never are.
"""

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
from gdfusion_ros.model.model import OccupancyModel, build_network
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.watch import Watch
from gdfusion_ros.model.weights import load_entries

QUANTILE = 0.999
LARGE = 1e-3
"""Of a tensor's largest value: what the quantile, and any single sample, may be off."""
MEAN = 1e-4
"""Of a tensor's largest value: what the samples may be off on average."""
CONTINUOUS = frozenset({"image_features", "context"})
"""Tensors that nothing discontinuous comes before."""
CONTINUOUS_LARGE, CONTINUOUS_MEAN = 1e-4, 2e-5
WITH_HISTORY, AT_START = (2e-2, 1e-1), (1e-3, 1e-2)
"""How far the whole tensor's standard deviation and largest value may be off, relatively: with history, where a flip
may meet the very largest value, and at a sequence's start."""
FRAME_LABELS, ALL_LABELS = 0.995, 0.997
"""Shares of the clear voxels whose labels must be equal, in each frame and over all."""
LOGITS = ("logits", "logits_3")
"""What fixtures call the network's last logits."""
HOOKED = {"depth_aspp": "depth_net.depth_conv.3", "depth_dcn": "depth_net.depth_conv.4"}
"""Tensors of fixtures that are the output of a module inside a block, and which module."""
BY_HEAD = ("labels_encoder", "labels_decoder")
"""Labels of a network with two heads; what it gives as ``labels`` is made of them."""
CLEAR = 0.01
"""Difference of the two best logits from which a voxel counts as clear."""
REPEATS, NUDGE = 6, 1e-5
"""How often at most, and with what relative change of the inputs, a network is run again to see how sensitive it is."""
ECHO = 0.02
"""A sample's error is excused where a repetition moves the sample by this share of it."""
SPREAD_ECHO = 0.3
"""A tensor's quantile and mean are excused where a repetition has this share of them."""
SPREADING = frozenset({"encoded", "logits"})
"""Tensors behind the encoder's convolutions, where a flip shows in many neighbouring cells."""
ALONE = 10.0
"""In those, no sample is off by this many times what the quantile is off: what spreads does not stand out alone."""


class ReferenceModel(OccupancyModel):
    """An OccupancyModel that takes poses as the reference did, and whose inputs can be nudged."""

    nudge: torch.Generator | None = None
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
        """The input, every number of images, extrinsics and motion changed a little where ``nudge`` is set."""
        batch = super().network_input(frame, poses, previous)
        if self.nudge is None:
            return batch
        moved = [
            self._nudged(batch.motion.previous_from_current),
            self._nudged(batch.motion.previous_camera_from_camera),
        ]
        return replace(
            batch,
            images=batch.images + NUDGE * batch.images * self._noise(batch.images),
            rig=replace(
                batch.rig, translation=batch.rig.translation + NUDGE * self._noise(batch.rig.translation)
            ),
            motion=type(batch.motion)(*moved) if previous is not None else batch.motion,
        )

    def _nudged(self, transforms: Tensor) -> Tensor:
        result = transforms.clone()
        result[..., :3, 3] += NUDGE * self._noise(result[..., :3, 3])
        return result

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.nudge)


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
    model: ReferenceModel, fixture: NetworkFixture, seed: int | None = None
) -> Iterator[FrameRun]:
    """The network over the fixture's frames; with a seed, from nudged inputs."""
    model.nudge = None if seed is None else torch.Generator().manual_seed(seed)
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
        model.network.get_submodule(module).register_forward_hook(
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


@dataclass(frozen=True)
class TensorError:
    """The error of one tensor in one frame, in parts of the tensor's largest value."""

    frame: int
    name: str
    quantile: float
    mean: float
    largest: float


@dataclass
class Agreement:
    """What a comparison found."""

    errors: list[TensorError] = field(default_factory=list)
    label_agreement: list[float] = field(default_factory=list)
    """Frame by frame, on the clear voxels."""
    failures: list[str] = field(default_factory=list)
    """Why it is no agreement, one line each."""
    excused: list[str] = field(default_factory=list)
    """What is outside the bounds where the network is that sensitive, one line each."""

    @property
    def passed(self) -> bool:
        """Whether it is agreement."""
        return not self.failures

    @property
    def worst(self) -> TensorError | None:
        """The tensor and frame whose 99.9 % quantile is the largest."""
        return max(self.errors, key=lambda error: _number(error.quantile), default=None)


@dataclass(frozen=True)
class Doubt:
    """Samples or voxels that only a sensitive network excuses."""

    frame: int
    what: str
    where: npt.NDArray[np.int64]
    """Flat indices; empty where quantile and mean of a tensor are meant."""
    size: npt.NDArray[np.floating[Any]]
    """How far each is off; or the quantile and the mean error."""

    @property
    def spread(self) -> bool:
        """Whether it is about a tensor's quantile and mean."""
        return not self.where.size

    def echo(
        self, before: npt.NDArray[np.floating[Any]], after: npt.NDArray[np.floating[Any]]
    ) -> npt.NDArray[np.bool_]:
        """Where a repetition moves what is in doubt by enough of its error."""
        change = np.abs(after - before).reshape(-1)
        if self.spread:
            largest = max(float(np.abs(before).max()), 1e-12)
            measured = np.array([np.quantile(change, QUANTILE), change.mean()]) / largest
            return measured >= SPREAD_ECHO * self.size
        return change[self.where] >= ECHO * self.size

    def describe(self, left: npt.NDArray[np.bool_]) -> str:
        """One line about those of its places where ``left`` is true."""
        if self.spread:
            return (
                f"frame {self.frame}: {self.what} is off by {self.size[0]:.1e}, on average {self.size[1]:.1e}"
            )
        first = int(np.flatnonzero(left)[0])
        return (
            f"frame {self.frame}: {self.what}[{self.where[first]}] is off by {self.size[first]:.3g}"
            f" ({int(left.sum())} of {self.where.size} such places)"
        )


def compare(model: ReferenceModel, fixture: NetworkFixture, own: list[FrameRun]) -> Agreement:
    """Judge a run of the network over all frames of the fixture."""
    result = Agreement()
    doubts: list[Doubt] = []
    equal = clear_voxels = 0
    for i, run in enumerate(own):
        for name, record in fixture.tensors.items():
            doubts += _compare_tensor(result, run, fixture, i, name, record)
        labels, clear = fixture.expected[f"{i}/labels"], _clear(fixture, i)
        same = (run.labels == labels)[clear]
        result.label_agreement.append(float(same.mean()) if same.size else 1.0)
        equal, clear_voxels = equal + int(same.sum()), clear_voxels + same.size
        if result.label_agreement[-1] < FRAME_LABELS:
            result.failures.append(f"frame {i}: {result.label_agreement[-1]:.4%} of the labels agree")
        for name in BY_HEAD:
            if f"{i}/{name}" in fixture.expected:
                share = float((run.by_head[name] == fixture.expected[f"{i}/{name}"])[clear].mean())
                if not share >= FRAME_LABELS:
                    result.failures.append(f"frame {i}: {share:.4%} of {name} agree")
        doubts += _compare_labels(run, fixture, i)
    if equal < ALL_LABELS * clear_voxels:
        result.failures.append(f"over all frames {equal / clear_voxels:.4%} of the labels agree")
    # Somebody who fails anyway need not wait for the repetitions.
    if doubts and not result.failures:
        resolve(result, model, fixture, own, doubts)
    return result


def _compare_tensor(
    result: Agreement, run: FrameRun, fixture: NetworkFixture, i: int, name: str, record: TensorRecord
) -> Iterator[Doubt]:
    expected = fixture.expected.get(f"{i}/{name}")
    if expected is None or name not in run.samples:
        result.failures.append(
            f"frame {i}: {name} is missing in {'the fixture' if expected is None else 'the network'}"
        )
        return
    own = run.samples[name]
    if own.shape != expected.shape:
        result.failures.append(
            f"frame {i}: {name} has {expected.size} samples in the fixture, {own.size} here"
        )
        return
    error = np.abs(own.astype(np.float64) - expected) / max(record.absmax[i], 1e-12)
    measured = TensorError(
        i, name, float(np.quantile(error, QUANTILE)), float(error.mean()), float(error.max())
    )
    result.errors.append(measured)
    mean, large = (CONTINUOUS_MEAN, CONTINUOUS_LARGE) if name in CONTINUOUS else (MEAN, LARGE)
    # Written so that a NaN fails.
    if not (measured.quantile <= large and measured.mean <= mean):
        spread = Doubt(i, name, np.zeros(0, np.int64), np.array([measured.quantile, measured.mean]))
        if name in CONTINUOUS or fixture.starts[i] or not np.isfinite(measured.mean):
            result.failures.append(spread.describe(np.ones(1, bool)))
            return
        yield spread
    if name in SPREADING and not fixture.starts[i]:
        large = max(large, ALONE * measured.quantile)
    outside = np.flatnonzero(~(error <= large))
    if outside.size:
        alone = Doubt(i, name, outside, np.abs(own - expected)[outside])
        if name in CONTINUOUS or name in SPREADING:
            result.failures.append(alone.describe(np.ones(outside.size, bool)))
        else:
            yield alone
    std_bound, absmax_bound = AT_START if fixture.starts[i] else WITH_HISTORY
    for what, own_value, recorded, bound in (
        ("standard deviation", run.std[name], record.std[i], std_bound),
        ("largest value", run.absmax[name], record.absmax[i], absmax_bound),
    ):
        if not abs(own_value - recorded) <= bound * max(abs(own_value), 1e-12):
            result.failures.append(
                f"frame {i}: the {what} of {name} is {own_value:.6g}, recorded is {recorded:.6g}"
            )


def _compare_labels(run: FrameRun, fixture: NetworkFixture, i: int) -> Iterator[Doubt]:
    """Voxels whose expected label, or whose being clear, our logits contradict by more than tensors may be off."""
    name = next(name for name in LOGITS if name in fixture.tensors)
    off = np.abs(run.samples[name] - fixture.expected[f"{i}/{name}"]).max()
    slack = 2 * max(LARGE * fixture.tensors[name].absmax[i], 2 * float(off))
    wrong = np.flatnonzero(run.deficit > slack)
    if wrong.size:
        yield Doubt(i, "labels", wrong, run.deficit.reshape(-1)[wrong])
    distance = np.where(_clear(fixture, i), CLEAR - run.margin, run.margin - CLEAR)
    if run.by_head:
        # Here also voxels whose masks are doubtful are not clear, however clear their logits.
        distance = np.where(_clear(fixture, i), distance, 0.0)
    wrong = np.flatnonzero(distance > slack)
    if wrong.size:
        yield Doubt(i, "clear", wrong, distance.reshape(-1)[wrong])


def _clear(fixture: NetworkFixture, i: int) -> npt.NDArray[np.bool_]:
    shape = fixture.expected[f"{i}/labels"].shape
    return np.unpackbits(fixture.expected[f"{i}/clear"])[: np.prod(shape)].reshape(shape).astype(bool)


def resolve(
    result: Agreement,
    model: ReferenceModel,
    fixture: NetworkFixture,
    own: list[FrameRun],
    doubts: list[Doubt],
) -> None:
    """Run the network again from nudged inputs until all doubts are excused; those that remain are failures."""
    left = [np.ones(doubt.size.size, bool) for doubt in doubts]
    last = max(doubt.frame for doubt in doubts)
    for seed in range(REPEATS):
        for i, again in enumerate(run_network(model, fixture, seed)):
            for n, doubt in enumerate(doubts):
                if doubt.frame == i:
                    left[n] &= ~doubt.echo(_values(own[i], doubt.what), _values(again, doubt.what))
            if i == last:
                break
        if not any(remaining.any() for remaining in left):
            break
    for doubt, remaining in zip(doubts, left):
        if remaining.any():
            result.failures.append(f"{doubt.describe(remaining)}, and nothing in the network explains it")
        else:
            result.excused.append(doubt.describe(~remaining))


def _values(run: FrameRun, what: str) -> npt.NDArray[np.floating[Any]]:
    if what == "labels":
        return run.deficit
    return run.margin if what == "clear" else run.samples[what]


def _number(value: float) -> float:
    return value if value == value else float("inf")
