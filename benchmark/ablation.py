"""What is each temporal cue worth? Train the same network with none, one, two, three and four cues, and compare.

  python benchmark/ablation.py --out runs/ablation --start FRAMES       everything: hours on two cores
  python benchmark/ablation.py --out runs/ablation --start FRAMES --training-seeds 0:1 --sequences 12
  python benchmark/ablation.py --out runs/without --start WEIGHTS --steps 0 --training-seeds 0:1
                                         trains nothing: trained weights with cues switched off
  python benchmark/ablation.py --out runs/ablation --report             table and plot of what is there

Every variant begins from the same single-frame weights, sees the same sequences in the same order for the same number
of steps, and is scored on the same held-out sequences. FRAMES are the weights that the recipe's stage of single frames
ends with: `frames.safetensors` in the folder of `gdfusion train gdfusion-small`. A part that is done is a file in the
folder, so that an interrupted run goes on where it was, and runs with different --training-seeds may go side by side.
Intervals are 95 % by bootstrap over the held-out sequences (2,000 draws), of paired differences to `none`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from gdfusion_ros.cli.arguments import seed_range
from gdfusion_ros.evaluation.flow import FlowScore
from gdfusion_ros.evaluation.miou import ConfusionMatrix
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.model.config import ModelConfig, load_config
from gdfusion_ros.model.model import OccupancyModel, load_model
from gdfusion_ros.sources.world import GroundTruth, WorldSource
from gdfusion_ros.training.recipe import Recipe, Stage, load_recipe
from gdfusion_ros.training.train import WEIGHTS, Trainer

VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "voxel": ("voxel",),
    "voxel+scene": ("voxel", "scene"),
    "voxel+motion": ("voxel", "motion"),
    "voxel+geometry": ("voxel", "geometry"),
    "all": ("voxel", "scene", "motion", "geometry"),
}
CUES = ("voxel", "scene", "motion", "geometry")
FIRST_SEED = 100
"""Held-out sequences begin here; training's seeds begin at a million."""
DRAWS = 2000

Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class SequenceScore:
    """One held-out sequence, as counts that can be added up."""

    weather: str
    visible: list[list[int]]
    hidden: list[list[int]]
    late: list[list[int]]
    """Visible voxels of the ninth and later frames."""
    flow: list[float]
    """Moving voxels, their summed error, and what zero would have cost."""


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--recipe", default="gdfusion-small", help="its streams stage is what every variant gets"
    )
    parser.add_argument("--start", help="single-frame weights that all variants begin from")
    parser.add_argument("--steps", type=int, default=600, help="of each variant's training (%(default)s)")
    parser.add_argument("--training-seeds", type=seed_range, default=range(3), metavar="A:B")
    parser.add_argument("--sequences", type=int, default=40, help="held-out sequences")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps the training sequences (default: OUT/sequences)"
    )
    parser.add_argument("--report", action="store_true", help="train and score nothing")
    args = parser.parse_args()
    if not args.report:
        if args.start is None:
            parser.error("--start FRAMES is needed: the single-frame weights that all variants begin from")
        models = {}
        for seed in args.training_seeds:
            for name in VARIANTS:
                models[name, seed] = load_model(
                    variant(model_config(args), VARIANTS[name]), train(args, name, seed)
                )
        score(args, models)
    report(args.out)


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The configuration of the recipe's model."""
    return load_config(load_recipe(args.recipe).model)


def variant(config: ModelConfig, cues: tuple[str, ...]) -> ModelConfig:
    """The configuration with these cues only."""
    temporal = dataclasses.replace(config.temporal, **{cue: cue in cues for cue in CUES})
    return dataclasses.replace(config, temporal=temporal)


def train(args: argparse.Namespace, name: str, seed: int) -> Path:
    """The weights of a variant, trained if they are not there yet."""
    folder = args.out / f"{name}-{seed}"
    if args.steps == 0:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(args.start)
    done = folder / "trained.json"
    if not done.is_file():
        base = load_recipe(args.recipe)
        stage = next(stage for stage in base.stages if stage.history)
        recipe = _recipe(base, dataclasses.replace(stage, steps=args.steps), args.start, seed)
        config = variant(model_config(args), VARIANTS[name])
        Trainer(recipe, folder, cache=args.cache or args.out / "sequences", resume=True, config=config).run()
        done.write_text(json.dumps({"steps": args.steps, "start": str(args.start), "seed": seed}))
    return folder / WEIGHTS


def _recipe(base: Recipe, stage: Stage, start: str, seed: int) -> Recipe:
    return dataclasses.replace(base, stages=(stage,), weights=start, seed=seed)


def score(args: argparse.Namespace, models: dict[tuple[str, int], OccupancyModel]) -> None:
    """Score the variants on every held-out sequence that they have no result of yet; each sequence is drawn once."""
    config = model_config(args)
    size = (config.image.height, config.image.width)
    for number in tqdm(range(FIRST_SEED, FIRST_SEED + args.sequences), desc="scoring", unit="sequence"):
        paths = {key: args.out / f"{key[0]}-{key[1]}" / f"score_{number}.json" for key in models}
        missing = [key for key, path in paths.items() if not path.is_file()]
        if not missing:
            continue
        source = WorldSource(number, args.frames, image_size=size, grid=config.grid.output)
        pairs = [*source.pairs()]
        for key in missing:
            result = score_sequence(models[key], source.weather.name, pairs)
            paths[key].write_text(json.dumps(dataclasses.asdict(result)))


