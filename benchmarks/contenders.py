"""Prepares what the latency benchmark compares: files made from one build's teacher and student.

How they are measured is not known here. What was made before from the same artifacts is taken from the work directory.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from litert_runtime import LiteRTRuntime
from measuring import say, tell_stages

from edgekit.artifact import Artifact, FileRecord, Kind, Lineage, hash_file, publish
from edgekit.cache import Cache
from edgekit.contract import StageInputs
from edgekit.exporters.stage import ExportConfig
from edgekit.recipe import Recipe, export_config
from edgekit.results import BuildResult
from edgekit.runtimes.protocol import Runtime, get_runtime, model_bytes

HERE = Path(__file__).resolve().parent
STUDENT_MAKERS = ("prune", "distill")


@dataclass(frozen=True)
class Models:
    """The models of a build that the contenders are made from."""

    teacher: Artifact
    """Float, as finetuned."""
    student: Artifact
    """Float, before it was quantized."""
    quantized: Artifact
    """The student on integer codes."""


@dataclass(frozen=True)
class Contender:
    """One model file and the runtime that runs it."""

    name: str
    artifact: Artifact
    runtime: Runtime
    bytes: int
    """Size of the files that the runtime reads."""


def models_of(build: Path) -> Models:
    """Returns teacher and students of a finished build, found by the order of its stages."""
    file = build / "build.json"
    if not file.is_file():
        raise SystemExit(f"{file}: not found. Build first: edgekit build review-sentiment --out {build}")
    result = BuildResult.model_validate_json(file.read_text(encoding="utf-8"))
    kinds = [stage.kind for stage in result.stages]
    paths = [Path(stage.path) for stage in result.stages]
    if "quantize" not in kinds or not set(STUDENT_MAKERS) & set(kinds):
        raise SystemExit(f"{file}: found the stages {', '.join(kinds)}; expected prune or distill, then quantize.")
    imported = [Path(step.path) for step in result.preparation if step.kind == "import"]
    before = min(kinds.index(kind) for kind in STUDENT_MAKERS if kind in kinds)
    last = kinds.index("quantize")
    chosen = ([*imported, *paths[:before]][-1], paths[last - 1], paths[last])
    return Models(*(Artifact.open(build / path, kind="model") for path in chosen))


def prepare(models: Models, recipe: Recipe, litert_python: Path, work: Path) -> list[Contender]:
    """Returns the contenders, the one that edgekit ships first; every other is compared with it."""
    entry = recipe.exports[0]
    as_is = export_config(entry, recipe.targets[entry.targets[0]])
    floats = as_is.model_copy(update={"precision": "float32"})
    return [
        _exported("student, int8, edgekit ONNX", models.quantized, as_is, work),
        _exported("teacher, float32, edgekit ONNX", models.teacher, floats, work),
        _plain("teacher, float32, torch.onnx.export", models.teacher, as_is, work),
        _litert("student, int8, LiteRT", models.quantized, litert_python, work),
        _exported("student, float32, edgekit ONNX", models.student, floats, work),
        Contender("student, float32, torch", models.student, get_runtime("torch"), model_bytes(models.student)),
    ]


def litert_environment(work: Path) -> Path:
    """Returns the Python of an environment that holds LiteRT, made in the work directory when it is not there."""
    environment = work / "litert-venv"
    python = environment / "bin" / "python"
    ready = environment / ".installed"
    if not ready.is_file():
        say(f"installing LiteRT into {environment} (a few minutes, 2 GB)")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        requirements = HERE / "litert-requirements.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        ready.touch()
    return python


def _exported(name: str, model: Artifact, config: ExportConfig, work: Path) -> Contender:
    artifact = Cache(work, 0, tell_stages).run("export", StageInputs(model=model), config).artifact
    return Contender(name, artifact, get_runtime("onnxruntime"), model_bytes(artifact))


def _plain(name: str, model: Artifact, config: ExportConfig, work: Path) -> Contender:
    """Exports as people do without edgekit: the model as transformers gives it, any batch size and length."""
    out = work / f"onnx-{model.digest[:12]}-plain"
    if not out.exists():
        say(f"exporting: {name}")
        import torch

        from edgekit.models.source import load_model

        network = load_model(model).model
        example = torch.ones(2, 8, dtype=torch.int64)
        shape = {0: torch.export.Dim("batch", max=256), 1: torch.export.Dim("length", max=512)}
        with publish(out, kind="onnx", lineage=Lineage(stage="source")) as directory:
            (directory / "onnx").mkdir()
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)  # the exporter's notes about optional packages
            torch.onnx.export(
                network,
                (),
                directory / "onnx" / "model.onnx",
                kwargs={"input_ids": example, "attention_mask": example},
                dynamic_shapes={"input_ids": shape, "attention_mask": shape},
                dynamo=True,
                external_data=False,
                opset_version=config.opset,
                verbose=False,
            )
    artifact = Artifact.open(out, kind="onnx")
    return Contender(name, artifact, get_runtime("onnxruntime"), model_bytes(artifact))


def _litert(name: str, quantized: Artifact, python: Path, work: Path) -> Contender:
    """Converts the student by LiteRT's own tools, in their environment; the interpreter alone is used in this one."""
    _require_same_python(python)
    out = work / f"litert-{quantized.digest[:12]}"
    if not (out / "peer.json").is_file():
        say(f"converting: {name}")
        floats = out / "dequantized"
        write_dequantized(quantized, floats)
        command: list[str | Path] = [python, HERE / "litert_peer.py", floats, out, "--length", "64"]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if finished.returncode != 0:
            raise SystemExit(f"LiteRT could not convert the student:\n{finished.stderr[-3000:]}")
    # Last on the import path: numpy and all else stay this environment's own.
    sys.path.append(sysconfig.get_path("purelib", vars={"base": str(python.parent.parent)}))
    file = out / "int8.tflite"
    record = FileRecord(sha256=hash_file(file), bytes=file.stat().st_size)
    artifact = Artifact(file, cast(Kind, "tflite"), record.sha256, {file.name: record}, Lineage(stage="source"))
    return Contender(name, artifact, cast(Runtime, LiteRTRuntime()), record.bytes)


def litert_report(quantized: Artifact, work: Path) -> dict[str, Any]:
    """Returns what `litert_peer.py` found out about its files."""
    report: dict[str, Any] = json.loads((work / f"litert-{quantized.digest[:12]}" / "peer.json").read_text("utf-8"))
    return report


def write_dequantized(quantized: Artifact, directory: Path) -> None:
    """Writes the quantized student as a plain transformers directory: float weights, which the codes stand for."""
    import torch
    from torch import nn

    from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear, replace_module
    from edgekit.models.source import load_model, save_model

    loaded = load_model(quantized)
    for module in list(loaded.model.modules()):
        plain: nn.Linear | nn.Embedding
        if isinstance(module, QuantizedLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            if module.bias is not None:
                plain.bias.data = module.bias.detach().clone()
            plain.weight.data = module.weight.dequantize()
        elif isinstance(module, QuantizedEmbedding):
            plain = nn.Embedding(module.num_embeddings, module.embedding_dim, padding_idx=module.padding_idx)
            plain.weight.data = torch.as_tensor(module.weight)
        else:
            continue
        replace_module(loaded.model, module, plain)
    save_model(loaded, directory)


def _require_same_python(python: Path) -> None:
    """Ends the program when LiteRT's environment has another Python: its interpreter could not be loaded here."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found != here:
        raise SystemExit(f"{python}: found Python {found}, expected {here}, that of this environment.")
