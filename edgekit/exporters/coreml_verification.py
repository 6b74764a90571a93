"""Runs the test vectors of a Core ML package on a Mac: `python verify_on_mac.py`; it needs coremltools and numpy alone.

It lies beside the package and `test_vectors.json`, compares each row's logits with the expected ones, writes what it
found to `verified.json` in the working directory, and exits with 0 where all are within the tolerance, else with 1;
2 says that nothing could be run.

edgekit copies this file as it is beside every package: on Linux, where Core ML does not run, a package is unverified.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
Inputs = dict[str, np.ndarray]
Predict = Callable[[Inputs], Any]

UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


def package_digest(package: Path) -> str:
    """Returns the SHA-256 of a package's program, followed by its weights."""
    digest = hashlib.sha256()
    for name in (PROGRAM, WEIGHTS):
        if (package / name).is_file():
            digest.update((package / name).read_bytes())
    return digest.hexdigest()


def compare(vectors: list[dict[str, Any]], predict: Predict) -> dict[str, float]:
    """Returns what `predict(inputs) -> logits` is off on every vector: largest, mean, and share of equal labels."""
    differences, agreeing = [], 0
    for vector in vectors:
        inputs = {name: np.array([values], dtype=np.int32) for name, values in vector["inputs"].items()}
        expected = np.array(vector["logits"], dtype=np.float64)
        found = np.asarray(predict(inputs), dtype=np.float64).reshape(-1)
        if found.shape != expected.shape:
            raise ValueError(f"found {found.size} logits, expected {expected.size}")
        differences.append(np.abs(found - expected))
        agreeing += int(found.argmax() == expected.argmax())
    return {
        "rows": len(vectors),
        "max_abs_diff": float(np.max(differences)),
        "mean_abs_diff": float(np.mean(differences)),
        "label_agreement": agreeing / len(vectors),
    }


def is_within(found: dict[str, float], tolerance: float) -> bool:
    """Returns whether every logit is within the tolerance; NaN is not."""
    return bool(found["max_abs_diff"] <= tolerance)


def core_ml(package: Path, units: str) -> Predict:
    """Returns a function that runs the package with Core ML."""
    import coremltools

    model = coremltools.models.MLModel(str(package), compute_units=coremltools.ComputeUnit[units])
    return lambda inputs: model.predict(inputs)["logits"]


def main(arguments: list[str] | None = None, opener: Callable[[Path, str], Predict] = core_ml) -> int:
    """Runs the vectors, writes `verified.json` and returns the exit code."""
    parser = argparse.ArgumentParser(description="Runs a Core ML package's test vectors on this Mac.")
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent, help="where the package lies")
    parser.add_argument("--compute-units", choices=UNITS, default="ALL", help="ALL is what apps use")
    parser.add_argument("--out", type=Path, default=Path("verified.json"), help="where the result goes")
    chosen = parser.parse_args(arguments)
    try:
        content = json.loads((chosen.directory / "test_vectors.json").read_text(encoding="utf-8"))
        package = chosen.directory / content["package"]
        digest = package_digest(package)
        if digest != content["model_sha256"]:
            raise ValueError(f"{package}: found another package than the vectors are of; export the model again")
        found = compare(content["vectors"], opener(package, chosen.compute_units))
    except Exception as error:  # whatever Core ML raises: nothing is verified
        sys.stderr.write(f"Not verified: {error}\n")
        return 2
    passed = is_within(found, content["tolerance"])
    result = {
        "format": 1,
        "passed": passed,
        "tolerance": content["tolerance"],
        "model_sha256": digest,
        **found,
        "compute_units": chosen.compute_units,
        "system": platform.platform(),
        "macos": platform.mac_ver()[0],
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    # JSON knows no NaN and no infinity
    finite = {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in result.items()
    }
    text = json.dumps(finite, indent=1, allow_nan=False)
    chosen.out.write_text(text + "\n", encoding="utf-8")
    verdict = "verified" if passed else "differs"
    sys.stdout.write(
        f"{package.name} {verdict}: {found['rows']} rows, largest difference {found['max_abs_diff']:.3g} "
        f"(allowed {content['tolerance']:g}), same label {found['label_agreement']:.1%}; see {chosen.out}\n"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
