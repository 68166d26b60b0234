"""What an evaluation leaves behind: JSON, a CSV of frames, bars, the confusion matrix, the worst frames as pictures."""

from __future__ import annotations

import csv
import heapq
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gdfusion_ros.evaluation.ground_truth import GroundTruth
from gdfusion_ros.evaluation.miou import ConfusionMatrix
from gdfusion_ros.evaluation.score import number, on_grid, percent
from gdfusion_ros.frame import CameraFrame, Occupancy
from gdfusion_ros.viewer.picture import save_png, sheet

WORST = 10


@dataclass(frozen=True)
class BadFrame:
    """A frame worth looking at."""

    miou: float
    number: int
    frame: CameraFrame
    occupancy: Occupancy
    truth: GroundTruth


class Report:
    """Collects frames as they are scored; ``write`` makes the files. Holds the ten worst frames, no others."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._worst: list[tuple[float, int, BadFrame]] = []
        self._order = itertools.count()

    def add(self, frame: CameraFrame, occupancy: Occupancy, truth: GroundTruth, own: ConfusionMatrix) -> None:
        """Remember one frame's scores, and its pictures if it is among the worst."""
        miou = own.miou(own.present_ids)
        self.rows.append(
            {
                "scene": frame.scene,
                "stamp_ns": frame.stamp_ns,
                "history_frames": occupancy.history_frames,
                "miou": percent(miou),
                "iou": percent(own.occupied_iou),
                "miou_movable": percent(own.miou(own.label_set.movable_ids)),
                "inference_ms": number(occupancy.timings_ms.get("inference", math.nan)),
            }
        )
        if math.isnan(miou):
            return
        order = next(self._order)
        heapq.heappush(
            self._worst, (-miou, order, BadFrame(miou, len(self.rows) - 1, frame, occupancy, truth))
        )
        if len(self._worst) > WORST:
            heapq.heappop(self._worst)

    @property
    def worst(self) -> list[BadFrame]:
        """Up to ten frames, the worst first."""
        return [entry[2] for entry in sorted(self._worst, key=lambda entry: (-entry[0], entry[1]))]

    def write(self, folder: Path, summary: dict[str, Any], matrix: ConfusionMatrix) -> list[Path]:
        """Write ``summary.json``, ``frames.csv``, ``classes.png``, ``confusion.png`` and ``worst/*.png``."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [write_json(folder, summary), self._csv(folder)]
        files += [_bars(folder, matrix, summary), _confusion(folder, matrix)]
        for rank, bad in enumerate(self.worst, 1):
            on_truth = on_grid(bad.occupancy, bad.truth.grid)
            title = f"{bad.frame.scene}, frame {bad.number}: mIoU {100 * bad.miou:.1f}"
            picture = sheet(bad.frame, on_truth, truth=bad.truth.labels, title=title)
            path = folder / "worst" / f"{rank:02d}_frame{bad.number:05d}.png"
            save_png(picture, path)
            files.append(path)
        return files

    def _csv(self, folder: Path) -> Path:
        path = folder / "frames.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["frame", *(self.rows[0] if self.rows else [])])
            writer.writeheader()
            for k, row in enumerate(self.rows):
                writer.writerow({"frame": k, **row})
        return path


def write_json(folder: Path, summary: dict[str, Any]) -> Path:
    """Write ``summary.json``; the folder is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "summary.json"
    path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _bars(folder: Path, matrix: ConfusionMatrix, summary: dict[str, Any]) -> Path:
    ious = matrix.ious()
    labels = [matrix.label_set[i] for i in ious]
    values = [0.0 if math.isnan(iou) else 100 * iou for iou in ious.values()]
    figure = Figure(figsize=(9, 0.34 * len(labels) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        [label.name for label in labels],
        values,
        color=[np.array(label.color) / 255 for label in labels],
        edgecolor="0.4",
    )
    for row, (iou, value) in enumerate(zip(ious.values(), values, strict=True)):
        axes.text(
            value + 0.7, row, "not there" if math.isnan(iou) else f"{value:.1f}", va="center", fontsize=8
        )
    axes.invert_yaxis()
    axes.set(xlim=(0, 105), xlabel="IoU in percent", title=_title(summary))
    return _saved(figure, folder / "classes.png")


def _confusion(folder: Path, matrix: ConfusionMatrix) -> Path:
    names = [label.name for label in matrix.label_set.labels]
    share = matrix.counts / np.maximum(matrix.counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(10, 9), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(100 * share, cmap="viridis", vmin=0, vmax=100)
    axes.set_xticks(range(len(names) + 1), [*names, "unknown"], rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Share of each true class in percent")
    for i, j in zip(*np.nonzero(share >= 0.01), strict=True):
        color = "black" if share[i, j] > 0.6 else "white"
        axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=6, color=color)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return _saved(figure, folder / "confusion.png")


def _title(summary: dict[str, Any]) -> str:
    parts: Sequence[tuple[str, str]] = (("mIoU", "miou"), ("IoU", "iou"), ("RayIoU", "rayiou"))
    words = [f"{name} {summary[key]:.1f}" for name, key in parts if summary.get(key) is not None]
    return f"{summary.get('model', '')}: {', '.join(words)}"


def _saved(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
    return path
