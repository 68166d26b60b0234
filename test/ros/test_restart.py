"""A node that was killed goes on where it was, if its state was saved; broken weights keep it from starting."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import yaml
from driving import TWO_CAMERAS, drive
from nodes import NodeProcess, Peer, ros_environment, running_node, wait_for
from safetensors.numpy import load_file, save_file
from vehicle import rig_files

from gdfusion_ros import load_model
from gdfusion_ros.model.weights import write_weights
from gdfusion_ros.sinks.bag import image_topic, info_topic, record_frames
from gdfusion_ros.sources.bag import open_bag

pytestmark = pytest.mark.ros


def play(peer: Peer, bag: Path) -> None:
    """Everything that a recording holds, at once."""
    topics = {image_topic(c): "CompressedImage" for c in TWO_CAMERAS} | {
        info_topic(c): "CameraInfo" for c in TWO_CAMERAS
    }
    topics |= {"/tf": "TFMessage", "/tf_static": "TFMessage"}
    peer.prepare(topics)
    with open_bag(bag) as reader:
        for connection, _, data in reader.messages():
            if connection.topic in topics:
                message = reader.deserialize(data, connection.msgtype)
                peer.say(connection.topic, topics[connection.topic], message)


@pytest.mark.parametrize("how", ["service", "exit"])
def test_a_node_goes_on_from_its_saved_state(tmp_path, how):
    frames = drive([0.0, 0.5, 1.0], cameras=TWO_CAMERAS)
    record_frames(frames[:2], tmp_path / "first")
    record_frames(frames[2:], tmp_path / "second")
    parameters = {
        **rig_files(tmp_path),
        "image_reliability": "reliable",
        "state_file": str(tmp_path / "state.safetensors"),
        "save_state_on_exit": how == "exit",
        "load_state_on_start": how == "exit",
    }
    with ros_environment() as environment:
        for number, bag in enumerate(("first", "second")):
            node = NodeProcess(environment, tmp_path, **parameters)
            peer = Peer(environment)
            try:
                node.says("active: ")
                if number == 1 and how == "service":
                    answer = peer.trigger("load_state")
                    assert answer.success, answer.message
                play(peer, tmp_path / bag)
                expected = 2 - number
                if number == 0:
                    # On a busy machine the second frame supersedes the first; what counts is that the last one came.
                    wait_for(
                        lambda p=peer: p.stamps() and p.stamps()[-1] == frames[1].stamp_ns, "the last grid"
                    )
                    assert len(peer.grids) <= expected
                    if how == "service":
                        answer = peer.trigger("save_state")
                        assert answer.success, answer.message
                        node.stop(signal.SIGKILL)
                    else:
                        assert node.stop() == 0
                    seen = peer.grids[-1].history_frames
                else:
                    wait_for(lambda p=peer: len(p.grids) == 1, "the grid after the restart")
                    assert peer.grids[0].history_frames == seen + 1
                    assert peer.grids[0].sequence == 1
                    assert "a new sequence" not in node.text()
            finally:
                peer.close()
                node.stop()


def test_a_state_file_that_is_no_good_costs_the_history_and_not_the_node(tmp_path):
    folder = tmp_path / "states"
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(b"no state at all")
    parameters = {
        **rig_files(tmp_path),
        "image_reliability": "reliable",
        "state_file": str(folder / "state.safetensors"),
        "save_state_on_exit": True,
        "load_state_on_start": True,
    }
    record_frames(drive([0.0], cameras=TWO_CAMERAS), tmp_path / "bag")
    with running_node(tmp_path, **parameters) as (node, peer, _):
        node.says("starting without history: cannot read the temporal state")
        assert not peer.trigger("load_state").success
        answer = peer.trigger("save_state")
        assert not answer.success
        assert "before the first frame" in answer.message
        play(peer, tmp_path / "bag")
        wait_for(lambda: peer.grids, "a grid")
        shutil.rmtree(folder)
        answer = peer.trigger("save_state")
        assert not answer.success
        assert "cannot write" in answer.message
    assert "the temporal state is lost: cannot write" in node.text()


def broken_weights(folder: Path, fault: str) -> tuple[dict[str, str], str]:
    """A node's parameters with a weights file that has a fault, and the words that name it."""
    parameters = rig_files(folder)
    path = folder / "gdfusion_ros" / "weights.safetensors"
    path.parent.mkdir()
    write_weights(load_model(parameters["model"], "random:0").network, path, {})
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if name.endswith("weight") and tensor.ndim > 1)
    if fault == "sha256":
        model = yaml.safe_load(Path(parameters["model"]).read_text())
        model["weights"] = {"file": path.name, "sha256": "0" * 64}
        Path(parameters["model"]).write_text(yaml.safe_dump(model))
        return {**parameters, "weights": "default"}, f"two expects {'0' * 64}"
    words = name
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        words = "weights.safetensors"
    else:
        if fault == "missing key":
            del tensors[name]
        elif fault == "unknown key":
            tensors["no.such.key"] = tensors[name]
            words = "no.such.key"
        else:
            tensors[name] = tensors[name].reshape(-1)
        save_file(tensors, path)
    return {**parameters, "weights": str(path)}, words


@pytest.mark.parametrize("fault", ["truncated", "sha256", "missing key", "unknown key", "shape"])
def test_broken_weights_keep_the_node_from_activating_and_the_key_is_named(tmp_path, fault):
    parameters, words = broken_weights(tmp_path, fault)
    with ros_environment() as environment:
        node = NodeProcess(environment | {"XDG_CACHE_HOME": str(tmp_path)}, tmp_path, **parameters)
        peer = Peer(environment)
        try:
            assert peer.state() == "unconfigured"
            assert words in node.text(), node.text()
            assert "weights.safetensors" in node.text()
            assert "Traceback" not in node.text(), node.text()
        finally:
            peer.close()
            assert node.stop() == 0
