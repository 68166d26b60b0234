"""Weights: published names, strict loading, conversion from the published checkpoints, and made-up ones."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gdfusion_ros.errors import UserError
from gdfusion_ros.model.blocks.backbone import Bottleneck
from gdfusion_ros.model.blocks.layers import ImageResidual, VoxelResidual
from gdfusion_ros.model.config import ModelConfig, TemporalConfig

log = logging.getLogger(__name__)

PUBLISHED = {
    "image_encoder.backbone.": "img_backbone.",
    "image_encoder.neck.lateral.0.": "img_neck.lateral_convs.0.conv.",
    "image_encoder.neck.lateral.1.": "img_neck.lateral_convs.1.conv.",
    "image_encoder.neck.smooth.": "img_neck.fpn_convs.0.conv.",
    "placement.": "view_transformer.",
    "depth_net.cost_volume_net.": "depth_net.cost_volumn_net.",
    "depth_net.geometry_head.": "depth_net.depth_head2.",
    "depth_net.neighbour_weights.": "depth_net.depth2occ_inter_weight_net.",
    "depth_net.neighbour_offsets.": "depth_net.depth2occ_inter_bias_net.",
    "geometry_fusion.history_gate.": "depth_net.depth_his_fusion_post_layer.gate_net.",
    "geometry_fusion.output_gate.": "depth_net.gate_net.",
    "refine.": "pre_process.layers.0.0.",
    "temporal.motion.offset.": "his_stream_offset_net.history_stream_offset_net.",
    "temporal.voxel.time_embedding.": "time_emb_net.",
    "temporal.voxel.each.": "history_keyframe_time_conv.",
    "temporal.voxel.merge.": "history_keyframe_cat_conv.",
    "temporal.each.": "history_keyframe_time_conv.",
    "temporal.merge.": "history_keyframe_cat_conv.",
    "temporal.scene.weight": "scene_his_func_after_vox_his.scene_his_learnable_weight",
    "temporal.scene.bias": "scene_his_func_after_vox_his.scene_his_learnable_bias",
    "temporal.scene.scale": "scene_his_func_after_vox_his.scene_his_norm_weight",
    "temporal.scene.shift": "scene_his_func_after_vox_his.scene_his_norm_bias",
    "temporal.scene.query.": "scene_his_func_after_vox_his.scene_his_q.",
    "temporal.scene.key.": "scene_his_func_after_vox_his.scene_his_k.",
    "temporal.scene.value.": "scene_his_func_after_vox_his.scene_his_v.",
    "encoder.": "img_bev_encoder_backbone.",
    "neck.": "img_bev_encoder_neck.",
    "head.classifier.": "occupancy_head.predicter.",
    "head.": "occupancy_head.",
}
"""Our names -> those of the published checkpoints, by prefix; the longest that fits counts. Other names are equal.
A family whose checkpoints name things differently adds to these with its own ``PUBLISHED``."""

_CUES = ("temporal.", "geometry_fusion.", "geometry_head.", "depth_net.geometry_head.")
"""Our names of what the temporal cues add to a network begin so."""
_LISTED = 4
"""How many names an error message lists."""


def published_name(name: str, network: nn.Module) -> str:
    """The published name of one of a network's state-dict entries."""
    prefixes = {**PUBLISHED, **getattr(network, "PUBLISHED", {})}
    for length in range(len(name), 0, -1):
        if name[:length] in prefixes:
            return prefixes[name[:length]] + name[length:]
    return name


