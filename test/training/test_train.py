"""Training: the loss falls, and stopping changes nothing."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from gdfusion_ros.errors import UserError
from gdfusion_ros.labels import OCC3D
from gdfusion_ros.model.blocks.small import cell_pixels, ray_values
from gdfusion_ros.model.config import DepthBins, GridConfig, ImageConfig, load_config
from gdfusion_ros.model.model import build_network, load_model
from gdfusion_ros.model.networks.small import SmallArchitecture
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.watch import Watch
from gdfusion_ros.sources.world import TRAINING_SEEDS
from gdfusion_ros.training.beginning import (
    begin_history,
    begin_with_evidence,
    begin_with_shares,
    semantics_layer,
)
from gdfusion_ros.training.losses import world_class_weights
from gdfusion_ros.training.optimizer import learning_rate
from gdfusion_ros.training.order import CHUNK, Loader, single_frame
from gdfusion_ros.training.recipe import (
    MOST_SEQUENCES,
    LossWeights,
    Recipe,
    Stage,
    load_recipe,
    stage_seconds,
)
from gdfusion_ros.training.train import CHECKPOINT, CURVES, WEIGHTS, Trainer

FRAMES = Stage("frames", history=False, steps=30, share=1.0, batch=2, rate=0.004)
STREAMS = Stage("streams", history=True, steps=8, share=1.0, batch=1, rate=0.002, freeze_norm=True)
RECIPE = Recipe("gdfusion-small", "world", sequences=2, frames=3, stages=(FRAMES, STREAMS), average=0.9)


@pytest.fixture(scope="module")
def config():
    """The small network, smaller still."""
    return dataclasses.replace(
        load_config("gdfusion-small"),
        image=ImageConfig(32, 64),
        grid=GridConfig((-40.0, 40.0, 4.0), (-40.0, 40.0, 4.0), (-1.0, 5.4, 1.6)),
        depth=DepthBins(1.0, 41.0, 4.0),
        architecture=SmallArchitecture((8, 8, 8, 8), 8, 4, (8, 8, 8), 8),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("sequences")


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


@pytest.fixture(scope="module")
def uninterrupted(config, cache, tmp_path_factory):
    trainer = Trainer(RECIPE, tmp_path_factory.mktemp("whole"), cache=cache, config=config)
    assert trainer.run()
    return trainer


def test_the_loss_falls(uninterrupted):
    with (uninterrupted.out / CURVES).open() as file:
        rows = [*csv.DictReader(file)]
    assert rows[0]["stage"] == "frames"
    first, last = uninterrupted.first_losses, rows[0]
    assert float(last["cross_entropy"]) < first["cross_entropy"]
    assert float(last["depth"]) < first["depth"]


@pytest.mark.parametrize("stop_after", [7, 30, 34])
def test_resuming_gives_the_same_weights_as_not_stopping(config, cache, tmp_path, uninterrupted, stop_after):
    assert not Trainer(RECIPE, tmp_path, cache=cache, config=config).run(stop_after)
    resumed = Trainer(RECIPE, tmp_path, cache=cache, config=config, resume=True)
    assert resumed.run()
    expected = weights(uninterrupted)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    for name, value in resumed.average.items():
        assert torch.equal(value, uninterrupted.average[name]), name


@pytest.mark.parametrize("name", [WEIGHTS, "frames.safetensors"])
def test_the_weights_at_the_end_and_of_each_stage_load_as_a_model(config, uninterrupted, name):
    model = load_model(config, uninterrupted.out / name)
    assert model.weights.startswith(name)


def test_a_damaged_checkpoint_is_refused_in_one_line(config, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot go on"):
        Trainer(RECIPE, tmp_path, config=config, resume=True)


def test_two_processes_train_together(tmp_path, root):
    # The recipe's model stands in files here: the processes know nothing of this one's objects.
    model = yaml.safe_load((root / "config" / "models" / "gdfusion-small.yaml").read_text())
    model |= {"image": {"height": 32, "width": 64}, "depth": {"lower": 1.0, "upper": 41.0, "step": 4.0}}
    model["grid"] = {"x": [-40.0, 40.0, 4.0], "y": [-40.0, 40.0, 4.0], "z": [-1.0, 5.4, 1.6]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(model))
    stages = [
        {"name": "frames", "history": False, "steps": 2, "share": 1.0, "batch": 1, "rate": 0.001},
        {
            "name": "streams",
            "history": True,
            "steps": 2,
            "share": 1.0,
            "batch": 1,
            "rate": 0.001,
            "freeze_norm": True,
        },
    ]
    recipe = {
        "model": str(tmp_path / "tiny.yaml"),
        "data": "world",
        "sequences": 2,
        "frames": 2,
        "stages": stages,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "-m",
        "gdfusion_ros.cli.main",
        "train",
    ]
    command += [str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--workers", "0"]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / WEIGHTS).is_file()


def test_history_begins_as_the_mean_of_now_and_before(config):
    network = build_network(config).eval()
    begin_history(network)
    network.temporal.gain.data.fill_(1.0)
    before, now = torch.rand(2, 1, 4, 20, 20, 4)
    still = torch.eye(4)[None]
    with torch.no_grad():
        first, tensors = network.temporal(before, None, still, Watch())
        second, _ = network.temporal(now, TemporalState(1, tensors), still, Watch())
    assert torch.allclose(first.voxels, before, atol=1e-4)
    assert torch.allclose(second.voxels, (before + now) / 2, atol=1e-4)


def test_history_that_has_been_learned_stays(config):
    network = build_network(config)
    network.temporal.gain.data.fill_(0.1)
    expected = network.temporal.voxel.merge[0].weight.clone()
    begin_history(network)
    assert torch.equal(network.temporal.voxel.merge[0].weight, expected)


def test_a_classifier_begins_with_how_often_each_label_occurs(config):
    network = build_network(config)
    begin_with_shares(network, config, world_class_weights())
    shares = network.classifier[-1].bias[1:19].softmax(dim=0)
    assert shares.argmax() == OCC3D.free
    assert shares[OCC3D.id("driveable_surface")] > shares[OCC3D.id("car")] > shares[OCC3D.id("traffic_cone")]


@pytest.mark.parametrize("arithmetic", [True, False])
def test_bfloat16_is_taken_where_the_processor_computes_in_it_and_nowhere_else(
    config, cache, tmp_path, monkeypatch, caplog, arithmetic
):
    monkeypatch.setattr("gdfusion_ros.training.train.has_bfloat16", lambda device: arithmetic)
    trainer = Trainer(dataclasses.replace(RECIPE, precision="bf16"), tmp_path, cache=cache, config=config)
    kinds = []
    trainer.network.encoder.out.register_forward_hook(lambda module, given, made: kinds.append(made.dtype))
    frame, _, _ = trainer._batch(FRAMES)
    trainer.single(frame, None)
    assert kinds == [torch.bfloat16 if arithmetic else torch.float32]
    assert ("float32 is taken" in caplog.text) != arithmetic


@pytest.fixture(scope="module")
def beginner(config, cache, tmp_path_factory):
    """A training of a network with a channel for each label, before its first step."""
    roomy = dataclasses.replace(config, architecture=SmallArchitecture((8, 8, 8, 8), 8, 20, (8, 8, 8), 24))
    return Trainer(RECIPE, tmp_path_factory.mktemp("beginner"), cache=cache, config=roomy)


def test_depths_begin_around_the_ground_where_a_ray_meets_it(beginner):
    frame, _, _ = beginner._batch(FRAMES)
    network = beginner.single.train()
    with torch.no_grad():
        output, _ = network(frame, None)
    pixels = cell_pixels((8, 16), frame.images.device).expand(2, 6, 8, 16, 2)
    inverse = ray_values(pixels, frame.rig)[:, 3] / 10
    expected = (output.depth * network.depths[:, None, None]).sum(dim=1)
    near, horizon = inverse > 0.15, inverse < 0.01
    assert near.sum() > 50
    assert (expected[near] - 1 / inverse[near]).abs().mean() < 3.0  # bins are four metres apart here
    assert expected[horizon].mean() > 2 * expected[near].mean()


def test_what_an_image_shows_is_evidence_for_the_label_of_the_voxel_that_it_is_lifted_to(beginner):
    network, labels = beginner.single, len(OCC3D.labels)
    context = 2 * torch.eye(20)[:, :, None, None]
    assert beginner.semantics(context)[:labels, :, 0, 0].argmax(dim=1).tolist() == [*range(labels)]
    nothing = torch.zeros(1, 1, 1, 20, 20)
    evidence = torch.eye(20)[None, None, None]
    gained = network._classify(nothing, evidence) - network._classify(nothing, nothing)
    assert gained[0, 0, 0, :labels, 1 : labels + 1].argmax(dim=1).tolist() == [*range(labels)]


def test_labels_begin_at_the_heights_where_they_occur(beginner):
    network = beginner.single
    heights = network.encoder.out.bias.view(network.grid.shape[2], 20)
    ground, house = heights[0], heights[3]  # from -1.0 m to 0.6 m, and from 3.8 m
    assert ground[OCC3D.id("driveable_surface")] > ground[OCC3D.free]
    assert house[OCC3D.id("manmade")] > house[OCC3D.id("car")]
    assert house[OCC3D.free] > house[OCC3D.id("driveable_surface")]


def test_a_network_with_fewer_channels_than_labels_begins_as_it_was(config):
    network = build_network(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    begin_with_evidence(network, semantics_layer(network, len(OCC3D.labels)), config, world_class_weights())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_rare_classes_count_as_much_as_the_stage_says(config, cache, tmp_path):
    assert torch.equal(world_class_weights(rarity=0.0), torch.ones(len(OCC3D.labels)))
    first = {}
    for rarity in (0.25, 0.75):
        stage = dataclasses.replace(FRAMES, steps=1, losses=LossWeights(rarity=rarity))
        trainer = Trainer(
            dataclasses.replace(RECIPE, stages=(stage,)), tmp_path / str(rarity), cache=cache, config=config
        )
        # The same network: what it begins with follows the stage as well.
        trainer.network.classifier[-1].bias.data.zero_()
        assert trainer.run()
        first[rarity] = trainer.first_losses
    assert first[0.25]["jaccard"] == first[0.75]["jaccard"]
    assert first[0.25]["cross_entropy"] != first[0.75]["cross_entropy"]


@pytest.mark.parametrize(("steps", "chunks"), [(CHUNK * 12, 1), (CHUNK * 12 + 1, 2)])
def test_no_sequences_are_drawn_that_a_stage_will_not_come_to(config, tmp_path, steps, chunks):
    stage = dataclasses.replace(FRAMES, steps=steps, batch=1)
    recipe = dataclasses.replace(RECIPE, sequences=200, frames=12, stages=(stage,))
    by_steps = Trainer(recipe, tmp_path, config=config)
    assert by_steps._coming_shuffled(stage) == [*range(chunks * CHUNK)]
    by_clock = Trainer(recipe, tmp_path, minutes=2.0, config=config)
    assert by_clock._coming_shuffled(stage) == [*range(CHUNK)]  # nobody knows yet
    by_clock.step, by_clock.seconds = steps // 2, 60.0 * (steps // 2) / (steps / 2)
    assert by_clock._coming_shuffled(stage) == [*range(chunks * CHUNK)]


def test_the_layer_on_what_images_show_is_trained_but_not_in_the_weights(config, cache, tmp_path):
    stage = dataclasses.replace(FRAMES, steps=2, losses=LossWeights(semantics=1.0))
    trainer = Trainer(dataclasses.replace(RECIPE, stages=(stage,)), tmp_path, cache=cache, config=config)
    before = trainer.semantics.weight.clone()
    assert trainer.run()
    assert not torch.equal(trainer.semantics.weight, before)
    assert not [name for name in load_file(tmp_path / WEIGHTS) if "semantics" in name]


def test_the_rate_rises_and_falls():
    assert learning_rate(FRAMES, 0.0) < 0.03 * FRAMES.rate
    assert learning_rate(FRAMES, FRAMES.warmup) == pytest.approx(FRAMES.rate)
    assert learning_rate(FRAMES, 1.0) == pytest.approx(0.02 * FRAMES.rate)


def test_each_seed_has_drives_of_its_own_and_none_of_them_is_held_out(config, tmp_path):
    ranges = []
    for seed in (0, 1, 2):
        trainer = Trainer(dataclasses.replace(RECIPE, seed=seed), tmp_path / str(seed), config=config)
        first = trainer.loader._sequences.first_seed
        ranges.append(range(first, first + MOST_SEQUENCES))
    assert ranges[0].start >= TRAINING_SEEDS
    assert ranges[0].stop <= ranges[1].start
    assert ranges[1].stop <= ranges[2].start
    with pytest.raises(ValueError, match="sequences"):
        dataclasses.replace(RECIPE, sequences=MOST_SEQUENCES + 1)


@pytest.mark.parametrize(
    ("minutes", "stages"),
    [
        (240.0, ["beginning", "frames", "streams"]),
        (20.0, ["beginning", "frames"]),
        (4.0, ["beginning", "frames"]),
        (2.0, ["beginning"]),
    ],
)
def test_stages_whose_time_is_too_short_leave_it_to_the_others(minutes, stages):
    recipe = load_recipe("gdfusion-small")
    seconds = stage_seconds(recipe.stages, minutes)
    assert [stage.name for stage, own in zip(recipe.stages, seconds, strict=True) if own] == stages
    assert sum(seconds) == pytest.approx(60 * minutes)
    shares = {own / stage.share for stage, own in zip(recipe.stages, seconds, strict=True) if own}
    assert max(shares) == pytest.approx(min(shares))


def test_one_stage_is_done_however_short_the_time():
    stages = [dataclasses.replace(stage, least_minutes=1.0) for stage in (FRAMES, STREAMS)]
    assert stage_seconds(tuple(stages), 0.5) == (30.0, 0.0)


def test_a_training_without_a_stage_ends_and_says_which_stage_its_weights_are_of(config, cache, tmp_path):
    recipe = dataclasses.replace(RECIPE, stages=(FRAMES, dataclasses.replace(STREAMS, least_minutes=1.0)))
    assert Trainer(recipe, tmp_path, minutes=0.01, cache=cache, config=config).run()
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert file.metadata()["stage"] == "frames"
    assert not (tmp_path / "streams.safetensors").exists()


def test_every_frame_of_a_chunk_comes_once():
    seen = {single_frame(k, sequences=4, frames=3, seed=0) for k in range(12)}
    assert len(seen) == 12


def test_an_unknown_recipe_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match="gdfusion-small"):
        load_recipe("gdfusion-tiny")


def test_waiting_for_sequences_is_told_apart_from_training():
    class Slow:
        def __getitem__(self, number: int) -> int:
            time.sleep(0.05)
            return number

    loader = Loader(Slow(), workers=0)  # type: ignore[arg-type]
    assert loader[3] == loader[3] == 3
    once = loader.waited
    assert once >= 0.05
    assert loader[3] == 3
    assert loader.waited == once


@pytest.mark.skipif(not hasattr(os, "nice"), reason="the system knows no niceness")
def test_what_draws_sequences_ahead_gives_way_to_the_training():
    # What is drawn is the worker's niceness.
    loader = Loader(SimpleNamespace(__getitem__=os.nice), workers=1)  # type: ignore[arg-type]
    loader.expect([0])
    try:
        assert loader[0] > os.nice(0)
    finally:
        loader.close()


def test_a_loss_that_is_not_finite_ends_the_training_in_one_line(config, cache, tmp_path):
    stage = Stage("one", False, 2, 1.0, batch=1, rate=0.001, losses=LossWeights(depth=float("nan")))
    with pytest.raises(UserError, match="not finite"):
        Trainer(Recipe("bad", "world", 2, 2, (stage,)), tmp_path, cache=cache, config=config).run()
