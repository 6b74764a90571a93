"""Classifies texts with optimum-onnx as its documentation does, and prints token ids, logits and scores as JSON.

.peers/optimum/bin/python tests/peers/classify_optimum.py BUNDLE < texts.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification, pipeline
from transformers import AutoTokenizer

bundle = Path(sys.argv[1])
texts = json.load(sys.stdin)
max_length = json.loads((bundle / "task.json").read_text(encoding="utf-8"))["max_length"]
tokenizer = AutoTokenizer.from_pretrained(bundle)
model = ORTModelForSequenceClassification.from_pretrained(bundle)


def run(batch: list[str]) -> dict[str, list[list[float]]]:
    inputs = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    logits = model(**inputs).logits
    found = {"ids": inputs["input_ids"], "mask": inputs["attention_mask"], "logits": logits}
    return {name: values.tolist() for name, values in found.items()}


classifier = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, truncation=True)
scores = [{entry["label"]: entry["score"] for entry in classifier([text])[0]} for text in texts]
json.dump({"alone": [run([text]) for text in texts], "together": run(texts), "scores": scores}, sys.stdout)
