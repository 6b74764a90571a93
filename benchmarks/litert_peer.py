"""Converts a float32 sequence classifier to LiteRT: float32, and int8 by ai-edge-quantizer's `dynamic_wi8_afp32`.

    PYTHONPATH=. VENV/bin/python benchmarks/litert_peer.py MODEL_DIRECTORY OUT_DIRECTORY --length 64

Run by the Python of LiteRT's own environment (`litert-requirements.txt`). MODEL_DIRECTORY is what transformers loads,
with dequantized weights where the student is quantized. It writes `float32.tflite`, `int8.tflite` and `peer.json`:
versions, sizes, how far the files are from torch, and how many of the student's weights the int8 file holds exactly.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litert_runtime import LiteRTSession
from torch import nn

PACKAGES = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "torch", "transformers")
PROBES = 8
LARGEST_FLOAT_DIFFERENCE = 1e-3


class LogitsOnly(nn.Module):
    """A transformers classifier as a function of arrays: `(1, T) int64 mask, (1, T) int64 ids -> (1, C) float32`."""

    def __init__(self, network: nn.Module, vocabulary: int) -> None:
        """Wraps `network`, whose token ids are below `vocabulary`."""
        super().__init__()
        self.network = network
        self.vocabulary = vocabulary

    def forward(self, attention_mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        logits: torch.Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def load(directory: Path) -> LogitsOnly:
    """Returns the classifier in `directory`, float32, in evaluation mode."""
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    return LogitsOnly(network, network.config.vocab_size).eval()


def convert(model: LogitsOnly, length: int, float_file: Path, int8_file: Path) -> None:
    """Writes the float32 file for inputs of 1 x `length`, and the int8 one, which rounds activations as it runs."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    ones = torch.ones(1, length, dtype=torch.int64)
    converted = litert_torch.convert(model, (ones, ones))
    converted.export(str(float_file))
    quantized = quantizer.Quantizer(str(float_file), recipe.dynamic_wi8_afp32()).quantize()
    quantized.export_model(str(int8_file), overwrite=True)


def difference_from_torch(model: LogitsOnly, file: Path, length: int) -> float:
    """Returns the largest difference of any logit from torch's over `PROBES` random inputs, the last half padded."""
    session = LiteRTSession(str(file), threads=1)
    generator = np.random.default_rng(0)
    worst = 0.0
    for probe in range(PROBES):
        attention_mask = np.ones((1, length), dtype=np.int64)
        attention_mask[:, length - probe * length // (2 * PROBES) :] = 0
        input_ids = generator.integers(5, model.vocabulary, (1, length)) * attention_mask
        found = session.run({"input_ids": input_ids, "attention_mask": attention_mask})["logits"]
        with torch.no_grad():
            expected = model(torch.from_numpy(attention_mask), torch.from_numpy(input_ids)).numpy()
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def require_same_model(difference: float) -> None:
    """Ends the program when the float32 file is not the model: its timing would mean nothing."""
    if difference > LARGEST_FLOAT_DIFFERENCE:
        raise SystemExit(
            f"float32.tflite: found logits {difference:.2g} from torch's, expected {LARGEST_FLOAT_DIFFERENCE:g}. "
            "The converter lost something, or swapped the inputs: compare ARGUMENTS in litert_runtime.py."
        )


def weights_held(model: LogitsOnly, int8_file: Path) -> dict[str, Any]:
    """Returns how many of the matrices' weights the int8 file holds as they are, found by shape and scales.

    The quantizer's scale is absmax/127 of each row: where every row of a quantized student keeps a code at the end of
    its range, the file holds exactly the student's codes, and the two are the same model.
    """
    interpreter = LiteRTSession(str(int8_file), threads=1).interpreter
    stored = []
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and len(detail["shape"]) == 2:
            scales = detail["quantization_parameters"]["scales"].reshape(-1, 1)
            stored.append((scales, interpreter.get_tensor(detail["index"])))
    total = equal = matrices = 0
    for weight in (parameter.detach().numpy() for parameter in model.parameters() if parameter.dim() == 2):
        expected = np.abs(weight).max(axis=1, keepdims=True) / 127
        for scales, codes in stored:
            if codes.shape == weight.shape and np.allclose(scales, expected, rtol=1e-4):
                matrices += 1
                total += weight.size
                equal += int(np.isclose(codes * scales, weight, rtol=1e-4, atol=1e-9).sum())
                break
    return {
        "int8_matrices": len(stored),
        "matrices_matched": matrices,
        "weights_compared": total,
        "weights_equal": equal,
    }


def main() -> None:
    """Converts the model and writes `peer.json`."""
    parser = argparse.ArgumentParser(description="Convert a classifier to LiteRT, float32 and int8.")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--length", type=int, default=64)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    files = {name: arguments.out / f"{name}.tflite" for name in ("float32", "int8")}
    model = load(arguments.model)
    convert(model, arguments.length, files["float32"], files["int8"])
    differences = {name: difference_from_torch(model, file, arguments.length) for name, file in files.items()}
    require_same_model(differences["float32"])
    report = {
        "length": arguments.length,
        "versions": {package: version(package) for package in PACKAGES},
        "bytes": {name: file.stat().st_size for name, file in files.items()},
        "max_abs_diff_from_torch": differences,
        "int8_weights": weights_held(model, files["int8"]),
    }
    (arguments.out / "peer.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
