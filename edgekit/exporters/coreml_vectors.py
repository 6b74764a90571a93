"""The test vectors of a Core ML package: token rows and the logits that torch computes of them with the same codes.

A Mac runs them with `verify_on_mac.py`, which lies beside them. The texts are those that tokenizers disagree on, at
their own length and, every second one, padded further.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from edgekit.errors import ParityError
from edgekit.exporters.coreml_file import read_package
from edgekit.exporters.coreml_interpreter import interpret
from edgekit.models.tokenizer import NASTY_TEXTS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.models.source import LoadedModel

VECTORS_FILE, SCRIPT_FILE = "test_vectors.json", "verify_on_mac.py"
_SCRIPT = Path(__file__).parent / "coreml_verification.py"
_EXTRA_PADDING = 7
_MOST_INTERPRETED = 6
_TOLERANCE = {"float32": 1e-3, "float16": 0.05}
"""Largest difference of any logit, by what the package computes in."""

Logits = list[float]


class TestVector(BaseModel):
    """One row of token ids and what the model answers."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    __test__ = False  # no class of tests

    inputs: dict[str, list[int]]
    """Input name to its values; the package takes each as (1, T) int32."""
    logits: Logits
    """What torch computes with the same weights."""


class TestVectors(BaseModel):
    """The content of `test_vectors.json`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    __test__ = False  # no class of tests

    format: Literal[1] = 1
    package: str
    """The package that they are of, beside this file."""
    model_sha256: str
    """SHA-256 of the package's program, and of its weights after it."""
    tolerance: float
    """Largest difference that any logit may have."""
    vectors: list[TestVector]


def make_vectors(loaded: LoadedModel, network: nn.Module, names: Sequence[str]) -> list[TestVector]:
    """Returns the vectors; `network` computes what the package should, on `loaded`'s tokens."""
    from edgekit.models.tokenizer import tokenizer_vectors

    longest = loaded.task.max_length
    pad_id = loaded.tokenizer.pad_token_id or 0
    vectors = []
    for count, encoded in enumerate(tokenizer_vectors(loaded.tokenizer, NASTY_TEXTS, longest)):
        ids = encoded.input_ids
        padding = min(_EXTRA_PADDING, longest - len(ids)) if count % 2 else 0
        if not ids:
            continue  # Core ML takes no empty row
        given = {
            "input_ids": [*ids, *[pad_id] * padding],
            "attention_mask": [1] * len(ids) + [0] * padding,
            "token_type_ids": [0] * (len(ids) + padding),
        }
        inputs = {name: given[name] for name in names}
        vectors.append(TestVector(inputs=inputs, logits=_expected(network, inputs)))
    return vectors


def _expected(network: nn.Module, inputs: dict[str, list[int]]) -> Logits:
    with torch.inference_mode():
        given = {name: torch.tensor([values], dtype=torch.int64) for name, values in inputs.items()}
        found: Logits = network(**given).logits[0].double().tolist()
    return found


def require_interpreted(package: Path, vectors: Sequence[TestVector], precision: str) -> float:
    """Returns the largest difference of the program in a package, interpreted in numpy on some vectors, from torch.

    That is no run: it tells that the program says what torch computes, not how Core ML computes it.

    Raises:
        ParityError: the program says something else.
        ModelError: the package cannot be read.
        UnsupportedError: it holds an operator that cannot be interpreted.
    """
    program = read_package(package)
    largest = 0.0
    # an odd step: every second vector is padded, and both kinds must be seen
    for vector in vectors[:: max(1, len(vectors) // _MOST_INTERPRETED) | 1]:
        rows: dict[str, NDArray[np.int64]] = {name: np.array([values]) for name, values in vector.inputs.items()}
        (found,) = interpret(program, rows).values()
        largest = max(largest, float(np.abs(found[0] - np.array(vector.logits)).max()))
        if not largest <= _TOLERANCE[precision]:  # NaN is no number below the limit
            raise ParityError(
                f"coreml: {package.name}, interpreted, differs from torch by {largest:.3g}, expected at most "
                f"{_TOLERANCE[precision]:g}. Nothing was exported: the exporter does not understand this model."
            )
    return largest


def write_vectors(directory: Path, package: Path, vectors: list[TestVector], precision: str) -> None:
    """Writes `test_vectors.json` and `verify_on_mac.py` beside a package."""
    from edgekit.exporters.coreml_verification import package_digest

    content = TestVectors(
        package=package.name,
        model_sha256=package_digest(package),
        tolerance=_TOLERANCE[precision],
        vectors=vectors,
    )
    text = json.dumps(content.model_dump(mode="json")) + "\n"
    (directory / VECTORS_FILE).write_text(text, encoding="utf-8")
    shutil.copyfile(_SCRIPT, directory / SCRIPT_FILE)
