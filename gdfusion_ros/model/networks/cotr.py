"""COTR and COTR-GF (cotr-spec.md): a compact encoder with deformable attention, and masks beside voxel labels.

COTR as published places the lifted volume of the last frame beside that of this one. COTR-GF is BEVDetOcc-GF up to
and including the scene fusion, and COTR from there on: the recurrent state stands for the second volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gdfusion_ros.errors import UserError
from gdfusion_ros.model.blocks.backbone import ImageEncoder, ImageFeatures
from gdfusion_ros.model.blocks.cameras import CameraRig, EgoMotion, depth_values
from gdfusion_ros.model.blocks.compact import Compact, CompactHead, CompactNeck
from gdfusion_ros.model.blocks.depth import DepthNet, DepthNetConfig
from gdfusion_ros.model.blocks.encoders import EncoderConfig, VoxelStages
from gdfusion_ros.model.blocks.layers import VoxelResidual
from gdfusion_ros.model.blocks.lifting import lift
from gdfusion_ros.model.blocks.stereo import cost_volume
from gdfusion_ros.model.config import ModelConfig
from gdfusion_ros.model.fusion.temporal import layers_first
from gdfusion_ros.model.network import NetworkInput, NetworkOutput
from gdfusion_ros.model.networks.bevdetocc import BEVDetOcc
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch

HEAD_NAMES = {
    "head.": "pts_bbox_head.",
    "head.encoder.": "pts_bbox_head.transformer.",
    "head.encoder.layer.": "pts_bbox_head.transformer.encoder.layers.0.",
    **{
        f"head.encoder.{axis}_embed.": f"pts_bbox_head.positional_encoding.{axis}_embed."
        for axis in ("row", "col", "tub")
    },
    "head.decoder.query_embedding.": "pts_bbox_head.query_embedding.",
    "head.decoder.reference_points.": "pts_bbox_head.reference_points.",
    "head.decoder.layer.": "pts_bbox_head.transformer_decoder.layers.0.",
    "head.decoder.layer.cross.": "pts_bbox_head.transformer_decoder.layers.0.attentions.0.",
    "head.decoder.layer.own.": "pts_bbox_head.transformer_decoder.layers.0.attentions.1.attn.",
    "head.decoder.layer.own.in_proj.": "pts_bbox_head.transformer_decoder.layers.0.attentions.1.attn.in_proj_",
    "head.decoder.class_embed.": "pts_bbox_head.predictor.class_embed.",
    "head.decoder.mask_embed.": "pts_bbox_head.predictor.mask_embed.layers.",
    "head.mask_feature.": "pts_bbox_head.predictor.decoder.",
}
"""Our names of the heads' entries -> the published ones, by prefix."""

_FEATURES = "image_features"
_QUARTER = "image_quarter"
_COST = "cost_volume"


@dataclass(frozen=True)
class CotrArchitecture:
    """Settings of this family."""

    voxel_channels: int = 32
    depth_net: DepthNetConfig = DepthNetConfig()
    encoder: EncoderConfig = EncoderConfig(
        blocks=(1, 2, 4), channels=(32, 64, 128), strides=(1, 2, 2), outputs=32
    )
    corrected: bool = False
    """Each cell of the compact grid looks around itself, instead of, as published, where another cell lies. Weights
    are for one or the other."""


