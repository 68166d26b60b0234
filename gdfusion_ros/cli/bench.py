"""Measure what a network costs on this machine.

`gdfusion bench memory` runs networks that stack their history beside those that carry it on, each in a process of its
own, and compares peak and state. `gdfusion bench` (or `bench speed`) runs ways of computing one network side by side
in one process, frame by frame in turn, over frames of the made-up world: the plain network in float32 with default
settings first, which all others are compared with, then every combination of the precisions, backends and thread
numbers asked for. It measures the machine's peak itself: the fastest 3x3 convolution that torch has, in float32 and,
where the processor has it, in bfloat16.

Ratios are of processor time, which other programs on the machine stretch less than the clock. Compare ratios made in
one run on one machine, nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gdfusion_ros.cli.arguments import add_model_arguments
from gdfusion_ros.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "what", nargs="?", choices=["speed", "memory"], default="speed", help="what to measure"
    )
    add_model_arguments(parser)
    parser.set_defaults(weights="random:0")
    parser.add_argument(
        "--precisions", default="fp32", help="of fp32, bf16, int8, comma-separated (default fp32)"
    )
    parser.add_argument(
        "--backends", default="torch", help="of torch, openvino, onnxruntime, comma-separated"
    )
    parser.add_argument("--threads", default="1", help="numbers of threads, comma-separated (default 1)")
    parser.add_argument(
        "--frames", type=int, help="frames: 4 for speed by default, of which two do not count; 40 for memory"
    )
    parser.add_argument(
        "--pairs", metavar="MODEL,...", help="memory: only these recurrent networks and their twins"
    )
    parser.add_argument(
        "--no-plain", action="store_true", help="leave the plain network out, and all comparisons"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out peak_mb, which takes a process for each row"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the stages of every row")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, and 0."""
    if args.what == "memory":
        return _memory(args)
    args.frames = args.frames or 4
    from gdfusion_ros.cli.speed import draw, measure, plan

    ways = plan(args)
    result = measure(args, ways)
    _print(result)
    if args.plot is not None:
        draw(result, args.plot)
    if args.json:
        print(json.dumps(result))
    return 0


def _memory(args: argparse.Namespace) -> int:
    from gdfusion_ros.cli import memory

    chosen = tuple(pair for pair in memory.PAIRS if args.pairs is None or pair[1] in args.pairs.split(","))
    if not chosen:
        names = ", ".join(recurrent for _, recurrent in memory.PAIRS)
        raise UserError(f"--pairs {args.pairs}: there are {names}")
    result = memory.measure(chosen, args.frames or 40)
    print("\n".join(memory.table(result)))
    if args.plot is not None:
        memory.draw(result, args.plot)
    if args.json:
        print(json.dumps(result))
    return 0


def _print(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(
        f"{result['model']}: {result['gflop']:.0f} GFLOP a frame; {machine['processor']}, {machine['cores']} cores"
    )
    print(
        "peak of one core, GFLOP/s: " + ", ".join(f"{k} {v:.0f}" for k, v in machine["peak_gflops"].items())
    )
    columns = (
        *("precision", "backend", "kernels", "threads", "latency_ms", "latency_p95_ms", "cpu_ms", "peak_mb"),
        *("ratio_to_plain", "label_agreement", "miou", "fraction_of_peak"),
    )
    table = [[*columns], *([_text(row[column]) for column in columns] for row in result["rows"])]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 0.99 else f"{value:.4g}"
    return str(value)
