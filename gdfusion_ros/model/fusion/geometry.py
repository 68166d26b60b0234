"""The geometry cue (spec 4.1): what earlier frames say about the depth of each pixel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gdfusion_ros.kernels import geometry as kernel
from gdfusion_ros.kernels import library
from gdfusion_ros.model.blocks.cameras import (
    NEAREST_VISIBLE,
    CameraRig,
    EgoMotion,
    normalised,
    pixel_grid,
    projection_steps,
    seen_from_previous,
    to_image,
)
from gdfusion_ros.model.blocks.layers import gate
from gdfusion_ros.model.fusion.beginning import begin_halfway


class GeometryState(NamedTuple):
    """What the geometry cue carries on."""

    logits: Tensor
    """(B, N, D, h, w) fused depth logits."""
    image_rotation: Tensor
    """(B, N, 3, 3) the image transform that the logits were seen through."""
    image_translation: Tensor
    """(B, N, 3)"""


class GeometryFusion(nn.Module):
    """Fuses depth logits with those of the last frame, warped through space, and both with the single frame's."""

    def __init__(self, depths: Tensor, image_size: tuple[int, int], gain: bool = False) -> None:
        super().__init__()
        self.register_buffer("depths", depths, persistent=False)
        self.image_size = image_size
        self.history_gate = gate(len(depths))
        self.output_gate = gate(len(depths))
        self.gain = nn.Parameter(torch.zeros(())) if gain else None
        if gain:
            begin_halfway(self.history_gate)
            begin_halfway(self.output_gate)

    depths: Tensor
    rounds = False
    """Whether the kernel may take the gates' products in bfloat16; set in inference forms of that precision."""

    def forward(
        self,
        logits: Tensor,
        surface: Tensor,
        state: GeometryState | None,
        rig: CameraRig,
        motion: EgoMotion,
        measured: Tensor | None = None,
    ) -> tuple[Tensor, GeometryState]:
        """Depth weights for lifting (B * N, D, h, w) and the new state.

        ``logits`` and ``surface`` (B * N, D, h, w): the depth net's geometry logits and its single-frame weights;
        ``measured`` (B * N, D, h, w): one-hot depth where a LiDAR saw the pixel, zero elsewhere, in networks with
        LiDAR depth.
        """
        if measured is None and library.usable(logits, surface):
            geometry, kept = self._by_kernel(logits, surface, state, rig, motion)
            return geometry, _carried(kept, rig)
        # Oddity (spec 12.11): in the state, measured cells are probabilities among the logits of the others.
        kept = logits if measured is None else _replace(logits, measured)
        fused = logits
        if state is not None:
            warped = self._warp(state, rig, motion, logits.shape[-2:])
            share = self.history_gate(torch.cat([warped, logits], dim=1)).sigmoid()
            # Oddity (spec 12.8): logits, and only where the warped value is not exactly zero, which is also how
            # "outside the previous image" is told.
            seen = warped != 0
            fused = torch.where(seen, share * warped + (1 - share) * logits, logits)
            kept = fused if measured is None else torch.where(seen, share * warped + (1 - share) * kept, kept)
        probabilities = fused.softmax(dim=1)
        share = self.output_gate(torch.cat([probabilities, surface], dim=1)).sigmoid()
        single = surface if measured is None else _replace(surface, measured)
        geometry = share * probabilities + (1 - share) * single
        if self.gain is not None:
            # A gain beyond 0 and 1 leads past one of the two, but a weight is never below nothing.
            geometry = (surface + self.gain * (geometry - surface)).clamp_min(0.0)
        return geometry, _carried(kept, rig)

    def _by_kernel(
        self,
        logits: Tensor,
        surface: Tensor,
        state: GeometryState | None,
        rig: CameraRig,
        motion: EgoMotion,
    ) -> kernel.FusedGeometry:
        pixels = pixel_grid((logits.shape[-2], logits.shape[-1]), self.image_size, logits.device)
        history, rotation, translation = state or GeometryState(
            logits, rig.image_rotation, rig.image_translation
        )
        return kernel.fuse(
            logits,
            surface,
            None if state is None else history.flatten(0, 1),
            projection_steps(rig, motion, self.image_size, rotation, translation),
            pixels[0, :, 0],
            pixels[:, 0, 1],
            self.depths,
            (self.history_gate, self.output_gate),
            1.0 if self.gain is None else float(self.gain),
            self.rounds,
        )

    def _warp(self, state: GeometryState, rig: CameraRig, motion: EgoMotion, size: torch.Size) -> Tensor:
        """The state's logits (B * N, D, h, w) at the points that the current pixels and depth bins stand for."""
        h, w = size
        pixels = pixel_grid((h, w), self.image_size, self.depths.device)
        pixels = pixels.expand(*rig.intrinsics.shape[:2], len(self.depths), h, w, 2)
        uv, z = seen_from_previous(pixels, self.depths[:, None, None].expand(pixels.shape[:-1]), rig, motion)
        where = normalised(to_image(uv, state.image_rotation, state.image_translation), self.image_size)
        depth = (z - self.depths[0]) / (self.depths[-1] - self.depths[0]) * 2 - 1
        grid = torch.cat([where, depth[..., None]], dim=-1)
        grid = torch.where((z < NEAREST_VISIBLE)[..., None], torch.full_like(grid, -2.0), grid).flatten(0, 1)
        return torch.nn.functional.grid_sample(
            state.logits.flatten(0, 1)[:, None],
            grid,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=True,
        )[:, 0]


def _carried(logits: Tensor, rig: CameraRig) -> GeometryState:
    """The state of fused logits (B * N, D, h, w)."""
    seen = logits.detach().unflatten(0, rig.intrinsics.shape[:2])
    return GeometryState(seen, rig.image_rotation, rig.image_translation)


def _replace(values: Tensor, measured: Tensor) -> Tensor:
    """``measured`` where a pixel has any, ``values`` elsewhere; both (B * N, D, h, w)."""
    return torch.where(measured.sum(dim=1, keepdim=True) > 0, measured, values)
