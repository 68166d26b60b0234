"""How far a network is from a fixture's numbers, and whether that is agreement.

What agreement means stands in the fixtures' README: 99.9 % of a tensor's samples within 1e-3 of its largest value, a
mean error under 1e-4 of it, labels equal on 99.5 % of the clear voxels. Two things are added to it.

Taken alone, those bounds let pass a fixture in which somebody changed one number. So every single sample and voxel
outside the bound is looked at.

And a few cells flip at discontinuities (a point on the border of two voxels, say), differently on every processor. In
sequences of full-size frames what one flip changes spreads through the encoder, so that the last tensors may leave the
bound although everything before them agrees. Whether that is so shows when the network runs again with inputs changed
about as little as float32 can tell (``NUDGES``): what the network itself moves by as much is excused, and named in the
report. A frame in which too few labels agree is excused only where such a repetition has the labels of the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gdfusion_ros.cli.fixtures import NetworkFixture, TensorRecord
from gdfusion_ros.cli.reference import BY_HEAD, FrameRun, Nudge, ReferenceModel, run_network

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
CLEAR = 0.01
"""Difference of the two best logits from which a voxel counts as clear."""
NUDGES: tuple[dict[str, float], ...] = (
    {"history": 5e-5},
    {"size": 1e-5},
    {"history": -5e-5},
    {"size": 1e-6},
    {"size": 1e-5},
    {"size": 1e-6},
)
"""The changes of the inputs with which a network is run again, until it is known how sensitive it is: all of its
history shifted one way and the other by 0.05 mm, and noise. The larger noise makes it flip, the smaller lets it come
out as the reference did."""
ECHO = 0.02
"""A sample's error is excused where a repetition moves the sample by this share of it."""
SPREAD_ECHO = 0.3
"""A tensor's quantile and mean are excused where a repetition has this share of them."""
SPREADING = frozenset({"encoded", "logits"})
"""Tensors behind the encoder's convolutions, where a flip shows in many neighbouring cells."""
ALONE = 10.0
"""In those, no sample is off by this many times what the quantile is off: what spreads does not stand out alone."""


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


@dataclass(frozen=True)
class Astray:
    """A frame in which too few labels agree."""

    frame: int
    what: str
    share: float

    def describe(self) -> str:
        """One line."""
        return f"frame {self.frame}: {self.share:.4%} of {self.what} agree"


def compare(model: ReferenceModel, fixture: NetworkFixture, own: list[FrameRun]) -> Agreement:
    """Judge a run of the network over all frames of the fixture."""
    result = Agreement()
    doubts: list[Doubt] = []
    astray: list[Astray] = []
    for i, run in enumerate(own):
        for name, record in fixture.tensors.items():
            doubts += _compare_tensor(result, run, fixture, i, name, record)
        shares = label_shares(run, fixture, i)
        result.label_agreement.append(shares["labels"])
        astray += [Astray(i, what, share) for what, share in shares.items() if not share >= FRAME_LABELS]
        doubts += _compare_labels(run, fixture, i)
    if any(fixture.starts[frame.frame] for frame in astray):
        # No history, no flip that could have led this far.
        result.failures += [frame.describe() for frame in astray]
    agreed = list(result.label_agreement)
    # Somebody who fails anyway need not wait for the repetitions.
    if (doubts or astray) and not result.failures:
        found = resolve(result, model, fixture, own, doubts, astray)
        agreed = [found.get(Astray(i, "labels", share), share) for i, share in enumerate(agreed)]
    counts = [int(_clear(fixture, i).sum()) for i in range(len(own))]
    overall = float(np.dot(agreed, counts)) / max(sum(counts), 1)
    if not overall >= ALL_LABELS:
        result.failures.append(f"over all frames {overall:.4%} of the labels agree")
    return result


def label_shares(run: FrameRun, fixture: NetworkFixture, i: int) -> dict[str, float]:
    """The share of the clear voxels of frame i on which labels agree, for all labels that the fixture has."""
    clear = _clear(fixture, i)
    shares = {}
    for name, own in {"labels": run.labels, **dict.fromkeys(BY_HEAD), **run.by_head}.items():
        expected = fixture.expected.get(f"{i}/{name}")
        if expected is None:
            continue
        if own is None:
            shares[name] = 0.0  # of a network that has no such head
        else:
            same = (own == expected)[clear]
            shares[name] = float(same.mean()) if same.size else 1.0
    return shares


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
    astray: list[Astray],
) -> dict[Astray, float]:
    """Run the network again from nudged inputs until all doubts are excused; those that remain are failures.

    Gives the largest share of labels that a repetition had in common with the fixture, of each frame astray.
    """
    left = [np.ones(doubt.size.size, bool) for doubt in doubts]
    found = {frame: frame.share for frame in astray}
    last = max([doubt.frame for doubt in doubts] + [frame.frame for frame in astray])
    for seed, change in enumerate(NUDGES):
        nudge = Nudge(torch.Generator().manual_seed(seed), **change)
        for i, again in enumerate(run_network(model, fixture, nudge)):
            for n, doubt in enumerate(doubts):
                if doubt.frame == i:
                    left[n] &= ~doubt.echo(_values(own[i], doubt.what), _values(again, doubt.what))
            for frame in (frame for frame in astray if frame.frame == i):
                found[frame] = max(found[frame], label_shares(again, fixture, i)[frame.what])
            if i == last:
                break
        lost = [frame for frame, share in found.items() if not share >= FRAME_LABELS]
        if not lost and not any(remaining.any() for remaining in left):
            break
    result.failures += [f"{frame.describe()}, and no repetition has them" for frame in lost]
    result.excused += [frame.describe() for frame in astray if frame not in lost]
    for doubt, remaining in zip(doubts, left):
        if remaining.any():
            result.failures.append(f"{doubt.describe(remaining)}, and nothing in the network explains it")
        else:
            result.excused.append(doubt.describe(~remaining))
    return found


def _values(run: FrameRun, what: str) -> npt.NDArray[np.floating[Any]]:
    if what == "labels":
        return run.deficit
    return run.margin if what == "clear" else run.samples[what]


def _number(value: float) -> float:
    return value if value == value else float("inf")
