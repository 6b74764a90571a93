"""The one training loop, on accelerate: finetuning is distilling without a teacher.

It knows a lesson and a place for checkpoints; not tasks or artifacts, and not where text or models come from.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.distillation.batches import Plan, Window
from edgekit.distillation.checkpoint import Checkpoints, load_weights, weights_of
from edgekit.distillation.config import TrainingConfig
from edgekit.distillation.lesson import Lesson
from edgekit.distillation.logs import Logs
from edgekit.distillation.optimization import learning_rate, make_optimizer, set_learning_rate
from edgekit.distillation.processes import (
    describe_failures,
    lost_process,
    make_accelerator,
    sums_over_processes,
)
from edgekit.distillation.progress import Best, Progress
from edgekit.distillation.randomness import derived_seed, preserved_random_states
from edgekit.distillation.sharding import is_sharded, number_of, settle, shard
from edgekit.distillation.throughput import Throughput
from edgekit.errors import TrainingError
from edgekit.events import Event, EventSink
from edgekit.work_directory import TENSORBOARD

CHECKPOINT_SECONDS = 30.0
"""Wall time between checkpoints; when they are written changes nothing but how much a kill costs."""
_CHECKPOINT_SHARE = 0.05  # of the time at most goes into checkpoints
_DROPOUT = 2  # keeps dropout's random numbers apart from those of the order


@dataclass(frozen=True)
class Run:
    """Where and for whom a training runs."""

    stage: str
    """Name of the stage, for events."""
    seed: int
    events: EventSink
    work_directory: Path | None
    """Holds checkpoints and logs; None: neither is written."""
    fingerprint: str
    """Tells this run from any other: a checkpoint of another one is refused."""


def train(lesson: Lesson, config: TrainingConfig, run: Run) -> Best:
    """Trains the learner in place, leaves it with the best weights, in evaluation mode, and says how good they are.

    The global random generators are left as they were found.

    Raises:
        TrainingError: the loss or its gradient is not finite, or a checkpoint cannot be used.
        EnvironmentLacksError: a checkpoint cannot be written.
    """
    with preserved_random_states():
        return _Trainer(lesson, config, run).run()


class _Trainer:
    """The state of one run."""

    def __init__(self, lesson: Lesson, config: TrainingConfig, run: Run) -> None:
        self.accelerator = make_accelerator()
        self.learner, self.lesson, self.config, self.settings = lesson.learner, lesson, config, run
        _own_memory(self.learner)
        self.learner.to(self.accelerator.device)
        self.is_sharded = is_sharded(self.accelerator)
        if self.is_sharded:
            shard(self.learner, self.accelerator)
            lesson.shard(self.accelerator)
        lesson.place(self.accelerator.device)
        self.optimizer = make_optimizer(self.learner, config, self.accelerator.device)
        self.wrapped, self.wrapped_optimizer = self.learner, self.optimizer
        if not self.is_sharded:
            self.wrapped, self.wrapped_optimizer = self.accelerator.prepare(self.learner, self.optimizer)
        self.plan = Plan(
            list(lesson.lengths),
            config.batch_size,
            config.gradient_accumulation_steps,
            run.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.total = max(1, math.ceil(config.epochs * self.plan.steps_per_epoch - 1e-9))
        directory = run.work_directory
        self.checkpoints = Checkpoints(directory / "checkpoints", run.fingerprint) if directory else None
        self.progress = Progress()
        self.weights_settled = True
        """False only while the optimizer writes: weights and step count do not belong together then."""
        self.saved_at, self.pause = time.monotonic(), CHECKPOINT_SECONDS
        self.save_is_due = False
        """Agreed by all processes in each step: a sharded model is gathered by all of them."""

    def run(self) -> Best:
        """Trains from the newest checkpoint, or from the start, to the end."""
        with lost_process(self.settings.stage, self.accelerator):
            return self._run()

    def _run(self) -> Best:
        if self.checkpoints is not None:
            self.progress = self.checkpoints.load(self.learner, self.optimizer)
        if self.accelerator.num_processes > 1:
            how = "a share of the weights (FSDP)" if self.is_sharded else "all weights"
            self._tell("message", f"{self.accelerator.num_processes} processes, each with {how}.")
        if self.progress.step:
            self._tell("message", f"Resumed after step {self.progress.step} of {self.total}.")
        directory = self.settings.work_directory
        with Logs(directory / TENSORBOARD if directory and self._is_main else None, self.progress.step) as logs:
            try:
                self._loop(logs)
            except KeyboardInterrupt:
                if self.weights_settled and not self.is_sharded:
                    self._save()
                raise
        best = self.progress.best
        assert best is not None, "the last step is always evaluated"
        (settle if self.is_sharded else load_weights)(self.learner, best.weights)
        self.learner.eval()
        return best

    @property
    def _is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _loop(self, logs: Logs) -> None:
        first = self.progress.step
        throughput = Throughput(self.lesson.unit, self.total, self.accelerator.device)
        while True:
            if self._evaluation_is_due():
                self._evaluate(logs)
            if self._is_finished():
                return
            if self.save_is_due:
                self._save()
            window = self.plan.window(self.progress.step)
            values = self._step(window)
            logs.scalars(self.progress.step, {f"training/{name}": value for name, value in values.items()})
            values.update(throughput.after_step(self.progress.step, self._amount(window)))
            text = "training" if first == 0 else "training (resumed)"
            self._tell("progress", text, completed=self.progress.step, values=values)

    def _amount(self, window: Window) -> int:
        """Returns the rows or tokens of a step, on all processes."""
        if self.lesson.unit == "rows":
            return len(window.rows)
        return sum(self.lesson.lengths[row] for row in window.rows)

    def _step(self, window: Window) -> dict[str, float]:
        """Makes one optimizer step and returns its loss, gradient norm and learning rate."""
        step = self.progress.step
        prepared = self.lesson.prepare(window, step, self.accelerator)
        self._set_mode()
        self.wrapped_optimizer.zero_grad()
        loss_sum, failure = 0.0, None
        counted = len(window.passes) - window.repeats
        for index, batch in enumerate(prepared.batches):
            self._seed(step, index)
            with torch.no_grad():
                seen = self.lesson.look(batch, self.config.precision)
            is_last = index == len(window.passes) - 1
            with nullcontext() if is_last or self.is_sharded else self.accelerator.no_sync(self.wrapped):
                loss = _weighted(self.wrapped(batch, seen), prepared.coefficients)
                value = float(loss.detach())
                if not math.isfinite(value):
                    failure = failure or self._describe(f"the loss is {value}", window.passes[index])
                    if self.accelerator.num_processes == 1:
                        self._fail(failure)
                # gradients are averaged over the processes: undo that, the coefficients know all rows
                scale = self.accelerator.num_processes if index < counted else 0
                self.accelerator.backward(loss * scale)
            loss_sum += value if index < counted else 0.0
        trainable = [parameter for parameter in self.learner.parameters() if parameter.requires_grad]
        norm = number_of(self.accelerator.clip_grad_norm_(trainable, self.config.max_gradient_norm))
        loss_sum, due = sums_over_processes([loss_sum, float(self._checkpoint_is_due())], self.accelerator)
        if not (math.isfinite(norm) and math.isfinite(loss_sum)):
            failures = describe_failures(failure, self.accelerator)
            self._fail(failures or self._describe(f"the gradient's norm is {norm}", window.rows))
        rate = learning_rate(self.config, step, self.total)
        self.weights_settled = False
        set_learning_rate(self.optimizer, rate)
        self.wrapped_optimizer.step()
        self.progress = replace(self.progress, step=step + 1)
        self.weights_settled = True
        self.save_is_due = due > 0
        return {"loss": loss_sum, "learning_rate": rate, "gradient_norm": norm}

    def _set_mode(self) -> None:
        """Turns on training mode; without dropout evaluation mode is the same and cheaper, but keeps activations."""
        self.wrapped.train(self.config.dropout != 0 or self.config.gradient_checkpointing)

    def _seed(self, step: int, index: int) -> None:
        from accelerate.utils import set_seed

        set_seed(derived_seed(self.settings.seed, _DROPOUT, step, index, self.accelerator.process_index))

    def _evaluation_is_due(self) -> bool:
        step, often = self.progress.step, self.config.evaluations_per_epoch
        if step == 0 or step == self.progress.evaluated_step:
            return False
        per_epoch = self.plan.steps_per_epoch
        return step == self.total or step * often // per_epoch > (step - 1) * often // per_epoch

    def _evaluate(self, logs: Logs) -> None:
        score = self.lesson.evaluate(self.accelerator, self.config.precision)
        self.progress = self.progress.evaluated(score, weights_of(self.learner), self.config.best_by)
        values = score.values()
        logs.scalars(self.progress.step, {f"validation/{name}": value for name, value in values.items()})
        self._tell("metric", "validation", completed=self.progress.step, values=values)

    def _is_finished(self) -> bool:
        patience = self.config.patience
        too_long = patience is not None and self.progress.evaluations_since_best >= patience
        return self.progress.step >= self.total or too_long

    def _checkpoint_is_due(self) -> bool:
        due = self.checkpoints is not None and time.monotonic() - self.saved_at >= self.pause
        return due and self._is_main

    def _save(self) -> None:
        """Writes a checkpoint, and waits longer for the next one where that takes long."""
        if self.checkpoints is None or not (self._is_main or self.is_sharded):
            return
        started = time.monotonic()
        self.checkpoints.save(self.learner, self.optimizer, self.progress, writes=self._is_main)
        self.saved_at = time.monotonic()
        self.pause = max(CHECKPOINT_SECONDS, (self.saved_at - started) / _CHECKPOINT_SHARE)

    def _describe(self, what: str, chosen: list[int]) -> str:
        """Returns what is wrong with which rows."""
        names = ", ".join(self.lesson.name(row) for row in chosen[:8]) + (", ..." if len(chosen) > 8 else "")
        return (
            f"{what}, expected a finite number. The batch: {names}; it begins with {self.lesson.excerpt(chosen[0])!r}."
        )

    def _fail(self, failure: str) -> None:
        """Raises the error for a batch that cannot be learned from; the weights are those before the step.

        Raises:
            TrainingError: always.
        """
        if self.checkpoints is not None and self.checkpoints.latest is None:
            self._save()
        kept = self.checkpoints.latest if self.checkpoints is not None else None
        where = f"The last good checkpoint is {kept}." if kept else "No work directory was given, so nothing was kept."
        raise TrainingError(
            f"{self.settings.stage}: step {self.progress.step + 1} of {self.total}: {failure} {where} "
            "Lower learning_rate or max_gradient_norm, use precision float32, or check these rows and the weights, the "
            "teacher's too."
        )

    def _tell(self, kind: str, text: str, *, completed: int = 0, values: dict[str, float] | None = None) -> None:
        if self._is_main:
            total = self.total if kind != "message" else None
            self.settings.events(
                Event(kind, self.settings.stage, text, completed=completed, total=total, values=values or {})
            )


def _weighted(sums: dict[str, Tensor], coefficients: dict[str, float]) -> Tensor:
    """Returns the loss of one pass: each sum times its coefficient, scalar float32."""
    return torch.stack([total * coefficients[name] for name, total in sums.items()]).sum()


def _own_memory(learner: nn.Module) -> None:
    """Copies weights out of the mapped file: their alignment, and so a product's last bit, no longer depends on it."""
    for parameter in learner.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
