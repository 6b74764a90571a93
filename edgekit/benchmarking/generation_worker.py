"""The process that runs a language model while it is measured: `python -m edgekit.benchmarking.generation_worker`.

It speaks as `worker.py` does; `generation_process.py` is the other side.

    {"command": "open", "runtime": "module:Class", "path": ..., "kind": ..., "threads": 1, "cores": [1],
     "context_length": 641, "conversations": 1}
        -> {"load_ms": ..., "cores": [...], "baseline_bytes": ..., "library_bytes": ...}
    {"command": "write", "prompt": [...], "new_tokens": 32}
        -> {"prefill_ns": ..., "first_token_ns": ..., "token_ns": [...]}
    {"command": "write_together", "prompts": [[...], [...]], "new_tokens": 32}
        -> {"first_token_ns": ..., "token_ns": [...]}
    {"command": "serve", "prompt": [...], "new_tokens": 32, "arrivals_ns": [...], "give_up_ns": ...}
        -> {"latencies_ns": [...]}
    {"command": "memory"} -> {"peak_bytes": ..., "resident_bytes": ..., ...}

A session of several conversations answers `write_together` alone, one of a single conversation the two others.

It imports nothing that the runtime does not need, so that the memory is the runtime's own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgekit.benchmarking.memory import read_memory
from edgekit.benchmarking.worker import Message, answer_requests, timed_open
from edgekit.runtimes.conversations import ConversationsSession, open_conversations
from edgekit.runtimes.generation import GenerationConfig, load_generation_runtime

if TYPE_CHECKING:
    from edgekit.runtimes.generation import GenerationSession
    from edgekit.runtimes.protocol import ModelOnDisk


class _Writing:
    """Answers the requests above."""

    def __init__(self) -> None:
        self._session: GenerationSession | ConversationsSession | None = None

    def __call__(self, request: Message) -> Message:
        command = request["command"]
        if command == "open":
            self._session, answer = open_session(request)
            return answer
        if command == "memory":
            return dict(read_memory().as_dict())
        if self._session is None:
            raise ValueError(f"'{command}' before 'open'")
        return _ANSWERS[command](self._session, request)


def open_session(request: Message) -> tuple[GenerationSession | ConversationsSession, Message]:
    """Opens the model for one conversation or several."""
    runtime = load_generation_runtime(request["runtime"])
    count = request["conversations"]
    config = GenerationConfig(request["threads"], request["context_length"], conversations=count)

    def opener(location: ModelOnDisk) -> GenerationSession | ConversationsSession:
        return runtime.open(location, config) if count == 1 else open_conversations(runtime, location, config)

    return timed_open(request, runtime.libraries, opener)


def write(session: GenerationSession, request: Message) -> Message:
    """Times one prompt and the greedy tokens after it, ends of text not heeded.

    A token's time runs from one choice to the next: a step of the model and the search for the largest logit.
    """
    with _collector_waits():
        session.reset()
        started = time.perf_counter_ns()
        prefilled, chosen = _write(session, request)
    return {
        "prefill_ns": prefilled - started,
        "first_token_ns": chosen[0] - started,
        "token_ns": [after - before for before, after in pairwise(chosen)],
    }


def write_together(session: ConversationsSession, request: Message) -> Message:
    """Times the prompts of several conversations and the greedy tokens after them, one of each at a time."""
    import numpy

    ids = numpy.array(request["prompts"], dtype=numpy.int64)
    chosen = []
    with _collector_waits():
        session.reset()
        started = time.perf_counter_ns()
        for _ in range(1 + request["new_tokens"]):
            ids = session.take(ids).argmax(axis=-1)[:, None]
            chosen.append(time.perf_counter_ns())
    return {
        "first_token_ns": chosen[0] - started,
        "token_ns": [after - before for before, after in pairwise(chosen)],
    }


def serve(session: GenerationSession, request: Message) -> Message:
    """Answers one prompt for each arrival, one after another; its latency runs from the arrival to the first token.

    A queue that has grown beyond `give_up_ns` has no end: what arrives after that is left out.
    """
    latencies: list[int] = []
    with _collector_waits():
        origin = time.perf_counter_ns()
        for arrival in request["arrivals_ns"]:
            due = origin + arrival
            while (early := due - time.perf_counter_ns()) > 0:
                time.sleep(early / 1e9)
            session.reset()
            _, chosen = _write(session, request)
            latencies.append(chosen[0] - due)
            if latencies[-1] > request["give_up_ns"]:
                break
    return {"latencies_ns": latencies}


def _write(session: GenerationSession, request: Message) -> tuple[int, list[int]]:
    """Returns when the prompt was read and when each token was chosen, ns."""
    import numpy

    logits = session.prefill(numpy.array(request["prompt"], dtype=numpy.int64))
    prefilled = time.perf_counter_ns()
    token = int(logits.argmax())
    chosen = [time.perf_counter_ns()]
    for _ in range(request["new_tokens"]):
        token = int(session.step(token).argmax())
        chosen.append(time.perf_counter_ns())
    return prefilled, chosen


@contextmanager
def _collector_waits() -> Iterator[None]:
    """Keeps the garbage collector from running, after a last run."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_ANSWERS: dict[str, Callable[[Any, Message], Message]] = {
    "write": write,
    "write_together": write_together,
    "serve": serve,
}
"""What an open session is asked."""


if __name__ == "__main__":
    answer_requests(_Writing())
