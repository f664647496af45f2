"""The only training loop and the only optimizer step.

It knows a model, an objective and a loader that is addressed by step; it does not know pictures,
foreign formats or how a model is split. All that it needs to go on after a kill is in the
checkpoint: weights, Adam's moments, the step, the best validation and when it was.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch import Tensor

from igpt.checkpoint import (
    RunDirectory,
    TrainingState,
    load_into,
    optimizer_tensors,
    restore_optimizer,
)
from igpt.config import TrainConfig, UserError
from igpt.data import Batch, Loader, prefetch
from igpt.device import autocast, compute_dtype, reuse_memory
from igpt.model import ImageGPT
from igpt.monitor import Monitor
from igpt.objectives import Objective


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of step 0, 1, …: linear warm-up, then cosine to zero, or constant (section 3.4)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Validation:
    """What the model as it is now is worth on validation data."""

    metrics: dict[str, float]  # for the log
    criterion: float  # what is to be small: the best model is the one with the smallest


@dataclass(frozen=True)
class Callbacks:
    """What the loop calls and does not know the inside of."""

    validate: Callable[[], Validation]
    save_best: Callable[[], None]  # keep the model as it is now


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int  # optimizer steps done
    best: float | None  # the smallest criterion
    signal: signal.Signals | None = None  # that stopped it before its last step


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose learning rate is `scale` times the schedule's."""

    parameters: list[torch.nn.Parameter]
    scale: float = 1.0


@dataclass
class Stop:
    """Set by SIGTERM or SIGINT; the loop then saves and returns after the step it is in."""

    signal: signal.Signals | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Catch the signals while training; a second one acts as it would have without us."""
        previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

        def catch(number: int, _frame: FrameType | None) -> None:
            self.signal = signal.Signals(number)
            for caught, handler in previous.items():
                signal.signal(caught, handler)

        for caught in previous:
            signal.signal(caught, catch)
        try:
            yield
        finally:
            for caught, handler in previous.items():
                signal.signal(caught, handler)


@dataclass
class Trainer:
    """One run from its current step to its last."""

    model: ImageGPT
    objective: Objective
    loader: Loader
    config: TrainConfig
    run: RunDirectory
    callbacks: Callbacks
    groups: list[ParameterGroup] | None = None  # None: all parameters, at the schedule's rate
    step: int = 0
    best: float | None = None
    best_step: int = 0
    _pending: list[tuple[int, float, Tensor]] = field(default_factory=list)  # step, rate, loss

    def __post_init__(self) -> None:
        reuse_memory()
        self.device = self.model.wte.device
        self.dtype = compute_dtype(self.config.precision, self.device)
        groups = self.groups or [ParameterGroup(list(self.model.parameters()))]
        self.optimizer = torch.optim.Adam(
            [{"params": group.parameters, "scale": group.scale} for group in groups],
            lr=self.config.lr,
            betas=self.config.betas,
            fused=True,
        )
        # Dynamo would retrace for every new model object, hence the closure over one.
        self._values = torch.compile(self._objective_values, disable=not self.config.compile)

    def _objective_values(self, *inputs: Tensor) -> Tensor:
        return self.objective(self.model, *inputs)

    def resume(self, state: TrainingState) -> None:
        """Go on from a checkpoint; UserError when it is another model's."""
        load_into(self.model, state.model, self.run.checkpoints)
        restore_optimizer(self.model, self.optimizer, state.optimizer)
        self.step, self.best, self.best_step = state.step, state.best, state.best_step

    def train(self, monitor: Monitor) -> Outcome:
        """Run to the last step, until validation has not improved for long, or until a signal.

        Raises UserError when the loss is not finite.
        """
        stop = Stop()
        with stop.on_signals():
            clock, since = time.monotonic(), self.step
            last = self.step if self._exhausted() else self.config.steps
            for batch in prefetch(self.loader, range(self.step, last)):
                self._optimizer_step(batch)
                if self._due(self.config.log_every):
                    row = self._log_row()
                    now = time.monotonic()
                    pictures = (self.step - since) * self.config.batch_size
                    monitor.log({**row, "pictures_per_second": pictures / (now - clock)})
                    clock, since = now, self.step
                if self._due(self.config.eval_every):
                    monitor.log({"step": self.step, **self._validate()})
                    clock, since = time.monotonic(), self.step
                ending = bool(stop.signal) or self._exhausted()
                if ending or self._due(self.config.checkpoint_every):
                    self._save()
                if ending:
                    break
        return Outcome(self.step, self.best, stop.signal)

    def _exhausted(self) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        patience, every = self.config.patience, self.config.eval_every
        return patience is not None and self.step - self.best_step >= patience * every

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _optimizer_step(self, batch: Batch) -> None:
        """One step of Adam on the mean objective of the batch, over its micro-batches."""
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        total = torch.zeros((), device=self.device)
        inputs = [x.to(self.device, non_blocking=True) for x in self.objective.inputs(batch)]
        micro = self.config.micro_batch_size or self.config.batch_size
        for parts in zip(*(torch.split(x, micro) for x in inputs), strict=True):
            with autocast(self.device, self.dtype):
                loss = self._values(*parts).sum() / self.config.batch_size
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._pending.append((self.step, rate, total))

    def _log_row(self) -> dict[str, float | int]:
        """The last step's row, after making sure that no loss since the last one was infinite.

        Losses wait here because looking at one makes an accelerator wait.
        """
        self._require_finite()
        step, rate, loss = self._pending[-1]
        self._pending.clear()
        return {"step": step, "loss": loss.item(), "lr": rate}

    def _require_finite(self) -> None:
        for step, rate, loss in self._pending:
            if not math.isfinite(loss.item()):
                raise _diverged(f"loss is {loss.item()}", step, rate)

    def _validate(self) -> dict[str, float]:
        self._require_finite()
        self.model.eval()
        validation = self.callbacks.validate()
        self.model.train()
        if self.best is None or validation.criterion < self.best:
            self.best, self.best_step = validation.criterion, self.step
            self.callbacks.save_best()
        return validation.metrics

    def _save(self) -> None:
        self._require_finite()
        weights = self.model.state_dict()
        # A finite loss says nothing of the step that followed it.
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            rate = learning_rate(self.step - 1, self.config)
            raise _diverged("weights are not finite", self.step, rate)
        moments = optimizer_tensors(self.model, self.optimizer)
        self.run.save_checkpoint(
            TrainingState(self.step, self.best, self.best_step, weights, moments)
        )


def _diverged(what: str, step: int, rate: float) -> UserError:
    return UserError(
        f"the {what} at step {step}, with learning rate {rate:.3g}; the last checkpoint is intact: "
        "try a smaller train.lr or train.grad_clip=1"
    )
