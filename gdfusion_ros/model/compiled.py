"""The convolutional blocks of a network in other runtimes: OpenVINO and ONNX Runtime, and as ONNX files.

A block is a part of a network whose inputs and outputs are tensors only. What lies between blocks stays in torch and
the kernels: lifting, the cost volume, the temporal cues, and with them the state, which keeps float32 whatever the
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gdfusion_ros.errors import UserError

Runtime = Literal["openvino", "onnxruntime"]

BLOCKS = (
    "image_encoder",
    "depth_net.mix",
    "depth_net.reduce_conv",
    "depth_net.cost_volume_net",
    "depth_net.depth_conv",
    "refine",
    "encoder",
    "neck",
    "head.final_conv",
    "classifier",
)
"""Where the families keep their blocks; a network has those that it has."""
PRECISIONS = {"torch": ("fp32", "bf16"), "openvino": ("fp32", "bf16", "int8"), "onnxruntime": ("fp32",)}
"""What each backend computes in."""
_LAYOUTS = {4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}
"""Of images and volumes, by their dimensions: a block's own, and that of the memory around it."""
_PARAMETERS_FEWEST = 1000
"""A smaller block is not worth a call of another runtime."""


class Call(NamedTuple):
    """What a block was called with."""

    tensors: list[Tensor]
    listed: bool
    """Whether it took them as one list, not one by one."""


class Recorded(nn.Module):
    """A block that keeps the inputs of each call, for calibration and as examples."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.calls: list[Call] = []

    def forward(self, *inputs: Tensor | list[Tensor]) -> Any:
        """As the block."""
        tensors = [tensor.detach().clone() for tensor in _flat(inputs)]
        self.calls.append(Call(tensors, isinstance(inputs[0], list)))
        return self.block(*inputs)


class CompiledBlock(nn.Module):
    """A block that another runtime computes."""

    def __init__(
        self, compute: Callable[[list[Tensor]], list[Tensor]], pack: Callable[[list[Tensor]], Any]
    ) -> None:
        super().__init__()
        self.compute, self.pack = compute, pack

    def forward(self, *inputs: Tensor | list[Tensor]) -> Any:
        """As the block that it stands for."""
        return self.pack(self.compute(_flat(inputs)))


class FlatBlock(nn.Module):
    """A block that takes its inputs one by one and gives its outputs as a tuple: what can be traced."""

    def __init__(self, block: nn.Module, listed: bool) -> None:
        super().__init__()
        self.block, self.listed = block, listed

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The block's outputs."""
        result = self.block(list(inputs)) if self.listed else self.block(*inputs)
        return (result,) if isinstance(result, Tensor) else tuple(result)


def _flat(inputs: Iterable[Tensor | list[Tensor]]) -> list[Tensor]:
    return [tensor for entry in inputs for tensor in ([entry] if isinstance(entry, Tensor) else entry)]