def score_sequence(
    model: OccupancyModel, weather: str, pairs: list[tuple[CameraFrame, GroundTruth]]
) -> SequenceScore:
    """Drive through one held-out sequence."""
    visible, hidden, late = (ConfusionMatrix(OCC3D) for _ in range(3))
    flow = FlowScore()
    state = None
    for index, (frame, truth) in enumerate(pairs):
        prediction, state = model(frame, state)
        visible.add(prediction.labels, truth.labels, truth.visible)
        hidden.add(prediction.labels, truth.labels, truth.hidden_seen_before)
        if index >= 8:
            late.add(prediction.labels, truth.labels, truth.visible)
        if prediction.flow is not None:
            flow.add(prediction.flow.vectors, truth.velocity, truth.visible & (truth.labels != OCC3D.free))
    counts = [matrix.counts.tolist() for matrix in (visible, hidden, late)]
    return SequenceScore(weather, *counts, flow=[flow.moving_voxels, flow.moving_error, flow.zero_error])


def report(out: Path) -> None:
    """Table (``table.md``) and plot (``ablation.png``) of everything that has been scored."""
    scores = {name: _read(out, name) for name in VARIANTS}
    scores = {name: rows for name, rows in scores.items() if rows}
    if "none" not in scores:
        raise SystemExit(f"{out} has no scores of the variant `none`, which all others are compared with")
    lines = ["| cues | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    gains: dict[str, tuple[float, float, float]] = {}
    for name, rows in scores.items():
        cells = []
        for label, metric in METRICS.items():
            value = metric(_arrays(rows))
            text = f"{value:.2f}"
            if name != "none":
                low, high = interval(scores["none"], rows, metric)
                text += f" ({value - metric(_arrays(scores['none'])):+.2f}, {low:+.2f} to {high:+.2f})"
                if label == "mIoU":
                    gains[name] = (value - metric(_arrays(scores["none"])), low, high)
            cells.append(text)
        lines.append(f"| {name} ({len(rows)} drives) | " + " | ".join(cells) + " |")
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    _plot(gains, out / "ablation.png")


def _read(out: Path, name: str) -> dict[tuple[int, int], SequenceScore]:
    """(training seed, sequence) -> score."""
    rows = {}
    for path in sorted(out.glob(f"{name}-[0-9]*/score_*.json")):
        seed, number = int(path.parent.name.rsplit("-", 1)[1]), int(path.stem.split("_")[1])
        rows[seed, number] = SequenceScore(**json.loads(path.read_text()))
    return rows


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Scores of many sequences, stacked."""

    weather: npt.NDArray[np.str_]
    visible: Counts
    hidden: Counts
    late: Counts
    flow: npt.NDArray[np.float64]

    def take(self, chosen: npt.NDArray[np.int64]) -> Arrays:
        """Some of the sequences, any of them more than once."""
        return Arrays(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def _arrays(rows: dict[tuple[int, int], SequenceScore]) -> Arrays:
    values = [rows[key] for key in sorted(rows)]
    return Arrays(
        *(np.array([getattr(row, field.name) for row in values]) for field in dataclasses.fields(Arrays))
    )


def _matrix(counts: Counts) -> ConfusionMatrix:
    matrix = ConfusionMatrix(OCC3D)
    matrix.counts += counts.sum(axis=0)
    return matrix


def _miou(counts: Counts) -> float:
    matrix = _matrix(counts)
    return 100.0 * matrix.miou(matrix.present_ids)


def _movable(arrays: Arrays) -> float:
    matrix = _matrix(arrays.visible)
    return 100.0 * matrix.miou([i for i in matrix.present_ids if i in OCC3D.movable_ids])


def _dark_or_foggy(arrays: Arrays) -> float:
    chosen = np.array([("night" in name) or ("fog" in name) for name in arrays.weather])
    return _miou(arrays.visible[chosen]) if chosen.any() else float("nan")


METRICS: dict[str, Callable[[Arrays], float]] = {
    "mIoU": lambda a: _miou(a.visible),
    "IoU": lambda a: 100.0 * _matrix(a.visible).occupied_iou,
    "movable": _movable,
    "hidden": lambda a: _miou(a.hidden),
    "night, fog": _dark_or_foggy,
    "frame 9 on": lambda a: _miou(a.late),
    "flow error": lambda a: float(a.flow[:, 1].sum() / max(a.flow[:, 0].sum(), 1.0)),
}


def interval(
    base: dict[tuple[int, int], SequenceScore],
    rows: dict[tuple[int, int], SequenceScore],
    metric: Callable[[Arrays], float],
) -> tuple[float, float]:
    """95 % bootstrap interval of the paired difference, over the sequences that both have."""
    common = sorted(base.keys() & rows.keys())
    first, second = _arrays({k: base[k] for k in common}), _arrays({k: rows[k] for k in common})
    rng = np.random.default_rng(0)
    numbers = np.array([number for _, number in common])
    held_out = np.unique(numbers)
    differences = []
    for _ in range(DRAWS):
        # Whole sequences are drawn, with all their training seeds: seeds of one sequence are not independent.
        drawn = rng.choice(held_out, len(held_out))
        chosen = np.concatenate([np.flatnonzero(numbers == number) for number in drawn])
        differences.append(metric(second.take(chosen)) - metric(first.take(chosen)))
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return float(low), float(high)


def _plot(gains: dict[str, tuple[float, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    names = list(gains)
    values = np.array([gains[name] for name in names]).reshape(-1, 3)
    errors = np.abs(values[:, 1:].T - values[:, 0])
    axes.barh(names, values[:, 0], xerr=errors, color="#4477aa", ecolor="#222222", capsize=3)
    axes.axvline(0.0, color="#222222", linewidth=0.8)
    axes.set_xlabel("mIoU over the same network without history, camera-visible voxels (95 % interval)")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
