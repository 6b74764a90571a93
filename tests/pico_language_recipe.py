"""A recipe for a pico language model, with its teacher and text beside it: the whole chain in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from edgekit.contract import StageContext, StageInputs
from edgekit.exporters.stage import ExportConfig, export
from edgekit.models.source import save_model
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import WORDS

RECIPE = """
name = "pico-chat"
seed = 3
[task]
kind = "causal-lm"
max_length = 96
[teacher]
source = "teacher.gguf"
[data]
source = "text.txt"
form = "text"
validation = 0.1
test = 0.15
[data.extra_tests.letters]
source = "letters.txt"
[[stage]]
kind = "finetune"
epochs = 6
batch_size = 8
learning_rate = 3e-3
precision = "float32"
evaluations_per_epoch = 1
language = { sequence_length = 64 }
[[stage]]
kind = "prune"
layers = 2
choose = "influence"
calibration_rows = 16
[[stage]]
kind = "distill"
epochs = 4
batch_size = 8
learning_rate = 3e-3
precision = "float32"
evaluations_per_epoch = 1
temperature = 1.0
language = { sequence_length = 64 }
[[stage]]
kind = "quantize"
bits = 4
group_size = 32
algorithm = "gptq"
calibration_rows = 16
embeddings = 8
embeddings_group_size = 32
[[export]]
format = "onnx"
targets = ["laptop-x86", "pixel-8"]
[[export]]
format = "gguf"
targets = ["laptop-x86"]
[evaluate]
splits = ["test", "letters"]
max_tokens = 64
[evaluate.multiple_choice]
source = "questions.jsonl"
[parity]
documents = 4
max_tokens = 40
greedy_prompts = 2
greedy_tokens = 8
[bench]
depths = [8]
new_tokens = 8
min_runs = 6
min_seconds = 0.05
max_seconds = 0.5
[budget]
perplexity_ratio = 3.0
file_bytes = 2_000_000
"""
"""A teacher with a little training, two layers of four, 4-bit codes, both formats."""


def make_recipe(directory: Path, text: str = RECIPE) -> Path:
    """Writes the recipe with everything that it names, once, and returns its path."""
    if not (directory / "teacher.gguf").exists():
        _write_teacher(directory)
        _write_text(directory)
    path = directory / "recipe.toml"
    path.write_text(text)
    return path


def write_directory_teacher(directory: Path) -> None:
    """Writes the same kind of teacher as a transformers directory."""
    save_model(pico_decoder(hidden_size=64, intermediate_size=128, head_dim=16), directory)


def _write_teacher(directory: Path) -> None:
    loaded = pico_decoder(hidden_size=64, intermediate_size=128, head_dim=16)
    model = publish_model(loaded, directory / "model")
    written = export(StageInputs(model=model), ExportConfig(format="gguf"), StageContext(directory / "gguf"))
    (written.path / "model.gguf").rename(directory / "teacher.gguf")


def _write_text(directory: Path) -> None:
    generator = random.Random(0)
    lines = [" ".join(generator.choices(WORDS, k=generator.randint(5, 40))) for _ in range(120)]
    (directory / "text.txt").write_text("\n".join(lines) + "\n")
    letters = [" ".join(generator.choices("abcdefgh", k=30)) for _ in range(8)]
    (directory / "letters.txt").write_text("\n".join(letters) + "\n")
    rows = [
        {"question": "The old man and the", "choices": ["sea", "qqq zzz"], "answer": 0},
        {"question": "A river is a flowing body of", "choices": ["xxxx", "water."], "answer": "water."},
    ]
    (directory / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
