"""The inference form of a network: the same function with fewer passes over memory and cheaper convolutions.

Batch norms are folded into the convolutions before them; residuals and ReLUs are part of the convolution; volumes stay
channels last; the neck mixes channels before it resizes, which commute. The modules that this replaces are the twins
that the result is checked against (test/model/test_inference.py). The result cannot be trained.

``bf16`` rounds what goes into and comes out of every convolution to bfloat16, and sums in float32, as processors with
bfloat16 arithmetic do. Those compute so; elsewhere the rounding is the same and the speed that of float32. 3x3x3
convolutions stay in float32 where Winograd's form of them is faster. The kernels of the geometry and scene cues round
what they multiply as well, where the processor gains by it; that of the voxel cue does not. What the network carries
from frame to frame stays float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from gdfusion_ros.errors import UserError
from gdfusion_ros.kernels import convolution as kernel
from gdfusion_ros.kernels import library
from gdfusion_ros.kernels import neck as neck_kernel
from gdfusion_ros.kernels.buffers import empty
from gdfusion_ros.model.blocks.backbone import Bottleneck, ImageEncoder, ImageFeatures
from gdfusion_ros.model.blocks.encoders import VoxelNeck
from gdfusion_ros.model.blocks.layers import ConvNorm, ImageResidual, VoxelResidual, folded, upsample
from gdfusion_ros.model.blocks.pyramid import BasicVoxelBlock
from gdfusion_ros.model.blocks.small import Flatten, VoxelClassifier, joined
from gdfusion_ros.model.compiled import blocks_of, replace
from gdfusion_ros.model.fusion.geometry import GeometryFusion
from gdfusion_ros.model.fusion.scene import SceneFusion
from gdfusion_ros.model.fusion.stacked import StackedFusion
from gdfusion_ros.model.fusion.temporal import RecurrentFusion

Precision = Literal["fp32", "bf16", "int8"]
Backend = Literal["torch", "openvino", "onnxruntime"]

_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_IMAGES_AT_A_TIME = 3
"""In the image encoder."""
_FEWEST_CHANNELS = 16
"""Of a convolution that is worth a Winograd transform."""
_MOST_IN_VOLUMES = 128 * 128
"""Inputs times outputs of a convolution of volumes that is: transformed weights are eight times as large, and wide
layers have few voxels."""


def inference_form(network: nn.Module, precision: Precision = "fp32") -> nn.Module:
    """The inference form of a network, which stays as it is; what needs no change is shared between both.

    Raises UserError for int8, which only OpenVINO computes here.
    """
    if precision == "int8":
        raise UserError("int8 needs the backend openvino, which torch's own convolutions do not have")
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    with torch.no_grad():
        form = _Conversion(precision).convert(copy.deepcopy(network, shared).eval())
    if precision == "bf16" and has_bfloat16(next(network.parameters()).device):
        for name in blocks_of(network):
            block = form.get_submodule(name)
            if all(part.rounds for part in block.modules() if isinstance(part, FusedConvolution)):
                replace(form, name, InBfloat16(block))
    if isinstance(getattr(network, "image_encoder", None), ImageEncoder):
        form.image_encoder = InGroups(cast(nn.Module, form.image_encoder))
    return form


class FusedConvolution(nn.Module):
    """A convolution with the norm behind it, then a residual and a ReLU where wanted."""

    def __init__(
        self, convolution: nn.Conv2d | nn.Conv3d, norm: nn.Module | None, relu: bool, precision: Precision
    ) -> None:
        super().__init__()
        weight, bias = (tensor.detach() for tensor in folded(convolution, norm))
        self.dims = weight.dim() - 2
        self.relu = relu
        self.winograd = _suits_winograd(convolution)
        exact = self.winograd and self.dims == 3 and _winograd_is_fastest(weight.device)
        self.rounds = precision == "bf16" and not exact
        self.in_bfloat16 = self.rounds and has_bfloat16(weight.device)
        if self.rounds:
            rounded = weight.bfloat16()
            weight, bias = (rounded, bias.bfloat16()) if self.in_bfloat16 else (rounded.float(), bias)
        self.layout = torch.channels_last_3d if self.dims == 3 else torch.channels_last
        self.register_buffer("weight", weight.contiguous(memory_format=self.layout))
        self.register_buffer("bias", bias.clone())
        self.stride, self.padding = convolution.stride, convolution.padding
        self.dilation, self.groups = convolution.dilation, convolution.groups
        self._transformed: dict[str, kernel.WinogradWeights] = {}

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor, residual: Tensor | None = None, in_place: bool = False) -> Tensor:
        """(B, inputs, ...) and a residual (B, outputs, ...) to (B, outputs, ...), channels last in memory.

        ``in_place``: the result may be written over the residual.
        """
        if self.in_bfloat16:
            return self._direct(x.bfloat16(), residual).to(x.dtype)
        if not self.rounds:
            return self._convolve(x, residual, in_place)
        return self._convolve(x.bfloat16().float(), residual, in_place).bfloat16().float()

    def _convolve(self, x: Tensor, residual: Tensor | None, in_place: bool) -> Tensor:
        if self.winograd and library.usable(x):
            name = library.instruction_set()
            if name not in self._transformed:
                # Not as inference tensors, which the module could not be saved or moved with.
                with torch.inference_mode(False), torch.no_grad():
                    self._transformed[name] = kernel.transform(self.weight, self.bias)
            return kernel.convolve(x, self._transformed[name], self.relu, residual, in_place)
        return self._direct(x, residual)

    def _direct(self, x: Tensor, residual: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=self.layout)
        if _has_fused_operator(x):
            return self._in_one_pass(x, residual)
        function = nn.functional.conv3d if self.dims == 3 else nn.functional.conv2d
        y = function(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if residual is not None:
            y += residual
        return y.relu_() if self.relu else y

    def _in_one_pass(self, x: Tensor, residual: Tensor | None) -> Tensor:
        # What torch's compiler makes of a convolution and what follows it. Called for itself it saves the passes over
        # memory, and small convolutions do not take torch's slow path, which they do on one thread.
        operator, relu = torch.ops.mkldnn._convolution_pointwise, "relu" if self.relu else "none"
        shape = (self.padding, self.stride, self.dilation, self.groups)
        if residual is None:
            return cast(Tensor, operator(x, self.weight, self.bias, *shape, relu, [], ""))
        residual = residual.to(x.dtype).contiguous(memory_format=self.layout)
        after: tuple[Any, ...] = ("add", 1.0, "relu" if self.relu else None, [], None)
        return cast(Tensor, operator.binary(x, residual, self.weight, self.bias, *shape, *after))


class InBfloat16(nn.Module):
    """A block of convolutions that gets its inputs in bfloat16 and keeps to that until its outputs."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Tensor | list[Tensor]) -> Any:
        """As the block, from and to float32."""
        return _cast(self.block(*_cast(inputs, torch.bfloat16)), torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    parts = [_cast(part, dtype) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


class InGroups(nn.Module):
    """An image encoder that takes a few images at a time: their maps stay in the cache, and need less memory.

    In bfloat16 so stays the map that stereo matching compares, which is the largest part of the state.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.narrow = isinstance(encoder, InBfloat16)
        self.encoder = encoder.block if isinstance(encoder, InBfloat16) else encoder

    def forward(self, images: Tensor) -> ImageFeatures:
        """As ``ImageEncoder``."""
        images = images.flatten(0, 1)
        given = images.bfloat16() if self.narrow else images
        if not library.usable(images):
            features, quarter = self.encoder(given[None])
            return ImageFeatures(features.to(images.dtype), quarter)
        results: list[Tensor] = []
        for begin in range(0, len(given), _IMAGES_AT_A_TIME):
            maps = self.encoder(given[None, begin : begin + _IMAGES_AT_A_TIME])
            for i, (part, dtype) in enumerate(zip(maps, (images.dtype, given.dtype))):
                if begin == 0:
                    # Channels last, as the parts are.
                    whole = empty(len(given), *part.shape[2:], part.shape[1], dtype=dtype)
                    results.append(whole.movedim(-1, 1))
                results[i][begin : begin + len(part)] = part
        return ImageFeatures(*results)


class FusedResidual(nn.Module):
    """Convolutions one after the other around a shortcut, which the last one adds."""

    def __init__(self, convolutions: Iterable[nn.Module], shortcut: nn.Module | None) -> None:
        super().__init__()
        self.convolutions, self.shortcut = nn.ModuleList(convolutions), shortcut
        parts = () if shortcut is None else shortcut.modules()
        self.projects = any(isinstance(part, FusedConvolution) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        """As the block that it stands for."""
        residual = x if self.shortcut is None else self.shortcut(x)
        *first, last = self.convolutions
        for convolution in first:
            x = convolution(x)
        # What a shortcut's convolution made is nobody else's: the sum may take its place.
        return cast(Tensor, last(x, residual, in_place=self.projects))


class FusedFlatten(nn.Module):
    """``Flatten`` with its weights in the order of the joined parts."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, *parts: Tensor) -> Tensor:
        """As ``Flatten``."""
        return cast(Tensor, self.convolution(joined(*parts)))


class FusedNeck(nn.Module):
    """``VoxelNeck`` with its 1x1x1 convolution before the resizing: both are linear and act on different axes.

    Where there is a kernel it stays in float32: the time goes into memory, not into arithmetic.
    """

    def __init__(self, neck: VoxelNeck, channels: Iterable[int], precision: Precision) -> None:
        super().__init__()
        weight, bias = folded(neck.conv.conv, neck.conv.bn)
        parts = weight.split(list(channels), dim=1)
        self.fits_kernel = len(parts) <= 1 + neck_kernel.COARSER
        if self.fits_kernel and weight.device.type == "cpu" and library.instruction_sets():
            precision = "fp32"
        self.parts = nn.ModuleList()
        for i, part in enumerate(parts):
            outputs, inputs = part.shape[:2]
            convolution = nn.Conv3d(inputs, outputs, 1)
            convolution.weight.copy_(part)
            # The bias once: resizing keeps a constant, and the parts are summed.
            cast(Tensor, convolution.bias).copy_(bias if i == 0 else torch.zeros_like(bias))
            self.parts.append(FusedConvolution(convolution, None, False, precision))
        self._packed: dict[str, neck_kernel.NeckWeights] = {}

    def forward(self, maps: list[Tensor]) -> Tensor:
        """As ``VoxelNeck``."""
        finest, *rest = cast(Iterable[FusedConvolution], self.parts)
        coarser = [part(coarse) for part, coarse in zip(rest, maps[1:])]
        if self.fits_kernel and library.usable(*maps):
            name = library.instruction_set()
            if name not in self._packed:
                with torch.inference_mode(False), torch.no_grad():
                    self._packed[name] = neck_kernel.prepare(finest.weight, finest.bias)
            return neck_kernel.mix(maps[0], self._packed[name], coarser)
        total: Tensor = finest(maps[0])
        for coarse in coarser:
            total += upsample(coarse, total.shape[2:], align_corners=True)
        return total.relu_()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes convolutions in bfloat16 rather than imitating them slowly."""
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type == "meta" or torch.get_autocast_dtype(device.type) is not None


def _has_fused_operator(x: Tensor) -> bool:
    """Whether oneDNN's convolution with what follows it may be called on a tensor, here and now."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and torch.backends.mkldnn.is_available()
    )


def _suits_winograd(convolution: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether a convolution can take Winograd's form, and gains by it."""
    outputs, inputs, *size = convolution.weight.shape
    fits = min(inputs, outputs) >= _FEWEST_CHANNELS and (
        len(size) == 2 or inputs * outputs <= _MOST_IN_VOLUMES
    )
    plain = convolution.padding_mode == "zeros" and convolution.groups == 1
    each = (size, convolution.stride, convolution.padding, convolution.dilation)
    return fits and plain and [set(values) for values in each] == [{3}, {1}, {1}, {1}]


def keeps_kernels(block: nn.Module) -> bool:
    """Whether a block is faster with the kernels than in another runtime, in whatever precision: those compute 3x3x3
    convolutions as they are defined, and resize volumes slowly."""
    volumes = [part for part in block.modules() if type(part) is nn.Conv3d]
    if not volumes or not library.allowed() or not _winograd_is_fastest(volumes[0].weight.device):
        return False
    return isinstance(block, VoxelNeck) or any(_suits_winograd(volume) for volume in volumes)


def _winograd_is_fastest(device: torch.device) -> bool:
    """Whether a 3x3x3 convolution takes less time in float32 by Winograd, with 8 times fewer multiplications, than in
    bfloat16 as it is defined: on every CPU but those that multiply whole matrices at once (AMX)."""
    return (
        device.type == "cpu" and bool(library.instruction_sets()) and not torch.cpu._is_amx_tile_supported()
    )


class _Conversion:
    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.done: dict[int, nn.Module] = {}

    def convert(self, module: nn.Module) -> nn.Module:
        """The inference form of a module; what is shared stays shared."""
        if id(module) not in self.done:
            self.done[id(module)] = self._convert(module)
        return self.done[id(module)]

    def _convert(self, module: nn.Module) -> nn.Module:
        if isinstance(module, (RecurrentFusion, GeometryFusion, StackedFusion)):
            # Two have kernels of their own, the third takes its convolutions apart. The voxel cue stays exact: what it
            # rounds comes back to it with the next frame, and the history drifts away.
            for part in module.modules():
                if isinstance(part, (GeometryFusion, SceneFusion)):
                    part.rounds = self.precision == "bf16"
            return module
        if isinstance(module, Flatten):
            module.conv.weight = nn.Parameter(module.ordered(), requires_grad=False)
            return FusedFlatten(self._fuse(module.conv, module.bn, True))
        if isinstance(module, ConvNorm):
            return self._fuse(module.conv, module.bn, module.relu)
        if isinstance(module, Bottleneck) and isinstance(module.conv2, nn.Conv2d):
            three = [(module.conv1, module.bn1), (module.conv2, module.bn2), (module.conv3, module.bn3)]
            return FusedResidual((self._fuse(*two, True) for two in three), self._shortcut(module.downsample))
        if isinstance(module, (ImageResidual, BasicVoxelBlock)):
            two = [(module.conv1, module.bn1), (module.conv2, module.bn2)]
            return FusedResidual((self._fuse(*one, True) for one in two), self._shortcut(module.downsample))
        if isinstance(module, VoxelResidual):
            parts = (self._fuse(part.conv, part.bn, True) for part in (module.conv1, module.conv2))
            return FusedResidual(parts, self._shortcut(module.downsample))
        if isinstance(module, _CONVOLUTIONS) and type(module) in _CONVOLUTIONS:
            return self._fuse(module, None, False)
        self._convert_children(module)
        return module

    def _convert_children(self, module: nn.Module) -> None:
        children = list(module.named_children())
        for i, (name, child) in enumerate(children):
            following = [part for _, part in children[i + 1 : i + 3]]
            in_sequence = type(module) in (nn.Sequential, VoxelClassifier)
            if (in_sequence or _is_ours(module)) and _is_pair(child, following):
                relu = in_sequence and len(following) > 1 and isinstance(following[1], nn.ReLU)
                setattr(module, name, self._fuse(child, following[0], relu))
                setattr(module, children[i + 1][0], nn.Identity())
                if relu:
                    setattr(module, children[i + 2][0], nn.Identity())
            elif (
                in_sequence
                and type(child) in _CONVOLUTIONS
                and following
                and isinstance(following[0], nn.ReLU)
            ):
                setattr(module, name, self._fuse(child, None, True))
                setattr(module, children[i + 1][0], nn.Identity())
            elif (
                isinstance(child, VoxelNeck)
                and (stages := next((part for _, part in children if hasattr(part, "layers")), None))
                is not None
            ):
                setattr(module, name, FusedNeck(child, _stage_channels(stages), self.precision))
            else:
                setattr(module, name, self.convert(getattr(module, name)))

    def _shortcut(self, module: nn.Module | None) -> nn.Module | None:
        return None if module is None else self.convert(module)

    def _fuse(self, convolution: nn.Module, norm: nn.Module | None, relu: bool) -> nn.Module:
        if type(convolution) not in _CONVOLUTIONS:
            # A deformable convolution stays itself, and only the ones inside it change.
            parts = [self.convert(convolution), norm, nn.ReLU() if relu else None]
            return nn.Sequential(*(part for part in parts if part is not None))
        return FusedConvolution(cast(nn.Conv2d, convolution), norm, relu, self.precision)


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("gdfusion_ros.model.")


def _is_pair(child: nn.Module, following: list[nn.Module]) -> bool:
    """Whether a child is a convolution with its norm registered right behind it, which is how it is called."""
    return (
        type(child) in _CONVOLUTIONS
        and bool(following)
        and isinstance(following[0], _NORMS)
        and following[0].num_features == child.out_channels
    )


def _stage_channels(stages: nn.Module) -> list[int]:
    """Channels of each stage's map, from its last convolution, converted or not."""
    channels = []
    for stage in cast(nn.ModuleList, stages.layers):
        *_, last = (part for part in stage.modules() if isinstance(part, (FusedConvolution, *_CONVOLUTIONS)))
        channels.append(len(last.weight))
    return channels
