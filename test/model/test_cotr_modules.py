"""COTR's modules alone against the whole tensors of ``parity/cotr_modules``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.camera_attention import project
from gdfusion_ros.model.blocks.cameras import CameraRig
from gdfusion_ros.model.blocks.mask_decoder import (
    MaskDecoderLayer,
    confident,
    mask_labels,
    merged_labels,
)
from gdfusion_ros.model.blocks.occ_encoder import OccEncoder, OccEncoderLayer, VolumeAttention
from gdfusion_ros.model.watch import Watch

FREE = 17
CASES = 24


@pytest.fixture
def modules(shared_dir: Path) -> Path:
    return shared_dir / "parity" / "cotr_modules"


def read(folder: Path, name: str) -> dict[str, Tensor]:
    with np.load(folder / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def fill(module: nn.Module, arrays: dict[str, Tensor], renamed: dict[str, str]) -> None:
    state = {}
    for key, value in arrays.items():
        if key.startswith("weights/"):
            name = key.removeprefix("weights/").removeprefix("layers.0.")
            for published, own in renamed.items():
                name = name.replace(published, own)
            state[name] = value
    module.load_state_dict(state, strict=True)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    expected = expected.view(actual.shape)
    assert float((actual - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_attention_into_a_volume_agrees_with_the_reference(modules: Path) -> None:
    arrays = read(modules, "deformable_3d")
    attention = VolumeAttention(256)
    fill(attention, arrays, {})

    query, position = arrays["query"], arrays["position"]
    seen = attention(query + position, arrays["value"], arrays["reference"][0, :, 0], (6, 5, 4))

    assert_close(query + seen, arrays["output"])


@torch.no_grad()
def test_encoder_layer_agrees_with_the_reference_in_every_stage(modules: Path) -> None:
    arrays = read(modules, "occ_encoder")
    layer = OccEncoderLayer(256)
    fill(layer, arrays, {})
    grid = VoxelGrid.from_bounds((-40.0, 40.0, 2.0), (-40.0, 40.0, 2.0), (-1.0, 5.4, 1.6))
    compact = VoxelGrid.from_bounds((-40.0, 40.0, 8.0), (-40.0, 40.0, 8.0), (-1.0, 5.4, 1.6))
    encoder = OccEncoder(grid, compact, 256, 6, corrected=False)
    rig = CameraRig(
        intrinsics=arrays["K"][None],
        rotation=arrays["sensor2ego"][None, :, :3, :3],
        translation=arrays["sensor2ego"][None, :, :3, 3],
        image_rotation=arrays["post_rot"][None],
        image_translation=arrays["post_tran"][None],
        augmentation=torch.eye(3)[None],
    )
    projection = project(encoder.metric, rig, (128, 352))
    seen: dict[str, Tensor] = {}

    output = layer(
        arrays["query"][None],
        arrays["position"],
        encoder.places,
        encoder.spatial,
        arrays["value"][None],
        (8, 22),
        projection,
        Watch(seen.__setitem__),
    )

    assert torch.equal(projection.visible[0], arrays["mask"])
    visible = arrays["mask"]
    assert torch.allclose(projection.places[0][visible], arrays["reference_2d"][visible], atol=1e-5)
    assert_close(seen["encoder_self"], arrays["after_self"])
    assert_close(seen["encoder_cross"], arrays["after_cross"])
    assert_close(output, arrays["output"])


@torch.no_grad()
def test_mask_decoder_layer_agrees_with_the_reference(modules: Path) -> None:
    arrays = read(modules, "mask_decoder")
    layer = MaskDecoderLayer(256)
    fill(layer, arrays, {"attentions.0.": "cross.", "attentions.1.attn.": "own.", "in_proj_": "in_proj."})

    output = layer(
        arrays["content"][None],
        arrays["position"],
        arrays["reference"],
        arrays["value"][None],
        (6, 5, 4),
        Watch(),
    )

    assert_close(output[0], arrays["output"])


@pytest.mark.parametrize("case", range(CASES))
def test_masks_become_labels_as_in_the_reference(modules: Path, case: int) -> None:
    arrays = read(modules, "postprocess")
    class_logits = arrays[f"{case}/class_logits"].float()
    mask_logits = arrays[f"{case}/mask_logits"].float()
    semantic = arrays[f"{case}/logits"].float().argmax(dim=-1).to(torch.uint8)

    counts = confident(class_logits)
    kept = counts.nonzero().squeeze(1)
    masks = mask_labels(class_logits[kept], mask_logits[kept], counts[kept])

    assert torch.equal(semantic, arrays[f"{case}/labels_encoder"])
    assert torch.equal(masks, arrays[f"{case}/labels_decoder"])
    assert torch.equal(merged_labels(semantic, masks, FREE), arrays[f"{case}/labels"])
    # As on an accelerator, which looks at all queries.
    assert torch.equal(mask_labels(class_logits, mask_logits, counts), masks)


def test_corrected_references_give_each_cell_its_own_point_and_place() -> None:
    grid = VoxelGrid.from_bounds((-8.0, 8.0, 2.0), (-4.0, 4.0, 2.0), (0.0, 2.0, 1.0))
    encoder = OccEncoder(grid, grid, 256, 1, corrected=True)
    columns, rows, layers = grid.shape

    # The query of cell (x, y, z) is number (y * columns + x) * layers + z.
    number = (3 * columns + 5) * layers + 1
    assert encoder.metric[number].tolist() == [3.0, 3.0, 1.5]
    expected = [(1 + 0.5) / layers, (5 + 0.5) / columns, (3 + 0.5) / rows]
    assert torch.allclose(encoder.places[number], torch.tensor(expected))
