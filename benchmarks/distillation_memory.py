"""Peak memory and time of the losses over a large vocabulary: the dense way against edgekit's, chunk by chunk.

    python benchmarks/distillation_memory.py [--tokens 4096] [--rounds 3] [--dtypes float32 bf16]

One training step of 0.9 forward KL + 0.1 cross-entropy, from random hidden states of student and teacher to the
gradients of the student's hidden states and head. Every contender runs in fresh processes that take turns: memory is
how far the resident peak (VmHWM) rose above what was resident with the inputs made. Seconds are of processor time,
which a busy machine lengthens less than time on the wall.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from distillation_tables import distillation_memory_table
from measuring import make_parser, say, write_result
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from edgekit.benchmarking.memory import read_memory
from edgekit.distillation.vocabulary_head import VocabularyHead
from edgekit.distillation.vocabulary_losses import TokenTargets, VocabularyObjective, vocabulary_losses
from edgekit.distillation.vocabulary_targets import Teacher, TeacherStates, TopKTargets

ALPHA, TOP_K = 0.9, 48
TARGET_RATIO = 0.25
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Step:
    """One contender at one size."""

    contender: str
    tokens: int
    vocabulary: int
    hidden_size: int
    dtype: str
    threads: int


@dataclass(frozen=True)
class Inputs:
    """What a step starts from."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor

    @property
    def objective(self) -> VocabularyObjective:
        """The means over the tokens, weighted."""
        return VocabularyObjective(soft_targets=ALPHA / len(self.labels), cross_entropy=(1 - ALPHA) / len(self.labels))


def make_inputs(step: Step, tokens: int) -> Inputs:
    """Returns random inputs whose logits spread about as far as a trained model's."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(rows, step.hidden_size, generator=generator).mul_(scale)
        return values.to(DTYPES[step.dtype])

    spread = 2.5 / step.hidden_size**0.5
    hidden, weight = draw(tokens).requires_grad_(), draw(step.vocabulary, spread).requires_grad_()
    labels = torch.randint(0, step.vocabulary, (tokens,), generator=generator)
    return Inputs(hidden, weight, draw(tokens), draw(step.vocabulary, spread), labels)


def dense_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the sum over tokens, as PyTorch's own functions give it."""
    log_q, log_p = F.log_softmax(logits.float(), dim=-1), F.log_softmax(teacher_logits.float(), dim=-1)
    soft = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return ALPHA * soft + (1 - ALPHA) * F.nll_loss(log_q, labels, reduction="sum")


def dense(inputs: Inputs) -> Tensor:
    """The dense way: all logits of student and teacher, and autograd."""
    with torch.no_grad():
        teacher_logits = inputs.teacher_hidden @ inputs.teacher_weight.T
    return dense_loss(inputs.hidden @ inputs.weight.T, teacher_logits, inputs.labels) / len(inputs.labels)


def checkpointed(inputs: Inputs, chunk: int) -> Tensor:
    """Chunks of tokens by autograd, each recomputed in the backward pass."""

    def part(hidden: Tensor, weight: Tensor, start: int) -> Tensor:
        rows = slice(start, start + chunk)
        with torch.no_grad():
            teacher_logits = inputs.teacher_hidden[rows] @ inputs.teacher_weight.T
        return dense_loss(hidden @ weight.T, teacher_logits, inputs.labels[rows])

    total = inputs.hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(inputs.labels), chunk):
        total = total + checkpoint(
            part, inputs.hidden[start : start + chunk], inputs.weight, start, use_reentrant=False
        )
    return total / len(inputs.labels)


def chunked(inputs: Inputs, chunk: int, teacher: Teacher) -> Tensor:
    """The way of edgekit."""
    objective = VocabularyObjective(
        soft_targets=inputs.objective.soft_targets, cross_entropy=inputs.objective.cross_entropy, chunk_tokens=chunk
    )
    targets = TokenTargets(inputs.labels, teacher)
    return vocabulary_losses(inputs.hidden, VocabularyHead(inputs.weight), targets, objective).total(objective)


def teacher_states(inputs: Inputs) -> Teacher:
    """The teacher beside the student."""
    return TeacherStates(inputs.teacher_hidden, VocabularyHead(inputs.teacher_weight))


def kept_signal(inputs: Inputs) -> Teacher:
    """A cached signal of the right size; its values do not matter for memory and time."""
    tokens, vocabulary = len(inputs.labels), len(inputs.weight)
    first = torch.arange(tokens)[:, None] * 7 % (vocabulary - TOP_K)
    log_probs = torch.full((tokens, TOP_K), 0.9 / TOP_K).log()
    return TopKTargets(first + torch.arange(TOP_K), log_probs, torch.full((tokens,), 0.1).log())


