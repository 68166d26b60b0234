"""Write the convolutional blocks of a network as ONNX files, for TensorRT and other runtimes.

A block has tensors only as inputs and outputs: the image encoder, parts of the depth net, the voxel encoder, the neck
and the head. What lies between them (cost volume, lifting, temporal fusion) is no graph of standard operators;
blocks.json, written beside the files, says which block takes and gives what shapes. `--verify` runs every file with
ONNX Runtime on the inputs that two frames of the made-up world give, and compares with torch.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from gdfusion_ros.cli.arguments import add_model_arguments, load
from gdfusion_ros.errors import UserError

AGREEMENT = 1e-4
"""Of an output's largest value: what ONNX Runtime may differ from torch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add_model_arguments(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("onnx"), metavar="FOLDER", help="where to (default: onnx)"
    )
    parser.add_argument("--block", action="append", help="only this block; may be given again (default: all)")
    parser.add_argument(
        "--verify", action="store_true", help="compare each file, run by ONNX Runtime, with torch"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> int:
    """Export; 1 when a file does not agree with torch."""
    import numpy as np
    import torch

    from gdfusion_ros.model.compiled import blocks_of, export_onnx, flatten, onnx_session
    from gdfusion_ros.sources.world import WorldSource

    model = load(args)
    image = model.config.image
    with torch.inference_mode():
        calls = model.record_blocks(list(WorldSource(0, 2, image_size=(image.height, image.width))))
    chosen = args.block or list(calls)
    for name in chosen:
        if name not in calls:
            raise UserError(f"{model.name} has no block {name!r}; there are {', '.join(calls)}")
    args.out.mkdir(parents=True, exist_ok=True)
    # The exporter warns about operators of packages that are not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    report = []
    for name in chosen:
        block = blocks_of(model.network)[name]
        with torch.inference_mode():
            flat, _ = flatten(block, calls[name][0])
            outputs = flat(*calls[name][-1].tensors)
        path = args.out / f"{model.name}.{name}.onnx"
        export_onnx(flat, calls[name][0].tensors, path)
        entry = {
            "block": name,
            "file": path.name,
            "inputs": [list(tensor.shape) for tensor in calls[name][0].tensors],
            "outputs": [list(tensor.shape) for tensor in outputs],
        }
        if args.verify:
            found = onnx_session(path)([tensor.numpy() for tensor in calls[name][-1].tensors])
            scales = [float(tensor.abs().max()) or 1.0 for tensor in outputs]
            entry["error"] = max(
                float(np.abs(a - b.numpy()).max()) / s for a, b, s in zip(found, outputs, scales)
            )
        error = f", off by {entry['error']:.1e} of the largest value" if args.verify else ""
        print(f"{path}{error}")
        report.append(entry)
    (args.out / "blocks.json").write_text(
        json.dumps({"model": model.name, "blocks": report}, indent=1), encoding="utf-8"
    )
    agrees = all(entry.get("error", 0.0) <= AGREEMENT for entry in report)
    if not agrees:
        print("DOES NOT AGREE")
    if args.json:
        print(json.dumps({"model": model.name, "weights": model.weights, "agrees": agrees, "blocks": report}))
    return 0 if agrees else 1
