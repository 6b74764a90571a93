"""The process that runs a language model while it is measured: `python -m edgekit.benchmarking.generation_worker`.

It speaks as `worker.py` does; `generation_process.py` is the other side.

    {"command": "open", "runtime": "module:Class", "path": ..., "kind": ..., "threads": 1, "cores": [1],
     "context_length": 641}
        -> {"load_ms": ..., "cores": [...], "baseline_bytes": ..., "library_bytes": ...}
    {"command": "write", "prompt": [...], "new_tokens": 32}
        -> {"prefill_ns": ..., "first_token_ns": ..., "token_ns": [...]}
    {"command": "memory"} -> {"peak_bytes": ..., "resident_bytes": ..., ...}

It imports nothing that the runtime does not need, so that the memory is the runtime's own.
"""

from __future__ import annotations

import gc
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from edgekit.benchmarking.memory import read_memory
from edgekit.benchmarking.worker import Message, answer_requests, timed_open
from edgekit.runtimes.generation import GenerationConfig, load_generation_runtime

if TYPE_CHECKING:
    from edgekit.runtimes.generation import GenerationSession


class _Writing:
    """Answers the requests above."""

    def __init__(self) -> None:
        self._session: GenerationSession | None = None

    def __call__(self, request: Message) -> Message:
        command = request["command"]
        if command == "open":
            runtime = load_generation_runtime(request["runtime"])
            config = GenerationConfig(request["threads"], request["context_length"])
            self._session, answer = timed_open(
                request, runtime.libraries, lambda location: runtime.open(location, config)
            )
            return answer
        if command == "memory":
            return dict(read_memory().as_dict())
        if self._session is None:
            raise ValueError(f"'{command}' before 'open'")
        return write(self._session, request)


def write(session: GenerationSession, request: Message) -> Message:
    """Times one prompt and the greedy tokens after it, ends of text not heeded; the garbage collector waits.

    A token's time runs from one choice to the next: a step of the model and the search for the largest logit.
    """
    import numpy

    prompt = numpy.array(request["prompt"], dtype=numpy.int64)
    session.reset()
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter_ns()
        logits = session.prefill(prompt)
        prefilled = time.perf_counter_ns()
        token = int(logits.argmax())
        chosen = [time.perf_counter_ns()]
        for _ in range(request["new_tokens"]):
            token = int(session.step(token).argmax())
            chosen.append(time.perf_counter_ns())
    finally:
        gc.enable()
    return {
        "prefill_ns": prefilled - started,
        "first_token_ns": chosen[0] - started,
        "token_ns": [after - before for before, after in pairwise(chosen)],
    }


if __name__ == "__main__":
    answer_requests(_Writing())
