"""A training as a plain loop: optimiser, averages, checkpoints, and a log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agebody.checks import expect_choice, read_count, read_nonnegative, read_number, read_positive
from agebody.files import first_line, replacing
from agebody.losses import Objective, PoseDiscriminator
from agebody.nets import Regressor
from agebody.pipelines.outputs import make_output
from agebody.pipelines.train.data import Batch, TrainingData, batches
from agebody.pipelines.train.step import Adversary, RealBodies, predicted_values

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
_CADENCE = ("steps", "workers", "log_every", "save_every")
"""Settings that may change when a training is resumed."""


class TrainingError(RuntimeError):
    """A training cannot continue."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training; by default those of HMR2's public code, which clips and averages nothing."""

    steps: int
    batch_size: int = 48
    """People per process and step."""
    learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    warmup: int = 0
    """Steps over which the learning rate rises to its value."""
    decay: Literal["none", "cosine"] = "none"
    """Whether the learning rate falls to 0 at the last step."""
    clip_norm: float | None = 1.0
    """Largest norm of all gradients together."""
    ema: float | None = 0.999
    """Share of the averaged weights that a step keeps; None for no average."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the network; the body and the losses have single precision."""
    discriminator_rate: float | None = None
    """Learning rate of the discriminator; None is that of the network."""
    workers: int = 0
    """Processes that read images, per process that trains."""
    log_every: int = 50
    save_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check all numbers."""
        for name in ("steps", "batch_size", "log_every", "save_every"):
            read_count(name, getattr(self, name), least=1)
        for name in ("warmup", "workers", "seed"):
            read_count(name, getattr(self, name))
        read_nonnegative("weight_decay", self.weight_decay)
        for name in ("learning_rate", "clip_norm", "discriminator_rate"):
            if getattr(self, name) is not None or name == "learning_rate":
                read_positive(name, getattr(self, name))
        if self.ema is not None:
            read_number("ema", self.ema, "a share from 0 to below 1", 0, math.nextafter(1, 0))
        for name, known in (("decay", ("none", "cosine")), ("precision", tuple(_PRECISIONS))):
            expect_choice(name, getattr(self, name), known)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, as a factor."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * (0.5 + 0.5 * math.cos(math.pi * step / self.steps) if self.decay == "cosine" else 1.0)


_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trained(NamedTuple):
    """The result of a training."""

    steps: int
    """Number of steps in all."""
    terms: dict[str, float]
    """Of the last step: the objective's terms, and their sum ``total``."""
    averaged: dict[str, Tensor] | None
    """The averaged weights: ``network.load_state_dict(trained.averaged)``; None without an average."""
    checkpoint: Path


def train(
    network: Regressor,
    data: TrainingData,
    objective: Objective,
    folder: str | PathLike[str],
    settings: TrainingSettings,
    *,
    discriminator: PoseDiscriminator | None = None,
    real: RealBodies | None = None,
    condition: Callable[[Batch], Tensor] | None = None,
    validate: Callable[[Regressor], Mapping[str, float]] | None = None,
    progress: Callable[[str], None] = print,
) -> Trained:
    """Train a network, or resume where ``folder`` has a checkpoint.

    On the same machine, a resumed training gives bitwise the weights of one that was never stopped: people
    and random numbers of a step are functions of the seed and of the step's number. In several processes
    (``torchrun``) each has its part of a step's people, and gradients are averaged; the first one writes.

    Args:
        network: on its device.
        data: people.
        objective: the loss; its term "adversarial" needs a discriminator.
        folder: for ``checkpoint.pt`` and ``log.jsonl``, with a line of JSON for each line of the log; it is
            made where it is missing. No array of the body is in them.
        settings: how.
        discriminator: learns beside the network from ``real``, with an optimiser of its own.
        real: recorded people.
        condition: what the head takes beside the features, such as
            ``lambda batch: box_condition(batch.box, batch.camera)``.
        validate: called with the network, with averaged weights and in evaluation mode, before a checkpoint
            is written; its numbers are in the log.
        progress: called with the lines of the log.

    Raises:
        TrainingError: the loss is not finite; the checkpoint is damaged, or of another network or other
            settings.
        OSError: a file cannot be read or written.
    """
    needs = "adversarial" in objective.weights
    if (discriminator is None) != (real is None) or needs != (discriminator is not None):
        raise ValueError(
            'discriminator, real: expected both where the objective has the term "adversarial", else none; '
            'leave the term out with objective.without("adversarial")'
        )
    loop = _Loop(network, data, objective, Path(folder), settings, discriminator, real)
    with torch.random.fork_rng(loop.cuda):
        return loop.run(condition, validate, progress)


