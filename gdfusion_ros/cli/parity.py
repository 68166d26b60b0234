"""Compare a network with stored reference numbers.

DIR is a fixture folder: a whole network (meta.json, weights.npz, frames.npz, expected.npz), the temporal cues alone
(3d_*.npz, 2d_*.npz) or a preprocessed image. Prints the error of every tensor and frame in parts of the tensor's
largest value, and how many labels agree; exit code 0 only where all of it is agreement.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from gdfusion_ros.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("fixture", type=Path, metavar="DIR", help="the fixture folder")
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="FOLDER",
        help="the real frames of fixtures without images of their own (default: ../../data/nuscenes_scene0103 by DIR)",
    )
    parser.add_argument(
        "--kernels",
        choices=("on", "off"),
        default="off",
        help="a whole network in its inference form with the CPU kernels, or the plain one (default: off)",
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> int:
    """Compare; 0 when everything agrees."""
    folder: Path = args.fixture
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    prefixes = sorted(
        path.with_name(path.name.removesuffix("_meta.json")) for path in folder.glob("*_meta.json")
    )
    if (folder / "meta.json").is_file():
        report = network_parity(folder, args.frames, args.kernels == "on")
    elif prefixes:
        report = fusion_parity(prefixes)
    elif list(folder.glob("*_frame*.npz")):
        report = preprocessing_parity(folder, args.frames)
    else:
        raise UserError(f"{folder} is no fixture: it has neither meta.json nor *_meta.json nor *_frame*.npz")
    for line in report["failures"]:
        print(f"NO AGREEMENT  {line}")
    print("agrees" if report["passed"] else "DOES NOT AGREE")
    if args.json:
        print(json.dumps(report))
    return 0 if report["passed"] else 1


def network_parity(folder: Path, images: Path | None, kernels: bool = False) -> dict[str, Any]:
    """The report on a whole network."""
    from gdfusion_ros.cli.agreement import compare
    from gdfusion_ros.cli.fixtures import read_network_fixture
    from gdfusion_ros.cli.reference import build_model, run_network

    fixture = read_network_fixture(folder, images)
    model = build_model(fixture, str(folder), kernels)
    print(f"{folder.name}: {fixture.config.name}, {len(fixture.frames)} frames")
    own = []
    begin = time.perf_counter()
    for i, frame_run in enumerate(run_network(model, fixture)):
        own.append(frame_run)
        print(f"frame {i} took {time.perf_counter() - begin:.1f} s", flush=True)
        begin = time.perf_counter()
    result = compare(model, fixture, own)
    print(f"{'frame':>5} {'tensor':<24} {'99.9 %':>9} {'mean':>9} {'largest':>9}")
    for error in result.errors:
        print(
            f"{error.frame:>5} {error.name:<24} {error.quantile:9.1e} {error.mean:9.1e} {error.largest:9.1e}"
        )
    for i, share in enumerate(result.label_agreement):
        print(f"{i:>5} labels equal on {share:.4%} of the clear voxels")
    for line in result.excused:
        print(f"excused: the network is that sensitive  {line}")
    worst = result.worst
    return {
        "fixture": folder.name,
        "network": fixture.config.name,
        "passed": result.passed,
        "worst_tensor": f"{worst.frame}/{worst.name}" if worst else None,
        "worst_error": worst.quantile if worst else None,
        "label_agreement": result.label_agreement,
        "failures": result.failures,
        "excused": result.excused,
    }


def fusion_parity(prefixes: list[Path]) -> dict[str, Any]:
    """The report on the temporal cues alone."""
    from gdfusion_ros.cli.modules import compare_fusion

    return _module_report([(prefix.name, error) for prefix in prefixes for error in compare_fusion(prefix)])


def preprocessing_parity(folder: Path, images: Path | None) -> dict[str, Any]:
    """The report on preprocessed images."""
    from gdfusion_ros.cli.fixtures import RecordedImages, images_folder
    from gdfusion_ros.cli.modules import compare_preprocessing

    recorded = RecordedImages(images_folder(folder, images))
    files = sorted(folder.glob("*_frame*.npz"))
    return _module_report(
        [(file.stem, error) for file in files for error in compare_preprocessing(file, recorded)]
    )


def _module_report(errors: list[tuple[str, Any]]) -> dict[str, Any]:
    from gdfusion_ros.cli.modules import MODULE_BOUND

    for name, error in errors:
        print(f"{name} {error.frame:>3} {error.name:<24} {error.error:9.1e}")
    failures = [
        f"{name} frame {error.frame}: {error.name} is off by {error.error:.1e}"
        for name, error in errors
        if not error.error <= MODULE_BOUND
    ]
    name, worst = max(errors, key=lambda pair: pair[1].error)
    return {
        "fixture": name,
        "passed": not failures,
        "worst_tensor": f"{name}/{worst.frame}/{worst.name}",
        "worst_error": worst.error,
        "label_agreement": [],
        "failures": failures,
    }
