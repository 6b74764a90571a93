"""`edgekit predict`: classify text with a bundle."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path

from edgekit.cli.options import AsJson
from edgekit.errors import UsageError


def predict(bundle: Path, *texts: str, json: AsJson = False) -> int:
    """Classify text with a bundle, its digests verified.

    Parameters
    ----------
    bundle
        Directory of a bundle.
    texts
        Texts to classify; without any, one text a line is read from standard input.
    """
    from edgekit.packaging.bundle import open_bundle

    for number, text in enumerate(texts, start=1):
        if not text.strip():
            found = "only white space" if text else "an empty text"
            raise UsageError(f"edgekit predict: text {number}: found {found}, expected words. Leave it out.")
    classifier = open_bundle(bundle)
    lines = list(texts) if texts else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    for text, prediction in zip(lines, classifier.predict(lines), strict=True):
        if json:
            fields = {"text": text, "label": prediction.label, "score": prediction.score, "scores": prediction.scores}
            print(json_format.dumps(fields, ensure_ascii=False))
        else:
            print(f"{prediction.label}\t{prediction.score:.4f}\t{text}")
    return 0
