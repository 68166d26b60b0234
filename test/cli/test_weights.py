"""`gdfusion weights`: published checkpoints in, safetensors out; whatever is wrong is named in one line."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from gdfusion_ros import load_model
from gdfusion_ros.cli.main import main
from gdfusion_ros.cli.weights import record_sha256
from gdfusion_ros.errors import UserError
from gdfusion_ros.model.config import load_config
from gdfusion_ros.model.weights import published_entries, sha256
from gdfusion_ros.sources.world import WorldSource

CHECKPOINT = "published.pth"


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A BEVDetOcc-GF on a coarse grid, whose checkpoint somebody publishes."""
    from gdfusion_ros.share import share_dir

    content = yaml.safe_load((share_dir() / "config" / "models" / "bevdetocc-gf.yaml").read_text())
    content["image"] = {"height": 64, "width": 128}
    content["grid"] = {"x": [-40.0, 40.0, 4.0], "y": [-40.0, 40.0, 4.0], "z": [-1.0, 5.4, 1.6]}
    content["depth"] = {"lower": 1.0, "upper": 45.0, "step": 4.0}
    content["weights"] = {
        "file": "small.safetensors",
        "repository": "someone/somewhere",
        "checkpoint": CHECKPOINT,
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def entries(model_file: Path) -> dict[str, Tensor]:
    return published_entries(load_model(model_file, "random:3").network)


def write_checkpoint(path: Path, entries: dict[str, Tensor]) -> Path:
    """A checkpoint in the published layout."""
    state = {f"module.{name}": tensor for name, tensor in entries.items()}
    torch.save(
        {"meta": {"epoch": 12}, "state_dict": state, "optimizer": {"param_groups": [{"lr": 2e-4}]}}, path
    )
    return path


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failing command says."""
    assert main(["weights", *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_converted_checkpoint_gives_the_network_it_was_made_from(
    model_file: Path, entries: dict[str, Tensor], tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / CHECKPOINT, entries)
    target = tmp_path / "converted.safetensors"
    assert (
        main(["weights", "convert", str(checkpoint), "--model", str(model_file), "--out", str(target)]) == 0
    )
    frames = list(WorldSource(seed=5, frames=2, image_size=(64, 128)))
    original, converted, direct = (
        load_model(model_file, weights) for weights in ("random:3", target, checkpoint)
    )
    states = [None, None, None]
    for frame in frames:
        results = [model(frame, state) for model, state in zip((original, converted, direct), states)]
        states = [state for _, state in results]
        for prediction, _ in results[1:]:
            assert (prediction.labels == results[0][0].labels).all()
            assert (prediction.confidence == results[0][0].confidence).all()


def test_info_says_where_a_file_comes_from(
    model_file: Path, entries: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / CHECKPOINT, entries)
    target = tmp_path / "converted.safetensors"
    main(["weights", "convert", str(checkpoint), "--model", str(model_file), "--out", str(target)])
    capsys.readouterr()
    assert main(["weights", "info", str(target), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["metadata"]["source"] == CHECKPOINT
    assert report["metadata"]["source_sha256"] == sha256(checkpoint)
    assert report["entries"] == len(entries)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan"])
def test_an_entry_that_does_not_fit_is_named(
    damage: str,
    model_file: Path,
    entries: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "depth_net.context_mlp.fc2.weight"
    if damage == "missing":
        del entries[name]
    elif damage == "extra":
        name = "depth_net.context_mlp.fc3.weight"
        entries[name] = torch.zeros(2)
    elif damage == "shape":
        entries[name] = entries[name][:, :-1].clone()
    else:
        entries[name] = torch.full_like(entries[name], torch.nan)
    checkpoint = write_checkpoint(tmp_path / CHECKPOINT, entries)
    arguments = [
        "convert",
        str(checkpoint),
        "--model",
        str(model_file),
        "--out",
        str(tmp_path / "no.safetensors"),
    ]
    assert name in error_of(arguments, capsys)
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(
    suffix: str,
    model_file: Path,
    entries: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_checkpoint(tmp_path / CHECKPOINT, entries)
    if suffix == ".safetensors":
        target = tmp_path / "whole.safetensors"
        main(["weights", "convert", str(path), "--model", str(model_file), "--out", str(target)])
        path = target
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capsys.readouterr()
    message = error_of(
        ["convert", str(cut), "--model", str(model_file), "--out", str(tmp_path / "x")], capsys
    )
    assert str(cut) in message


def test_code_inside_a_checkpoint_is_refused_and_not_run(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    witness = tmp_path / "ran"
    # A pickle by hand: call os.system with a command that would leave a trace.
    command = f"touch {witness}".encode()
    hostile = b"\x80\x02cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R."
    checkpoint = tmp_path / "hostile.pth"
    checkpoint.write_bytes(hostile)
    message = error_of(["convert", str(checkpoint), "--model", str(model_file)], capsys)
    assert "refused" in message
    assert not witness.exists()


def test_a_checkpoint_of_no_known_name_asks_for_its_model(
    entries: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "mine.pth", entries)
    assert "--model" in error_of(["convert", str(checkpoint)], capsys)


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of a model hub that a download asks for, on loopback; it breaks off the first transfer half-way."""

    content = b""
    ranges: list[str] = []
    breaks = 0

    def do_HEAD(self) -> None:
        self._head(200, len(self.content))

    def do_GET(self) -> None:
        begin = 0
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            begin = int(asked[1])
            type(self).ranges.append(asked[0])
        self._head(206 if asked else 200, len(self.content) - begin, begin)
        body = self.content[begin:]
        if type(self).breaks:
            type(self).breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def _head(self, status: int, length: int, begin: int = 0) -> None:
        self.send_response(status)
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(entries: dict[str, Tensor], tmp_path: Path) -> Iterator[str]:
    Hub.content = write_checkpoint(tmp_path / CHECKPOINT, entries).read_bytes()
    Hub.ranges, Hub.breaks = [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(model: Path, hub: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own: the hub's library reads its settings when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(cache / "hub"),
        "XDG_CACHE_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-m", "gdfusion_ros.cli.main", "weights", "fetch", str(model)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_fetched_weights_become_the_models_own_and_their_sha256_is_kept(
    model_file: Path, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub.breaks = 1
    result = fetch(model_file, hub, tmp_path / "cache")
    if result.returncode:  # Broken off half-way: the next call goes on.
        assert "call it again" in result.stderr
        result = fetch(model_file, hub, tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert Hub.ranges, "the download began anew"
    config = load_config(model_file)
    assert config.weights is not None
    assert config.weights.sha256 == sha256(tmp_path / CHECKPOINT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_model(model_file, "default").weights.startswith("small.safetensors sha256:")
    model_file.write_text(model_file.read_text().replace(config.weights.sha256, "0" * 64))
    with pytest.raises(UserError, match="sha256"):
        load_model(model_file, "default")


def test_a_download_with_another_sha256_is_refused(model_file: Path, hub: str, tmp_path: Path) -> None:
    record_sha256(model_file, "0" * 64)
    result = fetch(model_file, hub, tmp_path / "cache")
    assert result.returncode == 1
    assert "sha256" in result.stderr.splitlines()[-1]


def test_a_model_that_nobody_published_cannot_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nobody has published" in error_of(["fetch", "gdfusion-small"], capsys)
