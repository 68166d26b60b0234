"""``gdfusion``: one entry point, one file a command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gdfusion_ros.errors import UserError

COMMANDS = {
    "demo": "replay a scene through the node over DDS and show what it publishes",
    "run": "run recordings through a network offline, without ROS",
    "replay": "publish a recording over DDS, as `ros2 bag play` would",
    "evaluate": "score a network against ground truth or LiDAR",
    "view": "look at grids: page in the browser, PNG, HTML, Rerun",
    "doctor": "look at an installation and at a live graph, and say what is wrong",
    "nuscenes-to-bag": "write scenes of nuScenes as recordings",
    "bench": "measure speed and memory",
    "export": "write a network's blocks as ONNX files",
    "parity": "compare a network with stored reference numbers",
    "train": "train a network by a recipe",
    "weights": "fetch, convert, check and describe weights",
}
"""Command -> one line of help. The module ``gdfusion_ros.cli.<command>`` (``-`` becomes ``_``) has
``add_arguments(parser)`` and ``run(args) -> int``; it is imported only when its command is called."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        return _help_or_error(name)
    # With threads of its own, the OpenBLAS in numpy's wheels keeps every core busy for 0.1 s after a single product or
    # inverse, here and in the processes that draw the world. Nothing that numpy computes here is worth that.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    module = import_module(f"gdfusion_ros.cli.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        f"gdfusion {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say more about what is done")
    module.add_arguments(parser)
    args = parser.parse_args(arguments[1:])
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        return int(module.run(args))
    except UserError as error:
        print(f"gdfusion {name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"gdfusion {name}: interrupted", file=sys.stderr)
        return 130


def _help_or_error(name: str) -> int:
    lines = ["usage: gdfusion COMMAND [options]", ""]
    lines += [f"  {command:<18} {text}" for command, text in COMMANDS.items()]
    lines += ["", "`gdfusion COMMAND --help` explains a command."]
    if name in ("-h", "--help"):
        print("\n".join(lines))
        return 0
    problem = f"there is no command {name!r}" if name else "a command is missing"
    print(f"gdfusion: error: {problem}\n" + "\n".join(lines), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