def published_entries(network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict under the published names."""
    return {published_name(name, network): tensor for name, tensor in network.state_dict().items()}


def load_entries(
    network: nn.Module, entries: Mapping[str, Tensor], where: str, temporal: TemporalConfig
) -> None:
    """Fill a network from entries under published names, strictly.

    Raises UserError that names the entries which are missing, not expected, of another shape or not finite. Entries
    of temporal cues that the configuration switches off may be there; they are not used. Where the cues come in
    through gains, the weights of the network without cues will do, with a warning: the cues stay as they begin.
    """
    entries = _completed(network, entries, where, temporal)
    expected = published_entries(network)
    unused = _prefixes_of_absent_cues(temporal)
    missing = [name for name in expected if name not in entries]
    extra = [name for name in entries if name not in expected and not name.startswith(unused)]
    misshapen = [
        f"{name} {list(entries[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in entries and entries[name].shape != tensor.shape
    ]
    damaged = [
        name
        for name in expected
        if name in entries and entries[name].is_floating_point() and not entries[name].isfinite().all()
    ]
    problems = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("entries missing", missing),
            ("entries not expected", extra),
            ("entries of a wrong shape", misshapen),
            ("entries that are not finite", damaged),
        )
        if names
    ]
    if problems:
        raise UserError(f"{where} does not fit the network: {'; '.join(problems)}")
    state = {name: entries[published_name(name, network)] for name in network.state_dict()}
    _check_constants(network, state, where)
    network.load_state_dict(state, strict=True)


def _completed(
    network: nn.Module, entries: Mapping[str, Tensor], where: str, temporal: TemporalConfig
) -> Mapping[str, Tensor]:
    """Entries of a network without cues, and the network's own cues at their beginning; or the entries as they are."""
    cues = {published_name(name, network) for name in network.state_dict() if name.startswith(_CUES)}
    if not temporal.gains or cues & entries.keys():
        return entries
    log.warning("%s has no temporal cues: they are untrained, and change nothing as long as they are", where)
    own = published_entries(network)
    return {**{name: own[name] for name in cues}, **entries}


def _check_constants(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """The entries that hold no learned numbers: the grid, and modules that stand under two names."""
    for name, own in network.state_dict().items():
        if name.startswith("placement.") and not torch.allclose(own.float(), state[name].float(), atol=1e-3):
            raise UserError(
                f"{where} was made for another grid: {published_name(name, network)} is {state[name].tolist()}, "
                f"the model's is {own.tolist()}"
            )
    seen: dict[int, str] = {}
    for name, parameter in network.state_dict(keep_vars=True).items():
        twin = seen.setdefault(id(parameter), name)
        if twin != name and not torch.equal(state[twin], state[name]):
            names = f"{published_name(twin, network)} and {published_name(name, network)}"
            raise UserError(f"{where}: {names} must be equal; they are not")


def _prefixes_of_absent_cues(temporal: TemporalConfig) -> tuple[str, ...]:
    if not temporal.recurrent:
        return ()
    parts = {
        "temporal.voxel.": temporal.voxel,
        "temporal.motion.": temporal.motion,
        "temporal.scene.": temporal.scene,
        "geometry_fusion.": temporal.geometry,
        "depth_net.geometry_head.": temporal.geometry,
    }
    absent = tuple(part for part, present in parts.items() if not present)
    if not absent:
        return ()
    # An entry of a cue has a published name, or its own where nothing was ever published.
    return (*absent, *(published for own, published in PUBLISHED.items() if own.startswith(absent)))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def fill_weights(network: nn.Module, config: ModelConfig, weights: str | Path) -> str:
    """Fill a network with what ``weights`` names (see ``load_model``); gives what outputs and reports call it."""
    text = str(weights)
    if text.startswith("random:"):
        seed = text.removeprefix("random:")
        if not seed.isdigit():
            raise UserError(f"weights {text!r}: the seed must be a whole number, as in random:0")
        randomise(network, int(seed))
        return f"random:{int(seed)}"
    path = default_file(config) if text == "default" else Path(text)
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    load_entries(network, read_entries(path), str(path), config.temporal)
    digest = sha256(path)
    if text == "default":
        _check_origin(path, digest, config)
    return f"{path.name} sha256:{digest[:16]}"


def _check_origin(path: Path, digest: str, config: ModelConfig) -> None:
    """A model's own file is the one its YAML means: itself where it is shipped, what it was converted from else."""
    weights = config.weights
    if weights is None or not weights.sha256:
        return
    origin = read_safetensors(path)[1].get("source_sha256", "") if weights.checkpoint else digest
    if origin != weights.sha256:
        what = f"{path} was converted from a file" if weights.checkpoint else str(path)
        raise UserError(
            f"{what} with the sha256 {origin or 'unknown'}, {config.name} expects {weights.sha256}: "
            "it is damaged or another version; fetch or install it again, or name the file itself as weights"
        )


def default_file(config: ModelConfig) -> Path:
    """The file with the weights that the model's YAML names. Raises UserError when it is not there."""
    if config.weights is None:
        raise UserError(
            f"{config.name} has no trained weights of its own; give a file, or random:0 for made-up ones"
        )
    places = weights_dirs()
    for place in places:
        if (place / config.weights.file).is_file():
            return place / config.weights.file
    how = f"`gdfusion weights fetch {config.name}`" if config.weights.checkpoint else "give a file"
    raise UserError(
        f"the weights {config.weights.file} of {config.name} are not in {' or '.join(map(str, places))}: {how}, "
        "or take random:0 for made-up ones"
    )


def weights_dirs() -> list[Path]:
    """Where weights are looked for: those that came with the package, then those that were fetched."""
    from gdfusion_ros.share import share_dir

    cache = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache")
    return [share_dir() / "weights", cache / "gdfusion_ros"]


def read_entries(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a published checkpoint. Raises UserError when it is neither."""
    return read_checkpoint(path) if path.suffix in (".pth", ".pt") else read_safetensors(path)[0]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises UserError when it is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; it is damaged or not a safetensors file") from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a published checkpoint (mmcv form). Code inside the file is refused, never run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A hostile file may raise anything; whatever it is, the file is no good.
        raise UserError(
            f"{path} is refused: it is damaged, or holds more than tensors ({_first_line(error)})"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict: a mapping of names to tensors was expected")
    entries = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    # What very old checkpoints call the offsets of deformable convolutions.
    return {name.replace(".conv2_offset.", ".conv2.conv_offset."): tensor for name, tensor in entries.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_weights(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network's weights under the published names, with metadata, as safetensors."""
    entries = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in published_entries(network).items()
    }
    temporary = path.with_name(path.name + ".part")
    # Not save_file, which makes files that only their owner can read.
    temporary.write_bytes(save(entries, dict(metadata)))
    temporary.replace(path)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def randomise(network: nn.Module, seed: int) -> None:
    """Fill a network with numbers from a seed, scaled so that activations keep their size from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.05, generator=generator)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(generator=generator)
            elif isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)):
                module.reset_parameters()
        for name, parameter in network.named_parameters():
            if parameter.dim() == 3:
                parameter.normal_(0.0, 0.02, generator=generator) if name.endswith("weight") else None
        for module in network.modules():
            # The branch of a residual block starts small, so that a deep stack does not grow.
            if isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.3)
            elif isinstance(module, ImageResidual):
                module.bn2.weight.fill_(0.3)
            elif isinstance(module, VoxelResidual) and module.conv2.bn is not None:
                module.conv2.bn.weight.fill_(0.3)
