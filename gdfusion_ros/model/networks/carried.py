"""How the families pack what they carry from frame to frame into the one TemporalState."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion
from gdfusion_ros.model.blocks.depth import DepthOutput
from gdfusion_ros.model.fusion.geometry import GeometryFusion, GeometryState
from gdfusion_ros.model.state import TemporalState

_GEOMETRY = ("geometry", "geometry_image_rotation", "geometry_image_translation")
_QUARTER = "image_quarter"


def fuse_geometry(
    fusion: GeometryFusion | None,
    depth: DepthOutput,
    state: TemporalState | None,
    rig: CameraRig,
    motion: EgoMotion,
    measured: Tensor | None = None,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The lifting weights (B * N, D, h, w) and the geometry cue's part of the state; the single frame's without it."""
    if fusion is None or depth.geometry_logits is None:
        return depth.surface, {}
    before = None if state is None else GeometryState(*(state.tensors[name] for name in _GEOMETRY))
    geometry, after = fusion(depth.geometry_logits, depth.surface, before, rig, motion, measured)
    return geometry, dict(zip(_GEOMETRY, after))


def previous_quarter(current: Tensor, state: TemporalState | None) -> Tensor:
    """The previous frame's first-stage features; at a sequence's start the frame is its own predecessor.

    The reference recomputes them from the previous image (spec 12.15); keeping them is exact.
    """
    return current if state is None else state.tensors[_QUARTER]


def next_state(
    state: TemporalState | None,
    voxel: Mapping[str, Tensor],
    geometry: Mapping[str, Tensor],
    quarter: Tensor | None,
) -> TemporalState:
    """The state after a frame, from the parts that each cue hands on."""
    tensors = {**voxel, **geometry}
    if quarter is not None:
        tensors[_QUARTER] = quarter.detach()
    return TemporalState(1 if state is None else state.frames + 1, tensors)
