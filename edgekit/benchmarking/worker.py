"""The process that runs a model while it is measured: `python -m edgekit.benchmarking.worker`.

It reads one JSON object a line from stdin and answers each with one line; `process.py` is the other side.

    {"command": "open", "runtime": "module:Class", "path": ..., "kind": ..., "threads": 1, "cores": [1],
     "memory_limit_bytes": null, ...}
        -> {"load_ms": ..., "input_names": [...], "output_names": [...], "cores": [...], "baseline_bytes": ...,
            "library_bytes": ...}
    {"command": "inputs", "input_ids": [[[...]]]}      a list of batches, used in turn -> {}
    {"command": "run", "inputs": {"input_ids": [[...]]}} -> {"outputs": {"logits": [[...]]}}   nothing is timed
    {"command": "sample", "runs": 10, "seconds": 1.0}  -> {"samples_ns": [...]}
    {"command": "serve", "arrivals_ns": [...], "give_up_ns": ...} -> {"latencies_ns": [...]}
    {"command": "look", "cores": [1]}                  -> {"ticks": {...}, "frequency_mhz": ...}
    {"command": "facts", "libraries": ["numpy"]}       -> {"machine": {...}, "load_average": ..., "ranked_cores": [...],
                                                           "libraries": {"numpy": "2.4.6"}}
    {"command": "memory"}                              -> {"peak_bytes": ..., "resident_bytes": ..., ...}

A failure is answered with {"error": message, "type": name of the exception}. It ends when stdin ends, so it never
outlives the process that started it. It imports nothing that the runtime does not need, so that the memory is the
runtime's own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit.benchmarking.memory import read_memory
from edgekit.runtimes.protocol import Session, SessionConfig, load_runtime, select_inputs

if TYPE_CHECKING:
    from numpy import ndarray

Message = dict[str, Any]
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Location:
    """Where the model is: the little of an artifact that a runtime needs."""

    path: Path
    kind: str


class Measured:
    """The model under measurement and its inputs."""

    def __init__(self, session: Session) -> None:
        """Starts without inputs."""
        self.session = session
        self.batches: list[dict[str, ndarray]] = []
        self._next = 0

    def set_inputs(self, request: Message) -> Message:
        """Takes the batches to run, one after another; every position is attended to."""
        import numpy

        self.batches = []
        for rows in request["input_ids"]:
            input_ids = numpy.array(rows, dtype=numpy.int64)
            self.batches.append(select_inputs(self.session.input_names, input_ids, numpy.ones_like(input_ids)))
        self._next = 0
        return {}

    def run(self, request: Message) -> Message:
        """Runs the model once on the arrays given, for its results."""
        import numpy

        given = {name: numpy.array(rows, dtype=numpy.int64) for name, rows in request["inputs"].items()}
        return {"outputs": {name: array.tolist() for name, array in self.session.run(given).items()}}

    def sample(self, request: Message) -> Message:
        """Times `runs` calls, fewer when `seconds` pass first, at least one; the garbage collector waits."""
        deadline = time.perf_counter_ns() + int(request["seconds"] * 1e9)
        samples: list[int] = []
        gc.collect()
        gc.disable()
        try:
            while len(samples) < request["runs"]:
                batch = self.batches[self._next]
                self._next = (self._next + 1) % len(self.batches)
                started = time.perf_counter_ns()
                self.session.run(batch)
                ended = time.perf_counter_ns()
                samples.append(ended - started)
                if ended >= deadline:
                    break
        finally:
            gc.enable()
        return {"samples_ns": samples}

    def serve(self, request: Message) -> Message:
        """Runs one call for each arrival, one after another; its latency counts from its arrival, waiting included.

        A queue that has grown beyond `give_up_ns` has no end: what arrives after that is left out.
        """
        latencies: list[int] = []
        gc.collect()
        gc.disable()
        try:
            origin = time.perf_counter_ns()
            for arrival in request["arrivals_ns"]:
                due = origin + arrival
                while (early := due - time.perf_counter_ns()) > 0:
                    time.sleep(early / 1e9)
                batch = self.batches[self._next]
                self._next = (self._next + 1) % len(self.batches)
                self.session.run(batch)
                latencies.append(time.perf_counter_ns() - due)
                if latencies[-1] > request["give_up_ns"]:
                    break
        finally:
            gc.enable()
        return {"latencies_ns": latencies}


def tell_facts(request: Message) -> Message:
    """Returns what a device is, and the versions of the packages asked for; None where one is not installed."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    from edgekit.benchmarking.machine import load_average, machine_facts, rank_cores

    def version_of(library: str) -> str | None:
        package = library.partition(".")[0]
        if find_spec(package) is None:
            return None
        try:
            return version(distribution_of(library))
        except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
            return str(getattr(importlib.import_module(package), "__version__", "unknown"))

    return {
        "machine": machine_facts(),
        "load_average": load_average(),
        "ranked_cores": rank_cores(),
        "libraries": {library: version_of(library) for library in request["libraries"]},
    }