CONTENDERS: dict[str, Callable[[Inputs], Tensor]] = {
    "dense": dense,
    "checkpointed 256": lambda inputs: checkpointed(inputs, 256),
    "edgekit 64": lambda inputs: chunked(inputs, 64, teacher_states(inputs)),
    "edgekit 256": lambda inputs: chunked(inputs, 256, teacher_states(inputs)),
    "edgekit 512": lambda inputs: chunked(inputs, 512, teacher_states(inputs)),
    "edgekit 1024": lambda inputs: chunked(inputs, 1024, teacher_states(inputs)),
    "edgekit 256, cached top-48": lambda inputs: chunked(inputs, 256, kept_signal(inputs)),
}
QUICK = ("dense", "edgekit 256")


def run_step(step: Step) -> dict[str, Any]:
    """Runs a step in this process and returns what it took."""
    torch.set_num_threads(step.threads)
    run = CONTENDERS[step.contender]
    small = make_inputs(step, 4)
    run(small).backward()  # loads what is loaded once
    del small
    inputs = make_inputs(step, step.tokens)
    before = read_memory()
    started, cpu_started = time.perf_counter(), time.process_time()
    loss = run(inputs)
    loss.backward()
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    after = read_memory()
    assert inputs.weight.grad is not None
    return {
        "peak_growth_bytes": after.peak_bytes - before.resident_bytes,
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "loss": loss.item(),
        "gradient_norm": float(inputs.weight.grad.float().norm()),
    }


def measure(steps: list[Step], rounds: int) -> list[dict[str, Any]]:
    """Runs every step once a round in a process of its own and returns the medians."""
    found: dict[Step, list[dict[str, Any]]] = {step: [] for step in steps}
    for number in range(rounds):
        for step in steps:
            say(f"round {number + 1} of {rounds}: {step.contender}, {step.tokens} tokens, {step.dtype}")
            command = [sys.executable, __file__, "--worker", json.dumps(asdict(step))]
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode:
                raise SystemExit(f"{step.contender}: exit code {finished.returncode}.\n{finished.stderr}")
            found[step].append(json.loads(finished.stdout))
    rows = []
    for step, samples in found.items():
        peak = max(sample["peak_growth_bytes"] for sample in samples)
        row: dict[str, Any] = {**asdict(step), "peak_growth_bytes": peak}
        for name in ("cpu_s", "wall_s", "loss", "gradient_norm"):
            row[name] = median(sample[name] for sample in samples)
        rows.append({**row, "cpu_s_samples": [round(sample["cpu_s"], 3) for sample in samples]})
    return rows


def compare(rows: list[dict[str, Any]]) -> None:
    """Adds to each row its ratios to the dense way at the same size and precision."""
    whole = {(row["tokens"], row["dtype"]): row for row in rows if row["contender"] == "dense"}
    for row in rows:
        reference = whole[row["tokens"], row["dtype"]]
        row["memory_ratio"] = row["peak_growth_bytes"] / reference["peak_growth_bytes"]
        row["cpu_ratio"] = row["cpu_s"] / reference["cpu_s"]
        row["loss_difference"] = abs(row["loss"] / reference["loss"] - 1) if "cached" not in row["contender"] else None


def main() -> None:
    """Measures all contenders and writes `distillation_memory.json`."""
    parser = make_parser("Memory and time of distillation losses over a large vocabulary.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096], help="tokens a step")
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--hidden-size", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=sorted(DTYPES))
    parser.add_argument("--bf16-tokens", type=int, help="tokens of bf16 steps, where it is emulated and slow")
    parser.add_argument("--worker", help="one step as JSON: what each process is started with")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(run_step(Step(**json.loads(arguments.worker)))))
        return
    sizes = (arguments.vocabulary, arguments.hidden_size)
    rows: list[dict[str, Any]] = []
    for dtype in arguments.dtypes:
        slow = dtype == "bf16" and arguments.bf16_tokens
        names = QUICK if slow else tuple(CONTENDERS)
        for tokens in [arguments.bf16_tokens] if slow else arguments.tokens:
            steps = [Step(name, tokens, *sizes, dtype, arguments.threads) for name in names]
            rows.extend(measure(steps, 1 if slow else arguments.rounds))
    compare(rows)
    content = {
        "objective": {"forward_kl": ALPHA, "cross_entropy": 1 - ALPHA, "temperature": 1.0},
        "target_memory_ratio": TARGET_RATIO,
        "steps": rows,
    }
    path = write_result(arguments.results, "distillation_memory", content, ("torch",))
    print(distillation_memory_table(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