class _Loop:
    """The state of a training."""

    def __init__(
        self,
        network: Regressor,
        data: TrainingData,
        objective: Objective,
        folder: Path,
        settings: TrainingSettings,
        discriminator: PoseDiscriminator | None,
        real: RealBodies | None,
    ) -> None:
        self.network, self.data, self.settings = network, data, settings
        self.device = next(network.parameters()).device
        self.cuda = [self.device] if self.device.type == "cuda" else []
        self.objective = objective.to(self.device)
        spread = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if spread else 0
        self.processes = torch.distributed.get_world_size() if spread else 1

        self.parameters = [p for p in network.parameters() if p.requires_grad]
        decay = settings.weight_decay
        self.optimizer = torch.optim.AdamW(self.parameters, settings.learning_rate, weight_decay=decay)
        self.rates: dict[torch.optim.Optimizer, float] = {self.optimizer: settings.learning_rate}
        half = settings.precision == "float16"
        if half and self.device.type != "cuda":
            raise ValueError('precision: "float16" needs a GPU, for it scales the loss; use "bfloat16"')
        self.scaler = torch.amp.GradScaler("cuda", enabled=half)  # pyright: ignore
        self.average = None
        if settings.ema is not None:
            self.average = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.adversary = None
        if discriminator is not None and real is not None:
            self.adversary = Adversary(discriminator.to(self.device), real, network.body.num_betas)
            rate = settings.discriminator_rate or settings.learning_rate
            weights = discriminator.parameters()
            self.discriminator_optimizer = torch.optim.AdamW(weights, rate, weight_decay=decay)
            self.rates[self.discriminator_optimizer] = rate
        self.folder, self.done = folder, 0
        if self.rank == 0:
            make_output(folder, "a training")
        if spread:
            torch.distributed.barrier()
        if (folder / CHECKPOINT).exists():
            self._load(folder / CHECKPOINT)
        elif spread:
            for module in (network, discriminator):
                for value in () if module is None else module.state_dict().values():
                    torch.distributed.broadcast(value, 0)

    def run(
        self,
        condition: Callable[[Batch], Tensor] | None,
        validate: Callable[[Regressor], Mapping[str, float]] | None,
        progress: Callable[[str], None],
    ) -> Trained:
        s, left = self.settings, self.settings.steps - self.done
        terms: dict[str, float] = {}
        if self.rank == 0:
            self._cut_log()
        rows = batches(
            self.data,
            s.batch_size,
            first=self.done,
            steps=max(left, 0),
            rank=self.rank,
            processes=self.processes,
            workers=s.workers,
        )
        self.network.train()
        began, before = time.perf_counter(), self.done
        for batch in rows:
            torch.manual_seed(_mix(s.seed, self.done, self.rank))
            values, norm = self._step(batch.to(self.device), condition)
            self.done += 1
            last = self.done == s.steps
            if last or self.done % s.log_every == 0:
                terms = {name: float(value) for name, value in values.items()}
                spent = time.perf_counter() - began
                speed = (self.done - before) * s.batch_size * self.processes / max(spent, 1e-9)
                began, before = time.perf_counter(), self.done
                self._log(terms, {"gradient": float(norm), "people_per_second": round(speed, 1)}, progress)
            if last or self.done % s.save_every == 0:
                self._save(validate, progress)
        return Trained(self.done, terms, self.average, self.folder / CHECKPOINT)

    def _step(
        self, batch: Batch, condition: Callable[[Batch], Tensor] | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        s = self.settings
        kind = _PRECISIONS[s.precision]
        for optimizer, rate in self.rates.items():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * s.rate(self.done)
        with nullcontext() if kind is None else torch.autocast(self.device.type, kind):
            given = None if condition is None else condition(batch)
            prediction = self.network(batch.images, given)
        predicted = predicted_values(prediction, self.network.body, batch.box, batch.camera)
        if self.adversary is not None:
            predicted["scores"] = self.adversary.scores(predicted)
        report = self.objective(predicted, batch.target)
        values = {**report.terms, "total": report.total}
        if self.adversary is not None:
            values["discriminator"] = self.adversary.loss(predicted)
        self._check(values, batch)
        self.scaler.scale(report.total).backward()
        self._share_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        limit = math.inf if s.clip_norm is None else s.clip_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        if not self.scaler.is_enabled():  # which leaves out steps of overflow by itself
            self._check({"gradient": norm}, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.adversary is not None:
            values["discriminator"].backward()
            self._share_gradients([*self.adversary.discriminator.parameters()])
            self.discriminator_optimizer.step()
        if self.average is not None:
            self._mean(s.ema or 0.0)
        return {name: value.detach() for name, value in values.items()}, norm

    def _share_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over processes, as `DistributedDataParallel` does, after the backward pass.

        Unlike that wrapper, it needs no list of the outputs that the objective uses.
        """
        if self.processes == 1:
            return
        used = torch.tensor([p.grad is not None for p in parameters], device=self.device, dtype=torch.int32)
        torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        works = []
        for parameter, some in zip(parameters, used.tolist(), strict=True):
            if some:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad /= self.processes
                works.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
        for work in works:
            work.wait()

    def _mean(self, keep: float) -> None:
        assert self.average is not None
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - keep)
                else:
                    self.average[name].copy_(value)

    def _check(self, values: Mapping[str, Tensor], batch: Batch) -> None:
        finite = torch.stack([value.detach().isfinite().all() for value in values.values()]).tolist()
        wrong = [name for name, good in zip(values, finite, strict=True) if not good]
        if wrong:
            raise TrainingError(
                f"step {self.done + 1}: not finite: {', '.join(wrong)}; no weight was changed by it. Its "
                f"people are rows {batch.rows.tolist()[:4]}... of the data; try a smaller learning_rate, or "
                "another clip_norm"
            )

    def _log(self, terms: dict[str, float], more: dict[str, float], progress: Callable[[str], None]) -> None:
        if self.rank:
            return
        line = {"step": self.done, **terms, **more}
        shown = " ".join(f"{name} {value:.4g}" for name, value in line.items() if name != "step")
        progress(f"step {self.done}/{self.settings.steps}: {shown}")
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _cut_log(self) -> None:
        """Remove what a training wrote after the checkpoint from which it is resumed."""
        path = self.folder / LOG
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= self.done]
        if kept != lines:
            with replacing(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def _save(
        self, validate: Callable[[Regressor], Mapping[str, float]] | None, progress: Callable[[str], None]
    ) -> None:
        if self.rank == 0:
            if validate is not None:
                self._validate(validate, progress)
            with replacing(self.folder / CHECKPOINT) as temporary:
                torch.save(self._state(), temporary)
        if self.processes > 1:
            torch.distributed.barrier()

    def _validate(
        self, validate: Callable[[Regressor], Mapping[str, float]], progress: Callable[[str], None]
    ) -> None:
        own = {name: value.clone() for name, value in self.network.state_dict().items()}
        try:
            if self.average is not None:
                self.network.load_state_dict(self.average)
            self.network.eval()
            with torch.no_grad(), torch.random.fork_rng(self.cuda):
                self._log(
                    {}, {name: float(value) for name, value in validate(self.network).items()}, progress
                )
        finally:
            self.network.load_state_dict(own)
            self.network.train()

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.done,
            "settings": self._about(),
            "state_dict": self.network.state_dict(),
            "averaged": self.average,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "discriminator": self.adversary and self.adversary.discriminator.state_dict(),
            "discriminator_optimizer": self.adversary and self.discriminator_optimizer.state_dict(),
        }

    def _about(self) -> dict[str, Any]:
        """Return what must be the same in a training that is resumed."""
        decisive = {name: value for name, value in asdict(self.settings).items() if name not in _CADENCE}
        if self.settings.decay != "none":
            decisive["steps"] = self.settings.steps
        return decisive | {
            "data": self.data.fingerprint(),
            "objective": self.objective.extra_repr(),
            "processes": self.processes,
        }

    def _load(self, path: Path) -> None:
        try:
            found = torch.load(path, map_location=self.device, weights_only=True)
            stated = found["settings"]
        except Exception as error:
            raise TrainingError(
                f"{path}: not a checkpoint of a training, or damaged: {first_line(error)[:200]}"
            ) from None
        now = self._about()
        other = [
            f"{name} ({stated.get(name)}, now {now[name]})" for name in now if stated.get(name) != now[name]
        ]
        if other:
            raise TrainingError(
                f"{path}: the training had other settings: {', '.join(other)}; use another folder, or the "
                "same settings"
            )
        try:
            self.network.load_state_dict(found["state_dict"])
            self.average = found["averaged"]
            self.optimizer.load_state_dict(found["optimizer"])
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(found["scaler"])
            if self.adversary is not None:
                self.adversary.discriminator.load_state_dict(found["discriminator"])
                self.discriminator_optimizer.load_state_dict(found["discriminator_optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(f"{path}: of another network: {' '.join(str(error).split())[:300]}") from None
        self.done = int(found["step"])


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _mix(*numbers: int) -> int:
    """Return one seed for several numbers, 0 or more."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
