"""Where the score of gdfusion-small is lost: `python benchmark/limits.py`.

Held-out drives of the made-up world, camera-visible voxels, two frames of each drive. Four ways without history: the
network; the network with the true depth of every image cell in place of its own, for which it was not trained; and no
network at all but the true depth and label of every pixel, put into the cells, as they are and with the depth rounded
to the network's bins. Then the network with its history: the occupied IoU above the ground's layer by distance, and
the end-point error of the flow on what moves, by what it is and where it goes; beside it that of zero flow, and that of
true velocities where the label found can move, since elsewhere no vector is published. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gdfusion_ros.cli.arguments import seed_range
from gdfusion_ros.evaluation.miou import ConfusionMatrix
from gdfusion_ros.frame import CameraFrame
from gdfusion_ros.geometry import inverse
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.model.blocks.cameras import depth_values
from gdfusion_ros.model.blocks.depth import DepthOutput
from gdfusion_ros.model.model import load_model
from gdfusion_ros.model.network import NetworkOutput
from gdfusion_ros.sources.world import GRID, GroundTruth, WorldSource
from gdfusion_ros.training.batch import Targets, collate
from gdfusion_ros.training.data import stack
from gdfusion_ros.training.losses import MOVING

FRAMES, SCORED = 8, (3, 7)
RINGS = {"below 12 m": (0.0, 12.0), "12 to 24 m": (12.0, 24.0), "beyond": (24.0, np.inf)}
GROUND_LAYER = 1
VEHICLES = [OCC3D.id(name) for name in ("bus", "car", "truck")]
STRIDE = 4
"""Image pixels of a cell of the network's depth map."""


class TrueDepth(nn.Module):
    """A depth net that says what is true, and gives of each cell what the network gives."""

    def __init__(self, depth_net: nn.Module) -> None:
        super().__init__()
        self.depth_net = depth_net
        self.truth = torch.empty(0)
        """(M, h, w, D) share of a cell's pixels in each bin."""

    def forward(self, features: Tensor, rays: Tensor) -> DepthOutput:
        """As the depth net; cells with nothing in reach have no depth."""
        context = self.depth_net(features, rays).context
        shares = self.truth / self.truth.sum(dim=-1, keepdim=True).clamp_min(1e-6)
        depth = shares.movedim(-1, 1)
        return DepthOutput(depth, depth, context, (depth + 1e-4).log(), None)


