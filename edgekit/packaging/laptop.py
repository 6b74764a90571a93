"""Laptops, desktops and servers: Python."""

from __future__ import annotations

from edgekit.packaging.manifest import Manifest
from edgekit.packaging.usage import requirement

_ELSEWHERE = """

The directory also opens unchanged in transformers.js and in optimum's `ORTModelForSequenceClassification`."""


def app_files(manifest: Manifest) -> dict[str, str]:
    """Returns nothing: `usage.py` is in every bundle."""
    return {}


def instructions(manifest: Manifest) -> str:
    """Returns how to run the bundle from Python."""
    needed = requirement(manifest.versions.runtime, manifest.versions.runtime_minimum)
    elsewhere = _ELSEWHERE if manifest.format == "onnx" else ""
    return f"""\
```sh
pip install '{needed}' tokenizers numpy
python usage.py "A text to classify."
```{elsewhere}"""
