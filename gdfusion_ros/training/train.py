"""The training loop: stages, streams with detached state, moving average, checkpoints, curves, many processes."""

from __future__ import annotations

import csv
import logging
import os
import time
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from tqdm import tqdm

from gdfusion_ros.errors import UserError
from gdfusion_ros.model.config import ModelConfig, load_config
from gdfusion_ros.model.inference import has_bfloat16
from gdfusion_ros.model.model import build_network
from gdfusion_ros.model.network import NetworkInput
from gdfusion_ros.model.state import TemporalState
from gdfusion_ros.model.weights import fill_weights, write_weights
from gdfusion_ros.sources.world import NUSCENES, TRAINING_SEEDS
from gdfusion_ros.training.batch import Targets, collate
from gdfusion_ros.training.beginning import (
    begin_history,
    begin_with_evidence,
    begin_with_shares,
    semantics_layer,
    without_history,
)
from gdfusion_ros.training.checkpoint import Checkpoint
from gdfusion_ros.training.data import WorldSequences
from gdfusion_ros.training.lidar import ego_grid
from gdfusion_ros.training.losses import (
    depth_loss,
    flow_loss,
    occupancy_loss,
    semantics_loss,
    world_class_weights,
)
from gdfusion_ros.training.nuscenes import NuScenesSequences
from gdfusion_ros.training.optimizer import learning_rate, optimizer
from gdfusion_ros.training.order import CHUNK, Loader, single_frame, stream_frame
from gdfusion_ros.training.precision import compute_in_bfloat16
from gdfusion_ros.training.recipe import MOST_SEQUENCES, LossWeights, Recipe, Stage, stage_seconds

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"
CURVES = "curves.csv"
_CURVE_STEPS = 20
_CHECKPOINT_SECONDS = 120.0
_LOSSES = ("cross_entropy", "jaccard", "depth", "flow", "semantics")


