"""An ONNX classifier of a few kilobytes whose logits can be computed by hand: mean of embeddings, times a matrix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.models.tokenizer import save_tokenizer
from edgekit.runtimes.protocol import SessionConfig, get_runtime
from tests.pico import pico_tokenizer

HIDDEN = 16
LABELS = ("negative", "positive")


def tables(vocabulary: int, labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Returns embeddings (vocabulary, hidden) and a head (hidden, labels), float32."""
    generator = np.random.default_rng(7)
    return (
        generator.standard_normal((vocabulary, HIDDEN)).astype(np.float32),
        generator.standard_normal((HIDDEN, labels)).astype(np.float32),
    )


def expected_logits(input_ids: np.ndarray, attention_mask: np.ndarray, vocabulary: int) -> np.ndarray:
    """Returns what the model computes: (B, T) ids and mask to (B, labels)."""
    embeddings, head = tables(vocabulary)
    masked = embeddings[input_ids] * attention_mask[..., None]
    return masked.sum(axis=1) / attention_mask.sum(axis=1, keepdims=True) @ head


def tiny_onnx_artifact(
    out: Path, *, labels: tuple[str, ...] = LABELS, opset: int = 21, file: str = "onnx/model.onnx"
) -> Artifact:
    """Publishes the classifier as an `onnx` artifact with the tokenizer of the pico models."""
    import onnx

    tokenizer = pico_tokenizer("bert")
    with publish(out, kind="onnx", lineage=Lineage(stage="source")) as directory:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(_model(len(tokenizer), len(labels), opset), directory / file)
        save_tokenizer(tokenizer, directory)
        config = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_token_id}
        (directory / "config.json").write_text(json.dumps(config))
        task = {"task": "text-classification", "labels": list(labels), "max_length": 32}
        (directory / "task.json").write_text(json.dumps(task))
    return Artifact.open(out)


def session_of(artifact: Artifact):
    return get_runtime("onnxruntime").open(artifact, SessionConfig())


def _model(vocabulary: int, labels: int, opset: int):
    from onnx import TensorProto, helper, numpy_helper

    embeddings, head = tables(vocabulary, labels)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])]
    weights = [
        numpy_helper.from_array(embeddings, "table"),
        numpy_helper.from_array(head, "head"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