def main() -> None:
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gdfusion-small", help="of its family (%(default)s)")
    parser.add_argument("--weights", default="default")
    parser.add_argument(
        "--seeds", type=seed_range, default=range(500, 512), metavar="A:B", help="drives (default 500:512)"
    )
    args = parser.parse_args()
    print(json.dumps(measure(args)))


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The JSON object that is printed."""
    model = load_model(args.model, args.weights)
    network, config = model.network, model.config
    plain, told = network.depth_net, TrueDepth(network.depth_net)
    bins = depth_values(config.depth_bins).numpy()
    scores: dict[str, ConfusionMatrix] = defaultdict(lambda: ConfusionMatrix(OCC3D))
    flow: dict[str, list[npt.NDArray[np.float32]]] = defaultdict(list)
    for seed in tqdm(args.seeds, "drives", disable=None):
        pairs = [*WorldSource(seed, FRAMES, image_size=(config.image.height, config.image.width)).pairs()]
        sequence, state = stack(pairs), None
        for i, (frame, truth) in enumerate(pairs):
            given, targets = collate([(sequence, i)], config, STRIDE, first=i == 0)
            output, state = network(given, state)
            if i not in SCORED:
                continue
            visible, labels = truth.visible, truth.labels
            for ring, (near, far) in RINGS.items():
                chosen = visible & _ring(near, far)
                chosen[:, :, : GROUND_LAYER + 1] = False
                scores[ring].add(_labels(output), labels, chosen)
            _add_flow(flow, output, targets)
            scores["network"].add(_labels(network(given, None)[0]), labels, visible)
            told.truth, network.depth_net = targets.depth, told
            scores["network, true depth"].add(_labels(network(given, None)[0]), labels, visible)
            network.depth_net = plain
            scores["pixels"].add(_of_pixels(frame, truth), labels, visible)
            scores["pixels, depth in bins"].add(_of_pixels(frame, truth, bins), labels, visible)
    single = {n: _score(scores[n]) for n in scores if n not in RINGS}
    above = {ring: _score(scores[ring])["iou"] for ring in RINGS}
    errors = {name: [round(float(v), 2) for v in np.concatenate(flow[name]).mean(axis=0)] for name in flow}
    return {"single_frames": single, "iou_above_ground": above, "flow_epe_zero_and_by_label": errors}


def _score(matrix: ConfusionMatrix) -> dict[str, float]:
    free = matrix.counts[-1, -2]  # free is Occ3D's last label
    right = matrix.counts[:-1, :-2].sum()
    return {
        "miou": round(100 * matrix.miou(matrix.present_ids), 1),
        "iou": round(100 * float(right / (matrix.counts.sum() - free)), 1),
    }


def _ring(near: float, far: float) -> npt.NDArray[np.bool_]:
    """(X, Y, 1) cells at this distance from the vehicle."""
    x, y = (low + (np.arange(n) + 0.5) * c for low, n, c in zip(GRID.minimum, GRID.shape[:2], GRID.cell_size))
    distance = np.hypot(x[:, None], y[None, :])[..., None]
    return (distance >= near) & (distance < far)


def _labels(output: NetworkOutput) -> npt.NDArray[np.uint8]:
    """(X, Y, Z)."""
    count = len(OCC3D.labels)
    return output.logits[0, -count:].argmax(dim=0).transpose(0, 1).numpy().astype(np.uint8)


def _of_pixels(
    frame: CameraFrame, truth: GroundTruth, bins: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    """(X, Y, Z) labels of the cells that pixels end in, by majority; free elsewhere."""
    votes = np.zeros((*GRID.shape, len(OCC3D.labels)), dtype=np.int32)
    for view, depth, shown in zip(frame.views, truth.depth, truth.pixel_labels, strict=True):
        metres = np.where(np.isfinite(depth), depth, 1e4) + 0.02  # a touch into what was hit
        if bins is not None:
            metres = bins[0] + np.round((metres - bins[0]) / (bins[1] - bins[0])) * (bins[1] - bins[0])
        ego_from_camera = inverse(frame.world_from_ego) @ view.world_from_ego @ view.ego_from_camera
        t = view.image_transform
        v, u = np.mgrid[: depth.shape[0], : depth.shape[1]]
        pixels = np.stack([(u + t.left + 0.5) / t.scale - 0.5, (v + t.top + 0.5) / t.scale - 0.5], axis=-1)
        rays = (
            np.concatenate([pixels, np.ones((*depth.shape, 1))], axis=-1) @ np.linalg.inv(view.intrinsics).T
        )
        points = (rays * metres[..., None]) @ ego_from_camera[:3, :3].T + ego_from_camera[:3, 3]
        cells = np.floor((points - GRID.minimum) / GRID.cell_size).astype(int)
        inside = ((cells >= 0) & (cells < GRID.shape)).all(axis=-1)
        np.add.at(votes, (*cells[inside].T, shown[inside]), 1)
    return np.where(votes.any(axis=-1), votes.argmax(axis=-1), OCC3D.free).astype(np.uint8)


def _add_flow(
    flow: dict[str, list[npt.NDArray[np.float32]]], output: NetworkOutput, targets: Targets
) -> None:
    """Rows of error, of that of predicting zero, and of that of true velocities where a movable label was found, and
    zero elsewhere, for the moving voxels that are seen."""
    assert output.velocity is not None
    found, true, labels = output.velocity[0].numpy(), targets.velocity[0].numpy(), targets.labels[0].numpy()
    seen = (targets.weight[0].numpy() >= 1) & (labels != OCC3D.free)
    moving = seen & (np.abs(true).max(axis=-1) > MOVING)
    error, speed = np.linalg.norm(found - true, axis=-1), np.linalg.norm(true, axis=-1)
    movable = OCC3D.table(OCC3D.movable_ids).take(_labels(output).swapaxes(0, 1))
    rows = np.stack([error, speed, np.where(movable, 0.0, speed)], axis=-1)
    vehicle, along = np.isin(labels, VEHICLES), np.abs(true[..., 0]) > 2 * np.abs(true[..., 1])
    crossing = np.abs(true[..., 1]) > 2.0
    for name, chosen in {
        "all that moves": moving,
        "vehicles along the road": moving & vehicle & along,
        "crossing vehicles": moving & vehicle & crossing & ~along,
        "pedestrians": moving & (labels == OCC3D.id("pedestrian")),
    }.items():
        flow[name].append(rows[chosen])


if __name__ == "__main__":
    main()
