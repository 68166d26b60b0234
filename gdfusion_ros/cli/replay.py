"""Publish a recording (rosbag2, MCAP or sqlite3) over DDS, as `ros2 bag play` would.

  gdfusion replay BAG --clock
  gdfusion replay BAG --rate 0.5 --start 10 --loop
  gdfusion replay BAG --clock --paced      each key frame waits for the grid of the last: nothing is dropped

Messages are sent as they were recorded, byte for byte. The shared-memory profile in config/fastdds_shm.xml is
used, without which a third of six cameras' images gets lost.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

from gdfusion_ros.cli.inputs import add_json_argument, add_rig_arguments, print_json, rig_of
from gdfusion_ros.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("bag", type=Path, help="the recording")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="times the recorded speed; 0: no waiting (%(default)s)"
    )
    parser.add_argument("--loop", action="store_true", help="begin again at the end, until interrupted")
    parser.add_argument("--start", type=float, default=0.0, help="seconds into the recording (%(default)s)")
    parser.add_argument("--clock", action="store_true", help="publish /clock, for nodes with use_sim_time")
    parser.add_argument(
        "--paced", action="store_true", help="wait for each key frame's grid before the next is sent"
    )
    parser.add_argument(
        "--grids", default="/gdfusion/occupancy", help="where the grids come, for --paced (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds a grid may take, for --paced (%(default)s)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=5.0,
        help="seconds to wait at most for somebody to subscribe (%(default)s)",
    )
    add_rig_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Play it; 0 when everything was sent, and every grid came if it was paced."""
    from gdfusion_ros.ros.environment import use_shared_memory

    if args.rate < 0 or args.start < 0:
        raise UserError("--rate and --start cannot be negative")
    use_shared_memory()
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from gdfusion_ros.ros.player import Pacer, Played, Player
    from gdfusion_ros.sources.bag import open_bag

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with open_bag(args.bag) as reader:
        _check(reader, args)
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        node = rclpy.create_node("gdfusion_replay")
        executor = SingleThreadedExecutor()
        executor.add_node(node)

        def spin() -> None:
            with contextlib.suppress(ExternalShutdownException):
                executor.spin()

        spinner = threading.Thread(target=spin, daemon=True)
        spinner.start()
        try:
            rig, settings = rig_of(args)
            pacer = (
                Pacer(node, rig, args.grids, settings.inference_period, args.timeout) if args.paced else None
            )
            player = Player(node, reader, args.clock)
            if not player.wait_for_subscribers(args.wait):
                print("nobody subscribes to the recorded topics; playing all the same")
            played, begin = Played(), time.monotonic()
            while True:
                one = player.play(args.rate, args.start, pacer, lambda: not stop.is_set())
                played.messages += one.messages
                played.frames += one.frames
                if not args.loop or stop.is_set():
                    break
            seconds = time.monotonic() - begin
            # Reliable writers still deliver what is under way.
            player.drain()
        finally:
            executor.shutdown()
            spinner.join()
            node.destroy_node()
            rclpy.try_shutdown()
    print(f"{played.messages} messages in {seconds:.1f} s")
    if args.json:
        print_json({"messages": played.messages, "frames": played.frames, "seconds": round(seconds, 3)})
    return 130 if stop.is_set() and not args.loop else 0


def _check(reader: Any, args: argparse.Namespace) -> None:
    """UserError when the recording cannot be played as the options say."""
    if not reader.is2:
        raise UserError(
            f"{args.bag} is a ROS 1 recording: convert it (rosbags-convert --src {args.bag} --dst NEW), "
            "or run it offline as it is (gdfusion run)"
        )
    seconds = (reader.end_time - reader.start_time) * 1e-9
    if args.start > seconds:
        raise UserError(f"--start {args.start:g} is beyond the recording's end, at {seconds:.1f} s")
