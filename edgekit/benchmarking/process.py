"""A classifier in a measuring process of its own, as the parent sees it."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.artifact import Artifact
from edgekit.benchmarking.devices import HERE, Device
from edgekit.benchmarking.scenario import Scenario
from edgekit.benchmarking.worker_process import Opened, WorkerProcess, WorkerSettings
from edgekit.runtimes.protocol import OwnProcess, Runtime

_MODULE = "edgekit.benchmarking.worker"


@dataclass(frozen=True)
class Subject:
    """One model, the runtime that runs it, and what it is run on."""

    model: Artifact
    runtime: Runtime
    scenario: Scenario
    threads: int = 1
    graph_optimization: bool = True
    memory_limit_bytes: int | None = None
    """RLIMIT_DATA of its processes; None: none."""
    device: Device = HERE
    """Where its processes run."""


class MeasuringProcess(WorkerProcess):
    """A fresh process that has opened one model; use it in a `with` statement, which ends it."""

    opened: Opened
    calls_per_sample = 1
    """Calls that were timed together, for a clock too coarse for one: a sample is their mean."""

    def __init__(self, subject: Subject, timeout_s: float) -> None:
        """Starts nothing yet; `timeout_s` is how long one answer may take beyond the sampling it was asked for."""
        name = f"{subject.model.path} in {subject.runtime.name}"
        if not subject.device.is_here:
            name += f" on {subject.device.name}"
        program = tuple(subject.runtime.program()) if isinstance(subject.runtime, OwnProcess) else ()
        settings = WorkerSettings(subject.threads, timeout_s, subject.memory_limit_bytes, subject.device, program)
        super().__init__(_MODULE, name, settings)
        self.subject = subject

    def prepare(self) -> None:
        """Opens the model and hands over the inputs.

        Raises:
            ModelError: the runtime cannot open the model.
            MeasurementError: the process died or hung.
        """
        subject = self.subject
        own = subject.runtime.describe(subject.model) if isinstance(subject.runtime, OwnProcess) else {}
        self.opened = self.open_model(
            subject.model, subject.runtime, graph_optimization=subject.graph_optimization, **own
        )
        self.set_inputs(subject.scenario)

    def set_inputs(self, scenario: Scenario) -> None:
        """Hands over what is run from now on."""
        self.ask("inputs", watch=True, input_ids=scenario.input_ids)

    def serve(self, arrivals_ns: list[int], give_up_ns: int) -> list[int]:
        """Returns for each arrival, ns since the start, how long it took until it was answered, ns, waiting included.

        It ends early once an answer took longer than `give_up_ns`.
        """
        span_s = (arrivals_ns[-1] + give_up_ns) / 1e9
        latencies: list[int] = self.ask("serve", extra_s=span_s, arrivals_ns=arrivals_ns, give_up_ns=give_up_ns)[
            "latencies_ns"
        ]
        return latencies

    def sample(self, runs: int, seconds: float, *, watch: bool = False) -> list[int]:
        """Returns the durations in ns of up to `runs` calls, at least one, stopping when `seconds` have passed.

        With `watch` the memory is looked at meanwhile: while warming up, not while it counts.
        """
        answer = self.ask("sample", extra_s=seconds, watch=watch, runs=runs, seconds=seconds)
        samples: list[int] = answer["samples_ns"]
        self.calls_per_sample = answer.get("calls_per_sample", 1)
        return samples
