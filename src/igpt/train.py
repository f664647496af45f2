"""The only loop that trains an Image GPT, and its optimizer step.

It knows a model, an objective and a loader that is addressed by step; it does not know pictures,
foreign formats or how a model is split. All that it needs to go on after a kill is in the
checkpoint: weights, Adam's moments, the step, the best validation and when it was, and the state of
a loader that has one.

Started by torchrun, every process runs this loop on its rows of each batch, and all of them take
every decision (to log, to validate, to save, to stop) at the same step.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from igpt.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Progress,
    RunDirectory,
    optimizer_tensors,
)
from igpt.config import Diverged, TrainConfig, UserError
from igpt.data.loader import Batch, Loader, State, prefetch
from igpt.device import (
    autocast,
    begin_step,
    compile_training,
    compute_dtype,
    reuse_memory,
    to_device,
)
from igpt.model import ImageGPT
from igpt.monitor import Row
from igpt.objectives import Objective
from igpt.parallel.gradients import accumulate, average_gradients, clip_gradients, compile_parts
from igpt.parallel.processes import (
    max_over_processes,
    mean_over_processes_,
    share_of_batch,
    size,
    together,
)
from igpt.parallel.storage import all_finite

WAIT = 0.5  # seconds of waiting for pictures after which signals are looked for


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
class Outcome:
    """How a run ended."""

    step: int  # optimizer steps done
    best: float | None  # the smallest criterion
    signal: signal.Signals | None = None  # that stopped it before its last step
    stopped_early: bool = False  # whether it ended early, as validation had not improved for long


class Interrupted(Exception):
    """A signal came to one of the processes, and all of them know it."""

    def __init__(self, caught: signal.Signals) -> None:
        super().__init__(caught.name)
        self.signal = caught


@dataclass
class Stop:
    """Set by SIGTERM or SIGINT; the loop then ends the step it is in, saves and returns.

    A validation that it is in, or a wait for pictures, is given up.
    """

    signal: signal.Signals | None = None

    def check(self) -> None:
        """Raise Interrupted when any process caught a signal; all call it at the same moment."""
        if caught := max_over_processes(self.signal or 0):
            raise Interrupted(signal.Signals(caught))

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Catch the signals while training; a second one acts as it would have without us.

        Not so under torchrun, which repeats to its processes what the terminal sent them already,
        and ends them itself when they take long.
        """
        previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

        def catch(number: int, _frame: FrameType | None) -> None:
            self.signal = signal.Signals(number)
            if size() > 1:
                return
            for caught, handler in previous.items():
                signal.signal(caught, handler)

        for caught in previous:
            signal.signal(caught, catch)
        try:
            yield
        finally:
            for caught, handler in previous.items():
                signal.signal(caught, handler)


