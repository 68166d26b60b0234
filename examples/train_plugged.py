"""Train the example's network with and without its cues, equally long, and measure what history is worth.

  python examples/train_plugged.py --out runs/cue_kit

Both begin with the same single-frame training. Then one goes on with single frames, the other with streams and its
four cues. Both are scored on sequences that neither has seen: mIoU over the voxels that the camera sees now or saw
before, and over those of them that it does not see now; differences with 95 % intervals from resampled sequences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import plugged_network  # noqa: F401 - registers the families

from gdfusion_ros.evaluation.miou import ConfusionMatrix
from gdfusion_ros.model.config import ModelConfig, read_config
from gdfusion_ros.model.model import OccupancyModel, load_model
from gdfusion_ros.sources.world import NUSCENES, WorldSource
from gdfusion_ros.training.recipe import LossWeights, Recipe, Stage
from gdfusion_ros.training.train import WEIGHTS, Trainer

HERE = Path(__file__).parent
FRAMES = 10
"""Of a sequence."""
RESAMPLES = 2000

Score = dict[str, ConfusionMatrix]
"""Of one sequence: ``all`` voxels seen now or before, and the ``hidden`` ones of them."""


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for weights, curves and drawn sequences"
    )
    parser.add_argument("--steps", type=int, default=1600, help="of each part of a training (%(default)s)")
    parser.add_argument("--sequences", type=int, default=96, help="to train on (%(default)s)")
    parser.add_argument("--held-out", type=int, default=48, help="to score on (%(default)s)")
    args = parser.parse_args()
    config = load_example()
    common = train(args, config, "common", history=False, rate=0.004, weights="")
    single = train(args, config, "single", history=False, rate=0.002, weights=str(common))
    plugged = train(args, config, "plugged", history=True, rate=0.002, weights=str(common))
    with_history = score(load_model(config, plugged), args.held_out, history=True)
    others = {
        "single frames, trained equally long": score(
            load_model(config, single), args.held_out, history=False
        ),
        "the same weights, frame by frame": score(load_model(config, plugged), args.held_out, history=False),
    }
    print(json.dumps({name: compare(other, with_history) for name, other in others.items()}, indent=2))


def load_example() -> ModelConfig:
    """The example's model file."""
    import yaml

    return read_config(yaml.safe_load((HERE / "plugged.yaml").read_text()), "plugged.yaml")


def train(
    args: argparse.Namespace, config: ModelConfig, name: str, history: bool, rate: float, weights: str
) -> Path:
    """Train one part; gives its weights."""
    losses = LossWeights(depth=0.5, flow=0.0)
    stage = Stage(name, history, args.steps, 1.0, batch=4, rate=rate, freeze_norm=history, losses=losses)
    recipe = Recipe("plugged", "world", args.sequences, FRAMES, (stage,), weights=weights, average=0.98)
    out = args.out / name
    Trainer(recipe, out, cache=args.out / "sequences", config=config).run()
    return out / WEIGHTS


def score(model: OccupancyModel, sequences: int, history: bool) -> list[Score]:
    """The counts of each held-out sequence."""
    size = (model.config.image.height, model.config.image.width)
    rig = NUSCENES.with_cameras(model.cameras)
    scores = []
    for seed in range(sequences):
        one = {name: ConfusionMatrix(model.label_set) for name in ("all", "hidden")}
        state = None
        for frame, truth in WorldSource(seed, FRAMES, rig, size, model.grid).pairs():
            prediction, state = model(frame, state if history else None)
            hidden = truth.hidden_seen_before
            one["all"].add(prediction.labels, truth.labels, truth.visible | hidden)
            one["hidden"].add(prediction.labels, truth.labels, hidden)
        scores.append(one)
    return scores


def compare(without: list[Score], with_history: list[Score]) -> dict[str, object]:
    """mIoU of both in percent, and the difference with its 95 % interval."""
    rng = np.random.default_rng(0)
    everything = np.arange(len(without))
    draws = [rng.choice(everything, len(everything)) for _ in range(RESAMPLES)]
    report: dict[str, object] = {"sequences": len(without)}
    for name in ("all", "hidden"):
        before, after = ([score[name] for score in scores] for scores in (without, with_history))
        differences = [miou(after, draw) - miou(before, draw) for draw in draws]
        low, high = np.percentile(differences, [2.5, 97.5])
        report[name] = {
            "without": round(miou(before, everything), 2),
            "with_history": round(miou(after, everything), 2),
            "difference": round(miou(after, everything) - miou(before, everything), 2),
            "interval": [round(float(low), 2), round(float(high), 2)],
        }
    return report


def miou(matrices: list[ConfusionMatrix], chosen: np.ndarray) -> float:
    """mIoU in percent over the classes that occur, from the counts of the chosen sequences together."""
    total = ConfusionMatrix(matrices[0].label_set)
    for index in chosen:
        total.merge(matrices[index])
    return 100.0 * total.miou(total.present_ids)


if __name__ == "__main__":
    main()
