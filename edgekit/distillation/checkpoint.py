"""Checkpoints: all that a killed run needs to end with the very weights of one that was not killed.

    <work directory>/checkpoints/step-00000120/
        state.json               step, evaluations, best score, fingerprint of the run
        learner.safetensors      weights, the projections among them
        optimizer.safetensors    AdamW's moments
        best.safetensors         weights of the best evaluation

A checkpoint is written aside, flushed and renamed; older ones are removed after that. Nothing is unpickled.
Generator states are not kept: every random number is derived from the seed and the step (see `randomness`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.disk import writing
from edgekit.distillation.progress import Best, Progress, Score
from edgekit.distillation.sharding import like, whole
from edgekit.errors import TrainingError

FORMAT = 1
_STATE, _LEARNER, _OPTIMIZER, _BEST = "state.json", "learner.safetensors", "optimizer.safetensors", "best.safetensors"

Tensors = dict[str, Callable[[], dict[str, Tensor]]]
"""File to what gathers its tensors, one file after the other, so that no two are held at once."""


class Checkpoints:
    """The checkpoints of one run, in a directory that survives it."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        """Looks into `directory`; `fingerprint` tells this run from any other."""
        self.directory = directory
        self.fingerprint = fingerprint

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint with all files that a load needs; None when there is none."""
        found = sorted(path for path in self.directory.glob("step-*") if _is_whole(path))
        return found[-1] if found else None

    def save(
        self, learner: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, *, writes: bool = True
    ) -> Path:
        """Writes a checkpoint and returns its directory; a whole one of the same step already holds the same.

        What is removed is renamed first: at any moment the newest whole checkpoint has its name. Of a sharded model all
        processes call this at once, and one of them `writes`.

        Raises:
            EnvironmentLacksError: the disk is full or not writable.
        """
        final = self.directory / f"step-{progress.step:08d}"
        tensors: Tensors = {
            _LEARNER: lambda: weights_of(learner),
            _OPTIMIZER: lambda: _optimizer_tensors(optimizer, learner),
        }
        if not writes:
            for gather in tensors.values():
                gather()
            return final
        if _is_whole(final):
            return final
        staging = self.directory / f".partial-{final.name}"
        advice = "Free disk space, then run the same command again: it resumes from the checkpoint before."
        with writing(f"{final}: the checkpoint", advice):
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob(".partial-*"):
                shutil.rmtree(leftover)
            staging.mkdir()
            self._fill(staging, tensors, progress)
            if final.exists():
                _remove(final)
            staging.rename(final)
            _flush(self.directory)
            for older in self.directory.glob("step-*"):
                if older != final:
                    _remove(older)
        return final

    def load(self, learner: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Puts the newest checkpoint into `learner` and `optimizer` and returns its progress; a fresh one if none.

        Raises:
            TrainingError: the checkpoint is of another run, or not readable.
        """
        path = self.latest
        if path is None:
            return Progress()
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            if state["format"] != FORMAT or state["fingerprint"] != self.fingerprint:
                raise TrainingError(
                    f"{path}: is a checkpoint of another run (other model, data, configuration, seed or edgekit). "
                    f"Remove {self.directory}, or use another work directory."
                )
            _load_module(learner, _read(path / _LEARNER))
            _load_optimizer(optimizer, learner, _read(path / _OPTIMIZER))
            best = state.pop("best")
            loaded = Best(best["step"], Score(**best["score"]), _read(path / _BEST)) if best else None
            counts = ("step", "evaluated_step", "evaluations_since_best")
            return Progress(**{name: state[name] for name in counts}, best=loaded)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{path}: the checkpoint cannot be read ({error}). Remove {self.directory} to start over."
            ) from error

    def _fill(self, staging: Path, tensors: Tensors, progress: Progress) -> None:
        for name, gather in tensors.items():
            _write(staging / name, gather())
        best = progress.best
        if best is not None:
            self._keep_best(staging / _BEST, best)
        state = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "step": progress.step,
            "evaluated_step": progress.evaluated_step,
            "evaluations_since_best": progress.evaluations_since_best,
            "best": {"step": best.step, "score": asdict(best.score)} if best else None,
        }
        (staging / _STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        _flush(staging / _STATE)
        _flush(staging)

    def _keep_best(self, file: Path, best: Best) -> None:
        """Writes the best weights, or links the file of the checkpoint before, which holds the same ones."""
        before = self.latest
        if before is not None:
            state = json.loads((before / _STATE).read_text(encoding="utf-8"))
            if state["best"] and state["best"]["step"] == best.step:
                try:
                    os.link(before / _BEST, file)
                    return
                except OSError:
                    pass  # a file system without links: write it
        _write(file, best.weights)


def _is_whole(checkpoint: Path) -> bool:
    """Returns True when every file that a load needs is there; one that cannot be read is for `load` to refuse."""
    if not all((checkpoint / name).is_file() for name in (_STATE, _LEARNER, _OPTIMIZER)):
        return False
    try:
        has_best = bool(json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["best"])
    except (ValueError, KeyError, TypeError):
        return True
    return not has_best or (checkpoint / _BEST).is_file()


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint under a name that no load looks at, so that a kill leaves no half of it."""
    aside = checkpoint.with_name(f".partial-removed-{checkpoint.name}")
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns name to a copy, on the CPU, of every parameter and saved buffer; shared ones once."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = whole(tensor.detach()).to("cpu", copy=True).contiguous()
    return found


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies `weights`, as `weights_of` returned them, into `module`."""
    _load_module(module, weights)


def _load_module(module: nn.Module, weights: dict[str, Tensor]) -> None:
    own = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(like(tensor, own[name]))


def _optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Returns `<parameter>/<field>` to tensor for all that the optimizer remembers."""
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}/{key}"] = whole(value.detach()).to("cpu", copy=True).contiguous()
    return found


def _load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters[parameter_name]
        state: dict[str, Any] = optimizer.state[parameter]
        state[key] = like(tensor.to(parameter.device, copy=True), parameter)


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file)
    _flush(file)


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.clone() for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(f"{file.name}: {error}") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
