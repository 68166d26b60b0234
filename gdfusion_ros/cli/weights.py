"""Fetch, convert, check and describe weights.

gdfusion weights fetch MODEL     download the published checkpoint of a model and convert it; resumes where it stopped
gdfusion weights convert FILE    turn a published checkpoint (.pth), or your own of the same layout, into safetensors
gdfusion weights info FILE|MODEL what a weights file holds and which model it is for
gdfusion weights join A B        begin cotr-gf with the trunk of bevdetocc-gf (A) and the heads of cotr (B)
gdfusion weights keys MODEL      every entry that the strict loader expects: name, shape, type
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdfusion_ros.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gdfusion_ros.model.config import ModelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-commands and their arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="fetch|convert|join|info|keys")
    fetch = commands.add_parser("fetch", help="download and convert a model's published checkpoint")
    fetch.add_argument("model", metavar="MODEL", help="a model's name or YAML")
    convert = commands.add_parser("convert", help="convert a checkpoint into safetensors")
    convert.add_argument("file", type=Path, metavar="FILE", help="a .pth checkpoint, or a .safetensors file")
    convert.add_argument(
        "--model",
        metavar="MODEL",
        help="name or YAML (default: the model whose published checkpoint has this name)",
    )
    convert.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: beside FILE)")
    join = commands.add_parser("join", help="make weights of cotr-gf from those of bevdetocc-gf and cotr")
    join.add_argument("trunk", type=Path, metavar="TRUNK", help="weights of bevdetocc-gf")
    join.add_argument("heads", type=Path, metavar="HEADS", help="weights of cotr")
    join.add_argument("--out", type=Path, metavar="FILE", required=True, help="where to write")
    info = commands.add_parser("info", help="describe a weights file")
    info.add_argument(
        "what", metavar="FILE|MODEL", help="a weights file, or a model whose own weights are meant"
    )
    keys = commands.add_parser("keys", help="list the entries that the strict loader expects")
    keys.add_argument("model", metavar="MODEL", help="a model's name or YAML")
    for command in (fetch, convert, join, info, keys):
        command.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(args: argparse.Namespace) -> int:
    """Do what the sub-command says."""
    report = {"fetch": _fetch, "convert": _convert, "join": _join, "info": _info, "keys": _keys}[args.action](
        args
    )
    if args.json:
        print(json.dumps(report))
    return 0


def _keys(args: argparse.Namespace) -> dict[str, Any]:
    from gdfusion_ros.model.config import load_config

    lines = [entry_line(name, tensor) for name, tensor in expected_entries(load_config(args.model)).items()]
    if not args.json:
        print("\n".join(lines))
    return {"model": args.model, "entries": lines}


def entry_line(name: str, tensor: Tensor) -> str:
    """One entry of a state dict as text: name, shape, type."""
    return f"{name} {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def expected_entries(config: ModelConfig) -> dict[str, Tensor]:
    """A model's entries under their published names, as tensors without memory."""
    import torch

    from gdfusion_ros.model.model import build_network
    from gdfusion_ros.model.weights import published_entries

    # The meta device holds shapes only: the largest networks would need gigabytes.
    with torch.device("meta"):
        return published_entries(build_network(config))


def _info(args: argparse.Namespace) -> dict[str, Any]:
    from gdfusion_ros.model.config import load_config
    from gdfusion_ros.model.weights import default_file, read_checkpoint, read_safetensors, sha256

    path = Path(args.what)
    if not path.is_file():
        if path.suffix in (".pth", ".pt", ".safetensors"):
            raise UserError(f"there is no weights file {path}")
        path = default_file(load_config(args.what))
    published = path.suffix in (".pth", ".pt")
    entries, metadata = (read_checkpoint(path), dict[str, str]()) if published else read_safetensors(path)
    report = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "entries": len(entries),
        "numbers": sum(tensor.numel() for tensor in entries.values()),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in entries.values()}),
        "metadata": metadata,
        "fits": fitting_models(entries),
    }
    for key, value in report.items():
        if key != "metadata":
            print(f"{key:<8} {', '.join(value) if isinstance(value, list) else value}")
    for key, value in metadata.items():
        print(f"  {key:<15} {value}")
    return report


