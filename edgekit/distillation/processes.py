"""What the processes of one run tell each other; a single process tells itself nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from edgekit.errors import TrainingError, UnsupportedError

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

# What torch's backends say when a process at the other end is gone.
_LOST = ("closed by peer", "reset by peer", "connection refused", "broken pipe", "timed out", "socket timeout")


def make_accelerator() -> Accelerator:
    """Returns what places models and exchanges numbers, as the launcher chose.

    Raises:
        UnsupportedError: the launcher asks for DeepSpeed or Megatron.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType

    # Precision is the learner's matter, so that a state left by the caller's own Accelerator does not clash.
    accelerator = Accelerator(
        mixed_precision="no", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UnsupportedError(
            f"found the launcher's choice {accelerator.distributed_type.value}, expected FSDP or data parallelism."
            " Start with `accelerate launch --use_fsdp`, or without."
        )
    return accelerator


def describe_failures(own: str | None, accelerator: Accelerator) -> str | None:
    """Returns what the first process that failed says of it; every process calls it."""
    if accelerator.num_processes == 1:
        return own
    from accelerate.utils import gather_object

    found: list[str | None] = gather_object([own])
    return next((failure for failure in found if failure is not None), None)


def sum_over_processes(value: float, accelerator: Accelerator) -> float:
    """Returns the sum of each process's `value`, exact for whole numbers; every process calls it."""
    if accelerator.num_processes == 1:
        return value
    return _reduce([value], accelerator)[0]


def sums_over_processes(values: list[float], accelerator: Accelerator) -> list[float]:
    """Returns the sum of each number over the processes, in one exchange; every process calls it."""
    return values if accelerator.num_processes == 1 else _reduce(values, accelerator)


def wait_for_all(stage: str, state: Accelerator | PartialState, *, has_published: bool = False) -> None:
    """Waits until every process is here; one that has published needs no other any more.

    Raises:
        TrainingError: a process is gone.
    """
    try:
        with lost_process(stage, state):
            state.wait_for_everyone()
    except TrainingError:
        if not has_published:
            raise


@contextmanager
def lost_process(stage: str, accelerator: Accelerator | PartialState) -> Iterator[None]:
    """Turns the backend's error about a process that is gone into one that says what to do.

    Raises:
        TrainingError: in place of the backend's error.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if accelerator.num_processes == 1 or not any(sign in text.lower() for sign in _LOST):
            raise
        raise TrainingError(
            f"{stage}: process {accelerator.process_index} of {accelerator.num_processes}: another process of the run "
            f"is gone ({_first_sentence(text)}), expected all of them to the end. See what it wrote last, or whether "
            "the system ended it for want of memory. Run the same command again: it goes on from what was kept."
        ) from error


def _first_sentence(text: str) -> str:
    """Returns what a backend says first, without the place in its source code."""
    return re.sub(r"^\[[^\]]*\]\s*", "", text).splitlines()[0].split(". ")[0][:160]


def _reduce(values: list[float], accelerator: Accelerator) -> list[float]:
    # float64 where the device has it: counts of tokens are beyond float32's whole numbers
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    found: torch.Tensor = accelerator.reduce(
        torch.tensor(values, dtype=dtype, device=accelerator.device), reduction="sum"
    )
    return [float(value) for value in found]