class ObjectiveModule(nn.Module):
    """The objective's values [B] of its inputs: what is compiled, and called by every process."""

    def __init__(self, model: ImageGPT, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.objective(self.model, *inputs)


@dataclass
class Trainer:
    """One run from its current step to its last."""

    model: ImageGPT
    objective: Objective
    loader: Loader
    config: TrainConfig
    run: RunDirectory
    # Calls what it is given before every batch: it raises Interrupted when a signal came.
    validate: Callable[[Callable[[], None]], Validation]
    save_best: Callable[[], None]  # keep the model as it is now
    # Adam's, each with its `lr_scale` of the schedule's rate; None: all parameters, at that rate.
    groups: list[dict[str, Any]] | None = None
    # Replaced, never changed: a checkpoint on its way to the disk holds what it was then.
    progress: Progress = field(init=False, default=Progress(step=0))
    _saved: int = field(init=False, default=0)  # the step of the last checkpoint
    # What a loader that has a state goes on from.
    _loader_state: State | None = field(init=False, default=None)
    # Losses of the last steps, which were not looked at.
    _pending: list[Tensor] = field(init=False, default_factory=list)
    _writing: CheckpointWriter | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        reuse_memory()
        self.device = self.model.wte.device
        self.dtype = compute_dtype(self.config.precision, self.device)
        groups = self.groups or [{"params": list(self.model.parameters()), "lr_scale": 1.0}]
        config = self.config
        self.optimizer = torch.optim.Adam(groups, config.lr, config.betas, fused=True)
        self._rows = share_of_batch(self.config.batch_size)
        self._averaged = average_gradients(ObjectiveModule(self.model, self.objective))
        self._values: Callable[..., Tensor] = self._averaged
        if self.config.compile:
            compile_parts(self.model, self.device)
            self._values = compile_training(self._averaged, self.device, alone=size() == 1)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; UserError when it is another model's."""
        checkpoint.load(self.model, self.optimizer)
        with together():
            states = checkpoint.loader_states()
        if states:
            self.loader.resume(states)
        self.progress = checkpoint.progress
        self._saved = self.step

    def train(self, log: Callable[[Row], None]) -> Outcome:
        """Run to the last step, until validation has not improved for long, or until a signal.

        `log` takes a row of metrics. Raises UserError when the loss is not finite.
        """
        stop, caught = Stop(), None
        with stop.on_signals():
            try:
                self._run(log, stop)
            except Interrupted as interrupted:
                caught = interrupted.signal
                self._keep()
            except Exception as error:
                # What was begun to be written is a state to go on from. Of several processes all
                # raise what is the user's mistake, and perhaps one alone what is another's.
                if size() == 1 or isinstance(error, UserError):
                    with suppress(UserError):  # of two errors the first one is told
                        self._publish()
                raise
            self._publish()
        early = caught is None and self.step < self.config.steps
        return Outcome(self.step, self.progress.best, caught, stopped_early=early)

    def _run(self, log: Callable[[Row], None], stop: Stop) -> None:
        if self.owes_validation():
            self._validate(log, stop)
            self.run.note(self.progress)
        clock, since = time.monotonic(), self.step
        for batch in self._batches(stop):
            self._optimizer_step(batch)
            if self._due(self.config.log_every):
                row = self._log_row()
                now = time.monotonic()
                pictures = (self.step - since) * self.config.batch_size
                with together():
                    log({**row, "pictures_per_second": pictures / (now - clock)})
                clock, since = now, self.step
            if self._due(self.config.eval_every):
                self._validate(log, stop)
                clock, since = time.monotonic(), self.step
            if self._writing is not None and self._writing.is_written():
                self._publish()
            if self._out_of_patience() or self._due(self.config.checkpoint_every):
                self._save()
            if self._out_of_patience():
                return

    def owes_validation(self) -> bool:
        """Whether a signal cut the validation of this step short."""
        return 0 < self.step != self.progress.validated and self._due(self.config.eval_every)

    def _batches(self, stop: Stop) -> Iterator[Batch]:
        """This process's rows of the batches of the steps that are left, until a signal."""
        last = self.step if self._out_of_patience() else self.config.steps
        with closing(prefetch(self.loader, range(self.step, last), self._rows)) as batches:
            for coming in batches:
                while not coming.done() and stop.signal is None:
                    wait([coming], WAIT)
                stop.check()
                try:
                    with together():
                        batch = coming.result()
                except UserError:  # of pictures: what was trained before them is whole
                    with suppress(UserError):
                        self._keep()
                    raise
                yield batch

    def _out_of_patience(self) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        patience, every = self.config.patience, self.config.eval_every
        return patience is not None and self.step - self.progress.best_step >= patience * every

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _optimizer_step(self, batch: Batch) -> None:
        """One step of Adam on the mean objective of the batch, over its micro-batches.

        The mean over the batch is the mean over processes of the means over their rows.
        """
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        total = torch.zeros((), device=self.device)
        inputs = [to_device(x, self.device) for x in self.objective.inputs(batch)]
        rows = len(self._rows)
        micro = min(self.config.micro_batch_size or rows, rows)
        if self.config.compile:
            begin_step()
        for start in range(0, rows, micro):
            parts = [x[start : start + micro] for x in inputs]
            with accumulate(self._averaged, last=start + micro >= rows):
                with autocast(self.device, self.dtype):
                    loss = self._values(*parts).sum() / rows
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.config.grad_clip is not None:
            clip_gradients(self.model, self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress = replace(self.progress, step=self.step + 1)
        self._loader_state = batch.state
        self._pending.append(total)

    def _log_row(self) -> dict[str, float | int]:
        """The last step's row, after making sure that no loss since the last one was infinite."""
        loss = self._finite_losses()[-1]
        self._pending.clear()
        return {"step": self.step, "loss": loss, "lr": learning_rate(self.step - 1, self.config)}

    def _finite_losses(self) -> list[float]:
        """Of the steps since the last row, over all processes; UserError when one is not finite.

        They wait to be looked at because that makes an accelerator wait.
        """
        if not self._pending:
            return []
        losses = mean_over_processes_(torch.stack(self._pending)).tolist()
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise _diverged(f"loss is {loss}", step, self.config)
        return losses

    def _require_finite(self, weights: Mapping[str, Tensor]) -> None:
        """UserError unless they are: a finite loss says nothing of the step that followed it."""
        if not all_finite(weights):
            raise _diverged("weights are not finite", self.step, self.config)

    def _validate(self, log: Callable[[Row], None], stop: Stop) -> None:
        self._finite_losses()
        self.model.eval()
        validation = self.validate(stop.check)
        self.model.train()
        if not math.isfinite(validation.criterion):  # nothing would be smaller, ever
            self._require_finite(self.model.state_dict())
            raise _diverged(f"validation is {validation.criterion}", self.step, self.config)
        best, step = self.progress.best, self.step
        if best is None or validation.criterion < best:
            self._require_finite(self.model.state_dict())
            self.progress = replace(self.progress, best=validation.criterion, best_step=step)
            self.save_best()
        self.progress = replace(self.progress, validated=step)
        with together():
            log({"step": self.step, **validation.metrics})

    def _keep(self) -> None:
        """Save what no checkpoint holds yet."""
        if self._saved != self.step:
            self._save()

    def _save(self) -> None:
        """Begin to write a checkpoint, after the one before it is whole."""
        self._publish()
        self._finite_losses()
        weights = self.model.state_dict()
        self._require_finite(weights)
        self._writing = self.run.begin_checkpoint(
            self.progress,
            weights | optimizer_tensors(self.model, self.optimizer),
            self._loader_state,
        )
        self._saved = self.step

    def _publish(self) -> None:
        """Make the checkpoint that is being written, if any, the newest."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.publish()


def _diverged(what: str, step: int, config: TrainConfig) -> Diverged:
    rate = learning_rate(step - 1, config)
    return Diverged(
        f"the {what} at step {step}, with learning rate {rate:.3g}; the last checkpoint, if any, "
        "is intact: try a smaller train.lr or train.grad_clip=1"
    )
