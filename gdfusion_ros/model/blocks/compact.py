"""COTR from a voxel volume to labels: compact encoder, transformers, and features at full size (cotr-spec.md 4 to 9).

Volumes are (B, C, Z, Y, X).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from gdfusion_ros.errors import UserError
from gdfusion_ros.grid import VoxelGrid
from gdfusion_ros.model.blocks.cameras import CameraRig
from gdfusion_ros.model.blocks.encoders import EncoderConfig
from gdfusion_ros.model.blocks.layers import ConvNorm, upsample
from gdfusion_ros.model.blocks.mask_decoder import (
    MaskDecoder,
    Queries,
    confident,
    mask_labels,
    merged_labels,
)
from gdfusion_ros.model.blocks.occ_encoder import OccEncoder
from gdfusion_ros.model.blocks.selection import selected
from gdfusion_ros.model.watch import Watch

SHRINKING = 4
"""Cells of the full grid along x and y for one of the compact grid; z keeps its cells."""
CHANNELS = 256
"""Of the transformers and of the feature at full size."""
_SLAB_VOXELS = 32_768
"""Voxels that the heads look at together: their features at full size would take gigabytes at once."""


class Compact(NamedTuple):
    """What the encoder gives."""

    fine: Tensor
    """(B, 32, Z, Y, X) the first stage's map."""
    middle: Tensor
    """(B, 64, Z / 2, Y / 2, X / 2) the second's."""
    coarse: Tensor
    """(B, 128, Z, Y / 4, X / 4) the third's, at the compact size."""
    merged: Tensor
    """(B, outputs, Z, Y / 4, X / 4): all of them at the compact size."""