class Cotr(nn.Module):
    """COTR as published: this frame's volume and the last one's, both placed in this frame's grid."""

    Architecture = CotrArchitecture
    PUBLISHED = {
        "depth_net.": "img_view_transformer.depth_net.",
        "depth_net.cost_volume_net.": "img_view_transformer.depth_net.cost_volumn_net.",
        "refine.": "pre_process_net.layers.0.0.",
        **HEAD_NAMES,
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.temporal.history != "previous":
            raise UserError(
                f"{config.name}: COTR takes history: previous; the recurrent form is the family cotr_gf"
            )
        a: CotrArchitecture = config.architecture
        self.grid = config.grid.features
        self.image_size = config.image.network_size
        self.register_buffer("depths", depth_values(config.depth_bins), persistent=False)
        self.image_encoder = ImageEncoder()
        self.depth_net = DepthNet(
            a.depth_net, 256, config.depth_bins.count, a.voxel_channels, config.temporal
        )
        self.refine = VoxelResidual(a.voxel_channels, a.voxel_channels, project=True)
        self.encoder = VoxelStages(2 * a.voxel_channels, a.encoder)
        self.neck = CompactNeck(a.encoder)
        self.head = _head(config)

    depths: Tensor

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, classes, Y, X, Z), labels, and what the next frame needs of this one.

        ``state`` is None at a sequence's start.
        """
        watch = watch or Watch()
        rig, motion = frame.rig, frame.motion
        with watch.stage("image_encoder"):
            images = self.image_encoder(frame.images)
        with watch.stage("cost_volume"):
            reference = images.quarter if state is None else state.tensors[_QUARTER]
            cost = self._cost(images.quarter, reference, rig, motion)
        # A scene's first frame is its own predecessor.
        which = ("", "_previous") if state is None else ("",)
        voxels, depth = self._volume(images.features, cost, rig, rig, watch, which)
        before = voxels if state is None else self._previous(images, state, rig, motion, watch)
        both = torch.cat([before, voxels], dim=1)
        watch.show(voxel_concat=both)
        del before, voxels

        with watch.stage("encoder"):
            compact = self.neck(self.encoder(both))
        del both
        output = _head_output(self.head, compact, images.features, frame, self.image_size, depth, watch)
        carried = {_FEATURES: images.features, _QUARTER: images.quarter, _COST: cost}
        frames = 1 if state is None else state.frames + 1
        return output, TemporalState(frames, {name: x.detach() for name, x in carried.items()})

    def _cost(self, current: Tensor, reference: Tensor, rig: CameraRig, motion: EgoMotion) -> Tensor:
        return cost_volume(current, reference, self.depths, rig, motion, self.image_size)

    def _volume(
        self,
        features: Tensor,
        cost: Tensor,
        rig: CameraRig,
        placed: CameraRig,
        watch: Watch,
        which: tuple[str, ...],
    ) -> tuple[Tensor, Tensor]:
        """The lifted and refined volume (B, C, Z, Y, X) of one exposure, and its depth distribution.

        ``placed``: where the cameras stood at that exposure, in this frame's grid; ``which``: what is put behind the
        names of the tensors that are shown.
        """
        batch = rig.intrinsics.shape[:2]
        with watch.stage("depth_net"):
            # Oddity (cotr-spec.md 12.6): also the last frame's depth is told where the cameras stand now.
            depth = self.depth_net(features, rig, cost)
        with watch.stage("lifting"):
            context, weights = depth.context.unflatten(0, batch), depth.surface.unflatten(0, batch)
            lifted = layers_first(
                lift(context, weights, self.depths, placed, self.grid, self.image_size, trilinear=False)
            )
        with watch.stage("refine"):
            voxels = self.refine(lifted)
        shown = {
            "image_features": features,
            "cost_volume": cost,
            "depth": depth.probabilities,
            "context": depth.context,
            "lifted": lifted,
            "voxel_before_fusion": voxels,
        }
        watch.show(**{name + end: tensor for end in which for name, tensor in shown.items()})
        return voxels, depth.probabilities

    @torch.no_grad()
    def _previous(
        self, images: ImageFeatures, state: TemporalState, rig: CameraRig, motion: EgoMotion, watch: Watch
    ) -> Tensor:
        """The last exposure's volume in this frame's grid. Carries no gradient, as in the reference."""
        back = torch.inverse(motion.previous_camera_from_camera.double())
        cost = state.tensors[_COST]
        if state.frames == 1:
            # Oddity (cotr-spec.md 1): what lies before a scene is replaced by the current frame, so the scene's
            # first image is matched with its successor.
            with watch.stage("cost_volume"):
                reversed_motion = EgoMotion(motion.previous_from_current, back.float())
                cost = self._cost(state.tensors[_QUARTER], images.quarter, rig, reversed_motion)
        rotation = rig.rotation.double() @ back[..., :3, :3]
        moved = (rig.rotation.double() @ back[..., :3, 3:])[..., 0] + rig.translation.double()
        placed = replace(rig, rotation=rotation.float(), translation=moved.float())
        return self._volume(state.tensors[_FEATURES], cost, rig, placed, watch, ("_previous",))[0]


class CotrGF(BEVDetOcc):
    """BEVDetOcc-GF's trunk with its four cues, then COTR's encoder and heads."""

    Architecture = CotrArchitecture  # type: ignore[assignment]
    PUBLISHED = HEAD_NAMES

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.temporal.history == "previous":
            raise UserError(f"{config.name}: history: previous is the published form, the family cotr")
        a: CotrArchitecture = config.architecture  # type: ignore[assignment]
        self.neck = CompactNeck(a.encoder)  # type: ignore[assignment]
        self.head = _head(config)  # type: ignore[assignment]

    head: CompactHead  # type: ignore[assignment]

    def forward(
        self, frame: NetworkInput, state: TemporalState | None, watch: Watch | None = None
    ) -> tuple[NetworkOutput, TemporalState]:
        """Logits (B, classes, Y, X, Z), labels, and the state for the next frame.

        ``state`` is None at a sequence's start.
        """
        watch = watch or Watch()
        trunk = self.fused_voxels(frame, state, watch)
        with watch.stage("encoder"):
            compact = self.neck(self.encoder(layers_first(trunk.fused.voxels)))
        head: CompactHead = self.head  # type: ignore[assignment]
        output = _head_output(head, compact, trunk.features, frame, self.image_size, trunk.depth, watch)
        fused = trunk.fused
        return replace(output, offsets=fused.offsets, offsets_inside=fused.inside), trunk.state


def joined_entries(trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """COTR-GF's weights from those of BEVDetOcc-GF (trunk, cues, encoder) and of COTR (heads), published names.

    BEVDetOcc's 3D encoder sees its axes as y, x, z and COTR's as z, y, x, so the kernels are turned; COTR's own
    encoder expects two volumes and does not fit.
    """
    joined = {name: tensor for name, tensor in trunk.items() if not name.startswith("occupancy_head.")}
    for name, tensor in joined.items():
        if name.startswith("img_bev_encoder_") and tensor.dim() == 5:
            joined[name] = tensor.permute(0, 1, 4, 2, 3).contiguous()
    return joined | {name: tensor for name, tensor in heads.items() if name.startswith("pts_bbox_head.")}


def _head(config: ModelConfig) -> CompactHead:
    a: CotrArchitecture = config.architecture
    classes = len(config.labels.labels.labels)
    return CompactHead(config.grid.features, a.encoder, len(config.cameras), classes, a.corrected)


def _head_output(
    head: CompactHead,
    compact: Compact,
    features: Tensor,
    frame: NetworkInput,
    image_size: tuple[int, int],
    depth: Tensor,
    watch: Watch,
) -> NetworkOutput:
    watch.show(
        pyramid0=compact.fine, pyramid1=compact.middle, pyramid2=compact.coarse, compact=compact.merged
    )
    views = features.unflatten(0, frame.images.shape[:2])
    logits, labels = head(compact, views, frame.rig, image_size, watch)
    return NetworkOutput(logits, labels=labels, depth=depth)
