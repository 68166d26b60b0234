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
        for earlier in (folder / "worst").glob("[0-9][0-9]_frame*.png"):
            earlier.unlink()
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
    figure = Figure(figsize=(9, 0.3 * len(labels) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        [label.name for label in labels],
        values,
        color=[np.array(label.color) / 255 for label in labels],
        edgecolor="0.4",
    )
    for row, (iou, value) in enumerate(zip(ious.values(), values, strict=True)):
        # A class that is only predicted has an IoU of 0, and not none.
        words = "neither there nor predicted" if math.isnan(iou) else f"{value:.1f}"
        axes.text(value + 0.7, row, words, va="center", fontsize=8, color="0.5" if math.isnan(iou) else "0")
    if summary.get("miou") is not None:
        axes.axvline(summary["miou"], color="0.3", linestyle="--", linewidth=1, label="mIoU")
        axes.legend(loc="lower right")
    axes.set(xlim=(0, 106), ylim=(len(labels) - 0.4, -0.6), xlabel="IoU in percent", title=_title(summary))
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    return _saved(figure, folder / "classes.png")


def _confusion(folder: Path, matrix: ConfusionMatrix) -> Path:
    """Rows of classes that do not occur stay grey."""
    names = [label.name for label in matrix.label_set.labels]
    voxels = matrix.counts.sum(axis=1)
    share = matrix.counts / np.where(voxels > 0, voxels, np.nan)[:, None]
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names) + 1), [*names, "unknown"], rotation=90, fontsize=9)
    rows = [f"{name}  ({_rounded(count)})" for name, count in zip(names, voxels.tolist(), strict=True)]
    axes.set_yticks(range(len(names)), rows, fontsize=9)
    axes.set_xticks(np.arange(len(names)) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="predicted", ylabel="true (voxels)", title="Share of each true class in percent")
    for i, j in zip(*np.nonzero(np.nan_to_num(share) >= 0.005), strict=True):
        color = "white" if share[i, j] > 0.6 else "black"
        weight = "bold" if i == j else "normal"
        axes.text(
            j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=8, color=color, weight=weight
        )
    figure.colorbar(image, ax=axes, shrink=0.6)
    return _saved(figure, folder / "confusion.png")


def _rounded(count: int) -> str:
    """A count for people: 812, 53 k, 1.2 M."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.3g} k" if count < 999_500 else f"{count / 1e6:.3g} M"


def _title(summary: dict[str, Any]) -> str:
    parts: Sequence[tuple[str, str]] = (("mIoU", "miou"), ("IoU", "iou"), ("RayIoU", "rayiou"))
    words = [f"{name} {summary[key]:.1f}" for name, key in parts if summary.get(key) is not None]
    return f"{summary.get('model', '')}: {', '.join(words)}"


def _saved(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
    return path
