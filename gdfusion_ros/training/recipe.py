"""How a network is trained: the stages of a recipe, read from a YAML under ``config/training``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from gdfusion_ros.errors import UserError
from gdfusion_ros.model.config import read_section

MOST_SEQUENCES = 10_000
"""Of the world in one training."""


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts."""

    cross_entropy: float = 1.0
    jaccard: float = 1.0
    depth: float = 0.3
    flow: float = 0.1
    semantics: float = 0.0
    """On what each image cell shows, through a layer that only training has: it tells the image encoder what to look
    for before the depths are good enough for voxels to tell it."""
    unseen: float = 0.0
    """Of a voxel that no camera has seen yet, against 1 of a visible one, in the cross-entropy: what stands there can
    only be guessed, but a house is better guessed solid."""
    rarity: float = 0.25
    """Of the made-up world's classes in the cross-entropy of voxels: the power of how much rarer than free space a
    class is by which its voxels count. Less as a network grows sure: while it hardly knows what stands where, free
    space is the most likely answer everywhere, and what may well stand there the better one by mIoU."""


@dataclass(frozen=True)
class Stage:
    """A part of the training with one optimiser and one learning rate curve."""

    name: str
    history: bool
    """False: single frames in random order, without temporal cues. True: streams of consecutive frames, the state
    handed on without gradient as in the method."""
    steps: int
    share: float
    """This stage's share of the time when the training is given a time instead of steps."""
    batch: int
    """Frames, or streams, of each process in one step."""
    rate: float
    """Peak learning rate."""
    least_minutes: float = 0.0
    """A training by the clock leaves the stage out when its share is less than this: it would begin and not arrive.
    The other stages share its time."""
    warmup: float = 0.03
    """Share of the stage in which the rate rises to its peak; a cosine takes it down from there."""
    gain_rate: float = 10.0
    """Learning rate of the temporal gains, which begin at zero, as a multiple of ``rate``."""
    freeze_norm: bool = False
    """Keep the statistics of batch norm: consecutive frames are too alike to measure them on."""
    constant: bool = False
    """No cosine: the rate stays at its peak after the warm-up, as the large networks were trained."""
    losses: LossWeights = LossWeights()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.warmup < 1 or self.rate <= 0 or self.share <= 0:
            raise ValueError(
                f"stage {self.name}: steps, batch, rate and share must be positive, warmup in 0..1"
            )


def stage_seconds(stages: tuple[Stage, ...], minutes: float) -> tuple[float, ...]:
    """Seconds of each stage in a training of so many minutes; 0 for those that are left out.

    Later stages are left out before earlier ones, and one stage stays however short the time is.
    """
    kept = list(stages)
    while True:
        total = sum(stage.share for stage in kept)
        short = [stage for stage in kept if minutes * stage.share / total < stage.least_minutes]
        if not short or len(kept) == 1:
            return tuple(60.0 * minutes * stage.share / total if stage in kept else 0.0 for stage in stages)
        kept.remove(short[-1])


@dataclass(frozen=True)
class Recipe:
    """A whole training."""

    model: str
    """Name or YAML of the model."""
    data: Literal["world", "folder"]
    """``world``: sequences of the made-up world. ``folder``: nuScenes with Occ3D's annotations."""
    sequences: int
    """How many different sequences of the world there are, ``MOST_SEQUENCES`` at most. After the last they come once
    more, mirrored, and then anew. Of a folder, all."""
    frames: int
    """Consecutive frames of a sequence."""
    stages: tuple[Stage, ...]
    weights: str = ""
    """What to begin from: a weights file, of the network itself or of the one that its cues were plugged into, or
    ``default``. Empty: from nothing."""
    seed: int = 0
    """Of the weights at the beginning, of the frames' order, and of the world: each seed has sequences of its own."""
    weight_decay: float = 0.01
    clip: float = 5.0
    """Largest norm of the gradient."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the convolutional blocks compute in. ``bf16`` is twice as fast where the processor has its arithmetic; where
    it has not, float32 is taken, with a warning."""
    average: float = 0.998
    """Decay a step of the moving average of the weights, which is what a training gives."""

    def __post_init__(self) -> None:
        if not self.stages or self.sequences < 1 or self.frames < 1:
            raise ValueError("a recipe needs stages, sequences and frames")
        if self.sequences > MOST_SEQUENCES or self.seed < 0:
            raise ValueError(f"sequences must be {MOST_SEQUENCES} at most, and seed not negative")


def load_recipe(recipe: str | Path) -> Recipe:
    """A recipe by its name, or by the path of a YAML. Raises UserError when it is none."""
    from gdfusion_ros.share import share_dir

    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        folder = share_dir() / "config" / "training"
        path = folder / f"{recipe}.yaml"
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
            raise UserError(
                f"there is no training recipe {str(recipe)!r}; there are {names}, or give a .yaml"
            )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error
    result: Recipe = read_section(Recipe, content, str(path), "")
    return result