def distribution_of(library: str) -> str:
    """Returns what pip calls the package of a module, which is how it is spelled but for the underscores."""
    return library.partition(".")[0].replace("_", "-")


def open_model(request: Message) -> tuple[Measured, Message]:
    """Pins the process, imports the runtime's libraries, then opens the model and times that."""
    runtime = load_runtime(request["runtime"])
    config = SessionConfig(request["threads"], request["graph_optimization"])
    session, answer = timed_open(request, runtime.libraries, lambda location: runtime.open(location, config))
    names = {"input_names": list(session.input_names), "output_names": list(session.output_names)}
    return Measured(session), {**answer, **names}


def timed_open(
    request: Message, libraries: Sequence[str], opener: Callable[[Location], Opened]
) -> tuple[Opened, Message]:
    """Pins the process and imports the libraries, then times `opener` on the model that `request` names.

    Returns what it opened and what the parent wants to know of it.
    """
    limit_memory(request.get("memory_limit_bytes"))
    cores = pin(request["cores"])
    baseline = read_memory().resident_bytes
    for library in libraries:
        importlib.import_module(library)
    library_bytes = read_memory().resident_bytes
    started = time.perf_counter_ns()
    opened = opener(Location(Path(request["path"]), request["kind"]))
    load_ms = (time.perf_counter_ns() - started) / 1e6
    gc.collect()
    gc.freeze()  # a library may leave a million objects: to look at them takes longer than a turn
    facts = {"load_ms": load_ms, "cores": cores, "baseline_bytes": baseline, "library_bytes": library_bytes}
    return opened, facts


def limit_memory(limit_bytes: int | None) -> None:
    """Lets this process have no more private writable memory than that, from now on."""
    if limit_bytes is None:
        return
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def pin(cores: list[int]) -> list[int]:
    """Binds this process, and so every thread it starts, to `cores`; returns them, or [] where that cannot be."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return []
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return []
    return sorted(os.sched_getaffinity(0))


def answer_requests(handle: Callable[[Message], Message]) -> None:
    """Answers one JSON line with one until stdin ends; what `handle` raises is answered as an error."""
    # Libraries print where they like; only answers may go to the pipe.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:  # noqa: BLE001 (whatever it is, the parent must hear of it)
            answer = {"error": str(error) or type(error).__name__, "type": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Classifying:
    """Answers the requests above."""

    def __init__(self) -> None:
        self._measured: Measured | None = None

    def __call__(self, request: Message) -> Message:
        command = request["command"]
        if command == "open":
            self._measured, answer = open_model(request)
            return answer
        if command in _OF_PROCESS:
            return _OF_PROCESS[command](request)
        if self._measured is None:
            raise ValueError(f"'{command}' before 'open'")
        measured = self._measured
        answers = {
            "inputs": measured.set_inputs,
            "run": measured.run,
            "serve": measured.serve,
            "sample": measured.sample,
        }
        return answers[command](request)


def _look(request: Message) -> Message:
    from edgekit.benchmarking.processor_time import look_at

    return look_at(os.getpid(), request["cores"]).as_dict()


_OF_PROCESS: dict[str, Callable[[Message], Message]] = {
    "facts": tell_facts,
    "look": _look,
    "memory": lambda request: dict(read_memory().as_dict()),
}
"""What is answered without a model."""


if __name__ == "__main__":
    answer_requests(_Classifying())
