"""Look at grids: a page in the browser, or files.

  gdfusion view OUTPUT [INPUT]                  a recorded output, with the images of the recording it was made from
  gdfusion view --source world:3                a source (recording, folder, world:SEED) through a network
  gdfusion view --live                          what a running node publishes (needs ROS)

Serves on http://127.0.0.1:8080 until Ctrl-C. With --png, --html or --rerun it writes files instead and ends.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from gdfusion_ros.cli.arguments import add_model_arguments, load
from gdfusion_ros.cli.datasets import Item, world_items
from gdfusion_ros.cli.inputs import add_rig_arguments, is_world, rig_names, rig_of, source_of, world_seed
from gdfusion_ros.cli.offline import step, stream_of
from gdfusion_ros.errors import UserError
from gdfusion_ros.viewer.colors import COLOR_BY
from gdfusion_ros.viewer.picture import save_png, shot_sheet
from gdfusion_ros.viewer.shot import Shot, make_shot

if TYPE_CHECKING:
    from gdfusion_ros.viewer.page import Page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recordings", nargs="*", type=Path, help="recorded output, and perhaps its input")
    parser.add_argument("--source", help="run a network on this instead: recording, folder, or world:SEED")
    parser.add_argument("--live", action="store_true", help="show what a running node publishes")
    parser.add_argument("--name", default="/gdfusion", help="the running node's name (%(default)s)")
    add_model_arguments(parser)
    add_rig_arguments(parser)
    parser.add_argument("--frames", type=int, help="stop after this many frames")
    page = parser.add_argument_group("page")
    page.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (%(default)s: this machine only)"
    )
    page.add_argument("--port", type=int, default=8080, help="port to serve on (%(default)s)")
    page.add_argument("--rate", type=float, default=10.0, help="frames a second when playing (%(default)s)")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--png", type=Path, metavar="DIR", help="write one picture a frame, with the camera images"
    )
    files.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs no network")
    files.add_argument("--rerun", type=Path, metavar="FILE", help="write a Rerun recording, .rrd")
    files.add_argument(
        "--color-by", choices=COLOR_BY, default="label", help="colours of the pictures (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Show, until interrupted, or write files. Raises UserError for wrong input."""
    if sum((bool(args.recordings), args.source is not None, args.live)) != 1:
        raise UserError("give a recorded output, or --source, or --live; `gdfusion view --help` shows how")
    files = [path for path in (args.png, args.html, args.rerun) if path is not None]
    if args.live:
        if files:
            raise UserError(
                "--live only shows; record the node's output and give the recording to write files"
            )
        _serve_live(args)
        return 0
    with ExitStack() as stack:
        shots = _recorded(args, stack) if args.recordings else list(_progress(_made(args), "run"))
        if files:
            _write(args, shots)
        else:
            _serve(args, shots)
    return 0


def _recorded(args: argparse.Namespace, stack: ExitStack) -> Sequence[Shot]:
    from gdfusion_ros.viewer.recordings import Recordings

    shots = stack.enter_context(Recordings(args.recordings))
    return shots if args.frames is None else _First(shots, args.frames)


class _First(Sequence[Shot]):
    """The first shots of a sequence, still read when they are asked for."""

    def __init__(self, shots: Sequence[Shot], count: int) -> None:
        self._shots, self._count = shots, min(count, len(shots))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Shot:  # type: ignore[override]
        return self._shots[range(self._count)[index]]


def _made(args: argparse.Namespace) -> Iterator[Shot]:
    """Shots of a source through a network, with ground truth where the source knows it."""
    if is_world(args.source):
        model = load(args)
        seed = world_seed(args.source)
        size = (model.config.image.height, model.config.image.width)
        items = world_items(range(seed, seed + 1), args.frames or 20, model.grid, size)
    else:
        source = source_of(args.source, args)
        model = load(args, rig_names(source))
        items = (Item(frame) for frame in source)
    restarts: dict[int, str] = {}
    stream = stream_of(model, args, lambda reason, frame: restarts.update({frame.stamp_ns: reason}))
    for item in islice(items, args.frames):
        truth = None if item.truth is None else item.truth.labels
        shot = make_shot(step(stream, item.frame), item.frame, truth)
        yield replace(shot, restart_reason=restarts.get(shot.stamp_ns, ""))


def _progress(shots: Iterator[Shot] | Sequence[Shot], words: str) -> tqdm[Shot]:
    return tqdm(shots, unit="frame", desc=words, disable=None)


def _write(args: argparse.Namespace, shots: Sequence[Shot]) -> None:
    if not shots:
        raise UserError("there are no grids to write")
    if args.png is not None:
        for number, shot in enumerate(_progress(shots, "png")):
            save_png(shot_sheet(shot, color_by=args.color_by), args.png / f"{number:06d}.png")
        print(f"{len(shots)} pictures in {args.png}")
    if args.html is not None:
        from gdfusion_ros.viewer.export import write_html

        write_html(_progress(shots, "html"), args.html, 1.0 / args.rate)
        print(f"{args.html}: {args.html.stat().st_size / 1e6:.1f} MB, opens in any browser")
    if args.rerun is not None:
        from gdfusion_ros.viewer.export import write_rerun

        write_rerun(_progress(shots, "rerun"), args.rerun)
        print(f"{args.rerun}: open it with `rerun {args.rerun}`")


def _serve(args: argparse.Namespace, shots: Sequence[Shot]) -> None:
    from gdfusion_ros.viewer.player import Player

    if not shots:
        raise UserError("there are no grids to show")
    page = _page(args)
    player = Player(page, shots, args.rate)
    try:
        _until_interrupted(page)
    finally:
        player.close()
        page.server.stop()


def _serve_live(args: argparse.Namespace) -> None:
    try:
        from gdfusion_ros.ros.watcher import Watcher
    except ImportError as error:
        raise UserError(f"--live needs ROS 2 ({error}); recordings can be looked at without") from None
    from gdfusion_ros.viewer.player import LivePlayer

    page = _page(args)
    player = LivePlayer(page)
    try:
        with Watcher(player.add, rig_of(args)[0], args.name):
            _until_interrupted(page)
    finally:
        page.server.stop()


def _page(args: argparse.Namespace) -> Page:
    try:
        from gdfusion_ros.viewer.page import Page
    except ImportError:
        raise UserError(
            "the page needs viser: pip install 'gdfusion_ros[viewer]'; --png works without"
        ) from None
    return Page(args.host, args.port)


def _until_interrupted(page: Page) -> None:
    print(f"serving on {page.url}, Ctrl-C ends", flush=True)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