class Trainer:
    """Trains one network by a recipe into a folder: ``checkpoint.pt``, ``weights.safetensors``, ``curves.csv``, and
    the weights at the end of each stage under the stage's name."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        minutes: float | None = None,
        cache: Path | None = None,
        workers: int = 0,
        resume: bool = False,
        config: ModelConfig | None = None,
        nuscenes: NuScenesSequences | None = None,
    ) -> None:
        """``minutes`` replaces the stages' steps by their share of a time, in which waiting for data does not count;
        stages for which too little would be left are left out.
        ``config`` replaces the recipe's model. ``nuscenes`` are the sequences of a recipe whose data is ``folder``.
        """
        self.recipe = recipe
        self.out = out
        self.stage_seconds = None if minutes is None else stage_seconds(recipe.stages, minutes)
        self.config = config or load_config(recipe.model)
        self.rank, self.processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.processes > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")
        torch.manual_seed(recipe.seed)
        self.network = build_network(self.config)
        if recipe.weights:
            fill_weights(self.network, self.config, recipe.weights)
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d):  # a third faster on a CPU
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.semantics = semantics_layer(self.network, len(self.config.labels.labels.labels))
        self.single = without_history(self.network, self.config)
        if recipe.precision == "bf16":
            if has_bfloat16(torch.device("cpu")):
                compute_in_bfloat16(self.network)
            else:
                log.warning(
                    "this processor imitates bfloat16, ten times slower than float32: float32 is taken"
                )
        self.stage = self.step = 0
        self.seconds = 0.0
        self.state: TemporalState | None = None
        self._stopping = False
        self.first_losses: dict[str, float] | None = None
        self._optimizer_entries: dict | None = None  # type: ignore[type-arg]
        self.loader = self._loader(nuscenes, cache, workers)
        self.of_world = nuscenes is None
        if self.of_world and not recipe.weights:
            begin_with_shares(self.network, self.config, self._class_weights(recipe.stages[0].losses.rarity))
            begin_with_evidence(self.network, self.semantics, self.config, self._class_weights())
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        out.mkdir(parents=True, exist_ok=True)
        if resume and (out / CHECKPOINT).is_file():
            self._restore(Checkpoint.load(out / CHECKPOINT))

    def _loader(self, nuscenes: NuScenesSequences | None, cache: Path | None, workers: int) -> Loader:
        if nuscenes is not None:
            # A scene of the large networks' data is gigabytes: only those that are streamed just now are held.
            shuffled = any(not stage.history for stage in self.recipe.stages)
            streams = max(stage.batch for stage in self.recipe.stages)
            return Loader(nuscenes, 0, CHUNK + 1 if shuffled else streams)
        size = (self.config.image.height, self.config.image.width)
        grid = ego_grid(self.config.grid.output)
        try:
            # A network may know its cameras by their place in the list.
            rig = NUSCENES.with_cameras(self.config.cameras)
        except ValueError as error:
            raise UserError(f"{self.config.name} cannot be trained on the made-up world: {error}") from error
        r = self.recipe
        first = TRAINING_SEEDS + r.seed * MOST_SEQUENCES
        return Loader(WorldSequences(r.sequences, r.frames, size, cache, grid, first, rig), workers)

    def _class_weights(self, rarity: float = LossWeights.rarity) -> Tensor:
        """Cross-entropy weights by label."""
        labels = self.config.labels.labels
        # The published networks' cross-entropy has no weights; the world's rare classes would be lost without.
        return world_class_weights(labels, rarity) if self.of_world else torch.ones(len(labels.labels))

    def stop(self) -> None:
        """Let the training end after the step it is in. Signal handlers may call this."""
        self._stopping = True

    def run(self, stop_after: int | None = None) -> bool:
        """Train to the recipe's end, for ``stop_after`` steps, or until ``stop``; a checkpoint is left in any case.

        Gives whether the recipe was done to its end.
        """
        budget = stop_after
        try:
            while self.stage < len(self.recipe.stages):
                if self._left_out(self.stage):
                    log.warning("stage %s is left out: too little time", self.recipe.stages[self.stage].name)
                    self.stage += 1
                    continue
                done = self._run_stage(self.recipe.stages[self.stage], budget)
                if budget is not None:
                    budget -= done
                    if budget <= 0:
                        break
                if self._stopping:
                    break
        finally:
            self.loader.close()
        self.save()
        return self.stage == len(self.recipe.stages)

    def _run_stage(self, stage: Stage, budget: int | None) -> int:
        """Train in a stage until its end or for ``budget`` steps; gives the steps done."""
        if stage.history and self.step == 0:
            begin_history(self.network)
        network = self.network if stage.history else self.single
        network.train()
        if stage.freeze_norm:
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self.optimizer = optimizer(self._trained(network), stage, self.recipe.weight_decay)
        if self._optimizer_entries is not None:
            self.optimizer.load_state_dict(self._optimizer_entries)
            self._optimizer_entries = None
        sums, counted, done = dict.fromkeys(_LOSSES, 0.0), 0, 0
        last_save = last = time.monotonic()
        bar = tqdm(
            total=stage.steps, initial=self.step, desc=stage.name, disable=self.rank > 0, mininterval=5
        )
        while self._progress(stage) < 1.0 and (budget is None or done < budget) and not self._stopping:
            rate = learning_rate(stage, self._progress(stage))
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            waited = self.loader.waited
            losses = self._train_step(network, stage)
            self.first_losses = self.first_losses or losses
            self.step, done, counted = self.step + 1, done + 1, counted + 1
            now = time.monotonic()
            # A short training would otherwise be over before its first sequences are drawn.
            self.seconds, last = self.seconds + now - last - (self.loader.waited - waited), now
            for name in _LOSSES:
                sums[name] += losses[name]
            bar.update()
            if self.step % _CURVE_STEPS == 0:
                mean = {name: value / counted for name, value in sums.items()}
                self._record(stage, rate, mean)
                bar.set_postfix({name: f"{value:.3f}" for name, value in mean.items()}, refresh=False)
                sums, counted = dict.fromkeys(_LOSSES, 0.0), 0
            if now - last_save > _CHECKPOINT_SECONDS:
                self.save()
                last_save = now
        bar.close()
        if self._progress(stage) >= 1.0:
            self._write_weights(self.out / f"{stage.name}.safetensors", stage)
            self.stage, self.step, self.seconds, self.state = self.stage + 1, 0, 0.0, None
            del self.optimizer
        return done

    def _left_out(self, stage: int) -> bool:
        return self.stage_seconds is not None and not self.stage_seconds[stage]

    def _progress(self, stage: Stage) -> float:
        if self.stage_seconds is None:
            return self.step / stage.steps
        progress = self.seconds / self.stage_seconds[self.stage]
        if self.processes > 1:  # all must see the same time, or one would wait for the others for ever
            shared = torch.tensor(progress)
            distributed.broadcast(shared, 0)
            progress = float(shared)
        return progress

    def _batch(self, stage: Stage) -> tuple[NetworkInput, Targets, bool]:
        """The step's frames, and whether they begin sequences."""
        r, sequences = self.recipe, len(self.loader)
        slots = stage.batch * self.processes
        mine = range(self.rank * stage.batch, (self.rank + 1) * stage.batch)
        if stage.history:
            ahead = r.frames
            where = [stream_frame(self.step, slot, slots, sequences, r.frames) for slot in mine]
            coming = [stream_frame(self.step + ahead, slot, slots, sequences, r.frames) for slot in mine]
        else:
            where = [single_frame(self.step * slots + slot, sequences, r.frames, r.seed) for slot in mine]
            coming = [(number, 0) for number in self._coming_shuffled(stage)]
        self.loader.expect(number for number, _ in coming)
        first = not stage.history or where[0][1] == 0
        stride = self.config.image.height // self._depth_rows
        frame, targets = collate(
            [(self.loader[n], i) for n, i in where],
            self.config,
            stride,
            first,
            stage.losses.unseen,
            stage.losses.semantics > 0,
        )
        return frame, targets, first

    def _coming_shuffled(self, stage: Stage) -> list[int]:
        """Sequences of this step's chunk and the next, whole: a chunk's first step may want its last sequence.

        What the stage will not come to is not drawn, which would take a core from a short training.
        """
        sequences, each = len(self.loader), stage.batch * self.processes
        steps = float(stage.steps)
        if self.stage_seconds is not None:
            steps = self.step * self.stage_seconds[self.stage] / self.seconds if self.seconds else 0.0
        frames = min(CHUNK, sequences) * self.recipe.frames
        chunk = self.step * each // frames
        chunks = 2 if steps * each > (chunk + 1) * frames else 1
        return [(chunk * CHUNK + i) % sequences for i in range(chunks * CHUNK)]

    @property
    def _depth_rows(self) -> int:
        """Rows of the network's depth map."""
        return self.config.image.height // getattr(self.network, "depth_stride", 16)

    def _train_step(self, network: nn.Module, stage: Stage) -> dict[str, float]:
        frame, targets, first = self._batch(stage)
        output, state = network(frame, None if first else self.state)
        self.state = state if stage.history else None
        losses = {}
        free = self.config.labels.labels.free
        losses["cross_entropy"], losses["jaccard"] = occupancy_loss(
            output.logits, targets.labels, targets.weight, self._class_weights(stage.losses.rarity), free
        )
        zero = output.logits.new_zeros(())
        losses["depth"] = (
            zero if output.depth is None or targets.depth is None else depth_loss(output.depth, targets.depth)
        )
        losses["flow"] = (
            zero
            if output.velocity is None
            else flow_loss(output.velocity, targets.velocity, targets.labels, targets.weight, free)
        )
        losses["semantics"] = zero
        if targets.semantics is not None and self.semantics is not None and output.context is not None:
            logits = self.semantics(output.context)
            losses["semantics"] = semantics_loss(logits, targets.semantics, self._class_weights())
        total = sum((getattr(stage.losses, name) * losses[name] for name in _LOSSES), zero)
        if not bool(total.detach().isfinite()):
            raise UserError(
                f"stage {stage.name}, step {self.step}: the loss is not finite; give a lower rate and --resume"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = list(self._trained(network).values())
        if self.processes > 1:
            _average_over_processes([p.grad for p in parameters if p.grad is not None])
        nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.optimizer.step()
        if self.processes > 1 and not stage.freeze_norm:
            _average_over_processes([b for b in network.buffers() if b.is_floating_point()])
        self._average()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _trained(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """Everything that a step changes, by name."""
        extra = {} if self.semantics is None else dict(self.semantics.named_parameters(prefix="semantics"))
        return {**dict(network.named_parameters()), **extra}

    @torch.no_grad()
    def _average(self) -> None:
        # A young average forgets faster, or the stage's beginning would stay in it for long.
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _record(self, stage: Stage, rate: float, losses: dict[str, float]) -> None:
        if self.rank:
            return
        path = self.out / CURVES
        fresh = not path.is_file()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["stage", "step", "seconds", "rate", *_LOSSES])
            writer.writerow(
                [
                    stage.name,
                    self.step,
                    round(self.seconds, 1),
                    f"{rate:.3g}",
                    *(f"{losses[n]:.4f}" for n in _LOSSES),
                ]
            )

    def save(self) -> None:
        """Write checkpoint and averaged weights."""
        if self.rank:
            return
        inside = hasattr(self, "optimizer")
        Checkpoint(
            stage=self.stage,
            step=self.step,
            seconds=self.seconds,
            network=self.network.state_dict(),
            average=self.average,
            semantics={} if self.semantics is None else self.semantics.state_dict(),
            optimizer=self.optimizer.state_dict() if inside else None,
            temporal={} if self.state is None else dict(self.state.tensors),
            temporal_frames=0 if self.state is None else self.state.frames,
        ).save(self.out / CHECKPOINT)
        begun = [s for i, s in enumerate(self.recipe.stages[: self.stage + 1]) if not self._left_out(i)]
        self._write_weights(self.out / WEIGHTS, begun[-1])

    def _write_weights(self, path: Path, stage: Stage) -> None:
        if self.rank:
            return
        averaged = build_network(self.config)
        averaged.load_state_dict(self.average)
        write_weights(
            averaged, path, {"model": self.config.name, "stage": stage.name, "step": str(self.step)}
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.stage, self.step, self.seconds = checkpoint.stage, checkpoint.step, checkpoint.seconds
        self.network.load_state_dict(dict(checkpoint.network))
        for name, value in checkpoint.average.items():
            self.average[name].copy_(value)
        if self.semantics is not None:
            self.semantics.load_state_dict(dict(checkpoint.semantics))
        self._optimizer_entries = None if checkpoint.optimizer is None else dict(checkpoint.optimizer)
        if checkpoint.temporal_frames:
            self.state = TemporalState(checkpoint.temporal_frames, checkpoint.temporal)


def _average_over_processes(tensors: list[Tensor]) -> None:
    flat = torch.cat([t.reshape(-1) for t in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    offset = 0
    for t in tensors:
        t.copy_(flat[offset : offset + t.numel()].view_as(t))
        offset += t.numel()