def fitting_models(entries: dict[str, Tensor]) -> list[str]:
    """The models of this package whose entries are just these, name by name and shape by shape."""
    from gdfusion_ros.model.config import load_config, model_names

    shapes = {name: tensor.shape for name, tensor in entries.items()}
    return [
        name
        for name in model_names()
        if shapes == {key: tensor.shape for key, tensor in expected_entries(load_config(name)).items()}
    ]


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from gdfusion_ros.model.config import load_config

    source: Path = args.file
    if not source.is_file():
        raise UserError(f"there is no checkpoint {source}")
    config = load_config(args.model or _model_of_checkpoint(source.name))
    target = args.out or source.with_suffix(".safetensors")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target} would overwrite what it is made from; give --out")
    return convert(source, config, target)


def _model_of_checkpoint(file_name: str) -> str:
    from gdfusion_ros.model.config import load_config, model_names

    for name in model_names():
        weights = load_config(name).weights
        if weights is not None and weights.checkpoint == file_name:
            return name
    raise UserError(f"no model publishes a checkpoint named {file_name}: say which it is with --model")


def convert(source: Path, config: ModelConfig, target: Path) -> dict[str, Any]:
    """Read a checkpoint strictly into the model's network and write that as safetensors. Raises UserError."""
    from gdfusion_ros.model.model import build_network
    from gdfusion_ros.model.weights import load_entries, read_entries, sha256, write_weights

    network = build_network(config)
    load_entries(network, read_entries(source), str(source), config.temporal)
    metadata = {"model": config.name, "source": source.name, "source_sha256": sha256(source)}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_weights(network, target, metadata)
    print(f"{target}: {config.name}, from {source.name}")
    return {"file": str(target), "sha256": sha256(target), **metadata}


def _join(args: argparse.Namespace) -> dict[str, Any]:
    from gdfusion_ros.model.config import load_config
    from gdfusion_ros.model.model import build_network
    from gdfusion_ros.model.networks.cotr import joined_entries
    from gdfusion_ros.model.weights import load_entries, read_entries, sha256, write_weights

    parts: list[dict[str, Tensor]] = []
    for path, name in ((args.trunk, "bevdetocc-gf"), (args.heads, "cotr")):
        if not path.is_file():
            raise UserError(f"there is no weights file {path}")
        part = load_config(name)
        entries = read_entries(path)
        load_entries(build_network(part), entries, str(path), part.temporal)
        parts.append(entries)
    config = load_config("cotr-gf")
    network = build_network(config)
    load_entries(network, joined_entries(*parts), "what was joined", config.temporal)
    metadata = {
        "model": config.name,
        "corrected": str(config.architecture.corrected),
        "trunk": f"{args.trunk.name} sha256:{sha256(args.trunk)}",
        "heads": f"{args.heads.name} sha256:{sha256(args.heads)}",
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_weights(network, args.out, metadata)
    print(f"{args.out}: {config.name}, from {args.trunk.name} and {args.heads.name}")
    return {"file": str(args.out), "sha256": sha256(args.out), **metadata}


def _fetch(args: argparse.Namespace) -> dict[str, Any]:
    from gdfusion_ros.model.config import find_config, load_config
    from gdfusion_ros.model.weights import sha256, weights_dirs

    config = load_config(args.model)
    weights = config.weights
    if weights is None or not weights.checkpoint:
        raise UserError(f"nobody has published a checkpoint of {config.name}: there is nothing to fetch")
    checkpoint = _download(weights.repository, weights.checkpoint)
    digest = sha256(checkpoint)
    if weights.sha256 and digest != weights.sha256:
        raise UserError(
            f"{checkpoint} has the sha256 {digest}, {config.name} expects {weights.sha256}: delete it and fetch again"
        )
    report = convert(checkpoint, config, weights_dirs()[-1] / weights.file)
    if not weights.sha256:
        print(record_sha256(find_config(args.model), digest))
    return report


def _download(repository: str, file_name: str) -> Path:
    """The checkpoint in the hub's own cache, downloaded with a progress bar where it is not there yet."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file_name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"cannot fetch {file_name} from {repository}: {reason[0]}; call it again to resume"
        ) from error


def record_sha256(model_file: Path, digest: str) -> str:
    """Write a checkpoint's sha256 into its model's YAML, so that every later fetch is held to it; says what it did."""
    line = f"  sha256: {digest}"
    text = model_file.read_text(encoding="utf-8")
    recorded, places = re.subn(r"^(  checkpoint: .*)$", rf"\1\n{line}", text, count=1, flags=re.MULTILINE)
    if not places or not os.access(model_file, os.W_OK):
        return f"sha256 {digest}: write it under `weights:` in {model_file} to hold later downloads to it"
    model_file.write_text(recorded, encoding="utf-8")
    return f"sha256 {digest} recorded in {model_file}"
