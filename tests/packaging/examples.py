"""Exports, targets and facts for packaging tests: a real tokenizer and a real ONNX file, made in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edgekit.artifact import Ancestor, Artifact, Lineage, publish
from edgekit.models.tasks import TaskConfig, write_task
from edgekit.models.tokenizer import save_tokenizer
from edgekit.packaging.facts import BundleFacts
from edgekit.results import BudgetResult, Interval, Parity, Quality
from edgekit.target import Figure, RuntimeOnTarget, Target
from tests.pico import pico_tokenizer
from tests.reporting.examples import estimate, measurement

LABELS = ["negative", "positive"]
MAX_LENGTH = 32


def onnx_artifact(directory: Path, *, labels: list[str] | None = None) -> Artifact:
    """Publishes a masked mean of embeddings under a linear layer, in the layout of an export."""
    labels = labels or LABELS
    tokenizer = pico_tokenizer("bert")
    prepared = Ancestor(digest="d" * 64, lineage=Lineage(stage="prepare", config={"source": "reviews.csv", "seed": 1}))
    source = Ancestor(digest="a" * 64, lineage=Lineage(stage="import", config={"source": "pkg:teacher/model"}))
    distilled = Lineage(stage="distill", config={"temperature": 2.0}, inputs={"model": source, "data": prepared})
    student = Ancestor(digest="b" * 64, lineage=distilled)
    lineage = Lineage(stage="export", config={"format": "onnx"}, inputs={"model": student})
    with publish(directory, kind="onnx", lineage=lineage) as staging:
        save_tokenizer(tokenizer, staging)
        write_task(staging, TaskConfig(labels=labels, max_length=MAX_LENGTH))
        config = {"id2label": dict(enumerate(labels)), "pad_token_id": tokenizer.pad_token_id, "model_type": "bert"}
        (staging / "config.json").write_text(json.dumps(config))
        (staging / "export.json").write_text(json.dumps({"opset": 21, "ir_version": 10, "more": [1]}))
        (staging / "onnx").mkdir()
        _write_onnx(staging / "onnx" / "model.onnx", len(tokenizer), len(labels))
    return Artifact.open(directory)


def target(form_factor: str = "laptop", **changes: object) -> Target:
    """Returns a target that nobody sells."""
    figure = Figure(value=1e9, source="made up")
    fields: dict[str, object] = {
        "name": f"some-{form_factor}",
        "description": f"A {form_factor} that nobody sells",
        "form_factor": form_factor,
        "operating_system": "android" if form_factor in ("phone", "tablet") else None,
        "architecture": "aarch64" if form_factor in ("phone", "tablet", "single-board") else "x86_64",
        "cpu": "Imaginary",
        "memory_bytes": 2**30,
        "memory_bandwidth_bytes_per_s": figure,
        "peak_int8_operations_per_s": figure,
        "peak_float32_operations_per_s": figure,
        "runtimes": [RuntimeOnTarget(name="onnxruntime", version="1.22.0", opset=21, ir_version=10, threads=2)],
    }
    return Target.model_validate(fields | changes)


def facts(model: Artifact, **changes: object) -> BundleFacts:
    """Returns facts that let `model` ship."""
    share = Interval(low=0.8, high=0.88)
    parity = Parity(
        runtime="onnxruntime 1.32.0",
        rows=64,
        max_abs_diff=1e-6,
        mean_abs_diff=1e-7,
        label_agreement=1.0,
        tokenizer_mismatches=0,
        tokenizer_texts=36,
        passed=True,
        model_digest=model.digest,
    )
    quality = Quality(
        accuracy=0.84,
        accuracy_interval=share,
        cross_entropy=0.4,
        rows=400,
        per_label_recall={"negative": 0.85, "positive": 0.83},
        per_label_recall_intervals={"negative": share, "positive": share},
        model_digest=model.digest,
    )
    measured = measurement(3.8, 8_000_000, count=40).model_copy(update={"model_digest": model.digest})
    fields: dict[str, object] = {
        "parity": parity,
        "quality": quality,
        "measurement": measured,
        "estimates": [estimate(2.0, 8.0)],
        "budget": BudgetResult(met=True, checks=[]),
    }
    return BundleFacts.model_validate(fields | changes)


def _write_onnx(file: Path, vocabulary: int, labels: int) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = {
        "embedding": generator.normal(size=(vocabulary, 8)).astype(np.float32),
        "head": generator.normal(size=(8, labels)).astype(np.float32),
        "axis": np.array([1], dtype=np.int64),
        "last": np.array([-1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
        helper.make_node("Mul", ["embedded", "mask_3d"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["sum", "head"], ["logits"]),
    ]
    rows = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "pico",
        [helper.make_tensor_value_info(name, TensorProto.INT64, rows) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)