def blocks_of(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks that a network has, by name."""
    found = {}
    for name in BLOCKS:
        part: Any = network
        for attribute in name.split("."):
            part = getattr(part, attribute, None)
        if isinstance(part, nn.Module) and sum(p.numel() for p in part.parameters()) >= _PARAMETERS_FEWEST:
            found[name] = part
    return found


def replace(network: nn.Module, name: str, block: nn.Module) -> None:
    """Put a block in the place that ``blocks_of`` names."""
    *parents, last = name.split(".")
    setattr(network.get_submodule(".".join(parents)), last, block)


def record(network: nn.Module, run: Callable[[], None]) -> dict[str, list[Call]]:
    """Every call of every block while ``run`` runs the network."""
    blocks = blocks_of(network)
    recorded = {name: Recorded(block) for name, block in blocks.items()}
    try:
        for name, recorder in recorded.items():
            replace(network, name, recorder)
        run()
    finally:
        for name, block in blocks.items():
            replace(network, name, block)
    return {name: recorder.calls for name, recorder in recorded.items() if recorder.calls}


def compile_blocks(
    network: nn.Module, runtime: Runtime, precision: str, calls: dict[str, list[Call]]
) -> nn.Module:
    """Have the recorded blocks of a network computed by a runtime, in place; gives the network.

    ``precision``: fp32, bf16 or int8; int8 is calibrated on the recorded inputs. Raises UserError when the runtime is
    not installed or does not have the precision.
    """
    if precision not in PRECISIONS[runtime]:
        raise UserError(f"the backend {runtime} has {', '.join(PRECISIONS[runtime])}, not {precision}")
    blocks = blocks_of(network)
    for name, recorded in calls.items():
        flat, pack = flatten(blocks[name], recorded[0])
        prepare = _openvino if runtime == "openvino" else _onnxruntime
        replace(network, name, CompiledBlock(prepare(flat, precision, recorded), pack))
    return network


def flatten(block: nn.Module, call: Call) -> tuple[FlatBlock, Callable[[list[Tensor]], Any]]:
    """A block in a form that can be traced, and what makes the block's own output of its outputs."""
    listed = call.listed
    result = block(call.tensors) if listed else block(*call.tensors)
    if isinstance(result, Tensor):
        return FlatBlock(block, listed), lambda outputs: outputs[0]
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        kind = type(result)
        return FlatBlock(block, listed), lambda outputs: kind(*outputs)
    return FlatBlock(block, listed), list


def export_onnx(block: FlatBlock, inputs: list[Tensor], path: Path) -> None:
    """Write a block as an ONNX file, for inputs of the shapes given. Raises UserError without the onnx package."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX files need {error.name}: pip install 'gdfusion_ros[onnx]'") from error
    names = [f"input_{i}" for i in range(len(inputs))]
    # Copies outside inference mode, whose tensors cannot be traced.
    with torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(
            block.eval(),
            tuple(tensor.clone() for tensor in inputs),
            str(path),
            input_names=names,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def onnx_session(path: Path) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """What computes an ONNX file with ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "the backend onnxruntime is not installed: pip install 'gdfusion_ros[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays)))


def _onnxruntime(
    block: FlatBlock, precision: str, calls: list[Call]
) -> Callable[[list[Tensor]], list[Tensor]]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "block.onnx"
        export_onnx(block, calls[0].tensors, path)
        session = onnx_session(path)

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        arrays = session([tensor.contiguous().numpy() for tensor in tensors])
        return [torch.from_numpy(array) for array in arrays]

    return compute


def _openvino(block: FlatBlock, precision: str, calls: list[Call]) -> Callable[[list[Tensor]], list[Tensor]]:
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            "the backend openvino is not installed: pip install 'gdfusion_ros[openvino]'"
        ) from error
    with torch.inference_mode(False), torch.no_grad():
        example = tuple(tensor.clone() for tensor in calls[0].tensors)
        model = openvino.convert_model(block, example_input=example, input=[tuple(t.shape) for t in example])
    if precision == "int8":
        model = _quantised(model, calls)
    compiled = openvino.Core().compile_model(
        _channels_last(model),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        },
    )
    request = compiled.create_infer_request()
    shapes = [tuple(output.shape) for output in compiled.outputs]

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        # New memory for every frame, which the runtime writes to: some outputs are part of the state.
        outputs = [torch.empty(shape) for shape in shapes]
        for i, output in enumerate(outputs):
            request.set_output_tensor(i, openvino.Tensor(output.numpy(), shared_memory=True))
        request.infer([_rows(tensor).numpy() for tensor in tensors], share_inputs=True)
        return [output.movedim(-1, 1) if output.dim() in _LAYOUTS else output for output in outputs]

    return compute


def _channels_last(model: Any) -> Any:
    """A model whose images and volumes come and go channels last, as they lie in memory around it."""
    from openvino import Layout
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(model)
    for ports, of in ((model.inputs, processor.input), (model.outputs, processor.output)):
        for i, port in enumerate(ports):
            dims = len(port.shape)
            if dims in _LAYOUTS:
                first, last = (Layout(name) for name in _LAYOUTS[dims])
                of(i).model().set_layout(first)
                of(i).tensor().set_layout(last)
    return processor.build()


def _rows(tensor: Tensor) -> Tensor:
    """What is handed to a model of ``_channels_last``; no copy where it already lies so in memory."""
    return (tensor.movedim(1, -1) if tensor.dim() in _LAYOUTS else tensor).contiguous()


def _quantised(model: Any, calls: Iterable[Call]) -> Any:
    try:
        import nncf
    except ImportError as error:
        raise UserError("int8 needs nncf: pip install 'gdfusion_ros[openvino]'") from error
    items = [[tensor.numpy() for tensor in call.tensors] for call in calls]
    return nncf.quantize(
        model, nncf.Dataset(items), subset_size=len(items), preset=nncf.QuantizationPreset.MIXED
    )