class CompactNeck(nn.Module):
    """All stages' maps at the compact size, mixed by a 1x1x1 convolution."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.conv = ConvNorm(sum(config.channels), config.outputs, 1, dims=3)

    def forward(self, maps: list[Tensor]) -> Compact:
        """The three stages' maps, finest first."""
        fine, middle, coarse = maps
        z, y, x = fine.shape[2:]
        size = (z, y // SHRINKING, x // SHRINKING)
        # Oddity (cotr-spec.md 12.4): the coarsest map is resized by other corners than the two finer ones.
        raised = upsample(coarse, size, align_corners=False)
        resized = [upsample(m, size, align_corners=True) for m in (fine, middle)]
        return Compact(fine, middle, raised, self.conv(torch.cat([*resized, raised], dim=1)))


class CompactOutput(NamedTuple):
    """What the heads say."""

    logits: Tensor
    """(B, classes, Y, X, Z) of the voxel head."""
    labels: Tensor
    """(B, Y, X, Z) uint8: the voxel head's labels and the things that the masks add."""


class CompactHead(nn.Module):
    """The transformer on the compact grid, the way back to full size, the voxel head and the mask head."""

    def __init__(
        self, grid: VoxelGrid, encoder: EncoderConfig, cameras: int, classes: int, corrected: bool
    ) -> None:
        super().__init__()
        fine, middle, coarse = encoder.channels
        narrow = encoder.outputs
        self.decoder_input_projs = nn.Conv3d(narrow, CHANNELS, 1)
        self.encoder = OccEncoder(grid, compact_grid(grid), CHANNELS, cameras, corrected)
        self.enhance_projs = nn.Conv3d(CHANNELS, narrow, 1)
        self.enhance_conv = ConvNorm(2 * narrow, narrow, 3, dims=3, bias=True, norm=False)
        self.compact_proj = nn.Conv3d(narrow, CHANNELS, 1)
        self.decoder = MaskDecoder(CHANNELS, classes)
        self.up0 = _doubling(narrow + coarse, middle)
        self.up1 = _doubling(2 * middle, middle)
        self.final_conv = ConvNorm(fine + middle, CHANNELS, 1, dims=3, bias=True, norm=False)
        self.occ_predictor = nn.Sequential(
            nn.Linear(CHANNELS, CHANNELS // 4), nn.Softplus(), nn.Linear(CHANNELS // 4, classes)
        )
        self.mask_feature = nn.Sequential(
            nn.Linear(CHANNELS, 2 * CHANNELS), nn.Softplus(), nn.Linear(2 * CHANNELS, CHANNELS)
        )

    def forward(
        self, compact: Compact, features: Tensor, rig: CameraRig, image_size: tuple[int, int], watch: Watch
    ) -> CompactOutput:
        """Labels from the encoder's maps and the image features (B, N, 256, h, w) of this frame."""
        with watch.stage("occ_encoder"):
            queries = self.decoder_input_projs(compact.merged)
            encoded = self.enhance_projs(self.encoder(queries, features, rig, image_size, watch))
            refined = self.enhance_conv(torch.cat([compact.merged, encoded], dim=1))
        watch.show(compact_refined=refined)
        with watch.stage("upsampling"):
            half = self.up0(torch.cat([refined, compact.coarse], dim=1))
            watch.show(up0=half)
            middle = upsample(compact.middle, half.shape[2:], align_corners=True)
            full = self.up1(torch.cat([half, middle], dim=1))
            watch.show(up1=full)
        with watch.stage("mask_decoder"):
            found = self.decoder(self.compact_proj(refined), watch)
        with watch.stage("head"):
            return self._predict(torch.cat([compact.fine, full], dim=1), found, watch)

    def _predict(self, volume: Tensor, found: Queries, watch: Watch) -> CompactOutput:
        """The two heads on every voxel, slab by slab, and the labels they give together."""
        # The last layer of the mask feature is folded into the embeddings: exact but for rounding.
        last = cast(nn.Linear, self.mask_feature[2])
        folded = found.mask_embeddings @ last.weight
        constant = found.mask_embeddings @ last.bias
        all_logits, all_labels = [], []
        for b, class_logits in enumerate(found.class_logits):
            counts = confident(class_logits)
            index = selected(counts)
            logits, masks = self._slabs(volume[b], folded[b, index], constant[b, index])
            semantic = logits.argmax(dim=-1).to(torch.uint8)
            by_masks = mask_labels(class_logits[index], masks, counts[index])
            all_logits.append(logits)
            all_labels.append(merged_labels(semantic, by_masks, logits.shape[-1] - 1))
            watch.show(labels_encoder=semantic, labels_decoder=by_masks)
        if watch.on_tensor is not None:
            self._show_whole(volume, folded, constant, watch)
        logits = torch.stack(all_logits)
        watch.show(logits=logits)
        return CompactOutput(logits.permute(0, 4, 2, 1, 3), torch.stack(all_labels).transpose(1, 2))

    def _slabs(self, volume: Tensor, folded: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (X, Y, Z, classes) and mask logits (K, X, Y, Z) of a volume (96, Z, Y, X)."""
        logits, masks = [], []
        for part in volume.split(max(1, _SLAB_VOXELS // volume[0, :, :, 0].numel()), dim=3):
            feature = self.final_conv(part[None])[0].permute(3, 2, 1, 0)
            logits.append(self.occ_predictor(feature))
            # (X, Y, Z, K)
            scores = self.mask_feature[:2](feature) @ folded.T + constant
            masks.append(scores.permute(3, 0, 1, 2))
        return torch.cat(logits), torch.cat(masks, dim=1)

    def _show_whole(self, volume: Tensor, folded: Tensor, constant: Tensor, watch: Watch) -> None:
        """What nobody needs but somebody wants to see: the whole feature, and the masks of all queries."""
        watch.show(encoded=self.final_conv(volume).permute(0, 1, 4, 3, 2))
        watch.show(mask_logits=self._slabs(volume[0], folded[0], constant[0])[1])


def compact_grid(grid: VoxelGrid) -> VoxelGrid:
    """The grid that the transformers work on. Raises UserError where the full one does not come out even."""
    (x, y, z), (dx, dy, dz) = grid.shape, grid.cell_size
    if x % SHRINKING or y % SHRINKING:
        raise UserError(f"COTR needs multiples of {SHRINKING} cells along x and y, not {x} x {y}")
    shape = (x // SHRINKING, y // SHRINKING, z)
    return VoxelGrid(grid.minimum, (SHRINKING * dx, SHRINKING * dy, dz), shape, grid.frame)


def _doubling(inputs: int, outputs: int) -> nn.Sequential:
    """Transposed convolutions in each layer of the volume: one that smooths, one to twice the size."""
    return nn.Sequential(
        nn.ConvTranspose3d(inputs, outputs, (1, 3, 3), 1, (0, 1, 1)),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
        nn.ConvTranspose3d(outputs, outputs, (1, 2, 2), (1, 2, 2)),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )
