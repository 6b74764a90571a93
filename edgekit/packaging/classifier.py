"""Classifies text with a bundle: its runtime and the bare tokenizer, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import CorruptArtifactError, EnvironmentLacksError, UsageError
from edgekit.extras import install_command
from edgekit.packaging.manifest import Manifest

if TYPE_CHECKING:
    from numpy import ndarray
    from tokenizers import Tokenizer

    from edgekit.runtimes.protocol import Session


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text."""

    label: str
    """The label with the highest score."""
    score: float
    """Its score, 0 to 1."""
    scores: dict[str, float]
    """Label to softmax score, in the order of the logits; they add up to 1."""


@dataclass(frozen=True)
class _Files:
    """A bundle as a runtime sees it: it holds an export's files unchanged."""

    path: Path
    kind: str


class Classifier:
    """A bundle, open. Texts run one at a time, so that a prediction never depends on its neighbours' padding."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session) -> None:
        """Takes the open parts; `open_classifier` opens them."""
        self.manifest = manifest
        self._tokenizer = tokenizer
        self._session = session

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the logits."""
        return list(self.manifest.labels)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Returns one prediction a text, in order.

        Raises:
            UsageError: `texts` is a single string.
        """
        if isinstance(texts, str):
            raise UsageError("predict: found one string, expected a list of texts. Write predict([text]).")
        return [self._judge(text) for text in texts]

    def logits(self, text: str) -> ndarray:
        """Returns the logits of one text, float32 (labels,).

        Raises:
            UsageError: `text` is not a string.
            CorruptArtifactError: the model has another number of outputs than labels.
        """
        if not isinstance(text, str):
            raise UsageError(f"logits: found a {type(text).__name__}, expected one string. Call it for each text.")
        from edgekit.data.preprocessing import encode, pad
        from edgekit.runtimes.protocol import select_inputs

        ids = encode([text], self._tokenizer, self.manifest.max_length, allow_empty=True)
        inputs = select_inputs(self._session.input_names, *pad(ids, self.manifest.pad_id))
        logits: ndarray = self._session.run(inputs)["logits"]
        if logits.shape != (1, len(self.manifest.labels)):
            raise CorruptArtifactError(
                f"{self.manifest.model}: gives logits of shape {logits.shape}, expected "
                f"(1, {len(self.manifest.labels)}) for {', '.join(self.manifest.labels)}. Build the bundle again."
            )
        row: ndarray = logits[0]
        return row

    def _judge(self, text: str) -> Prediction:
        import numpy as np

        logits = self.logits(text).astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares = shares / shares.sum()
        scores = {label: float(share) for label, share in zip(self.manifest.labels, shares, strict=True)}
        best = self.manifest.labels[int(logits.argmax())]
        return Prediction(best, scores[best], scores)


def open_classifier(directory: Path, manifest: Manifest) -> Classifier:
    """Returns the classifier in `directory`, whose digests the caller has checked.

    Raises:
        ModelError: the model or the tokenizer cannot be read.
        EnvironmentLacksError: the runtime or tokenizers is not installed.
    """
    from importlib.util import find_spec

    from edgekit.models.tokenizer import load_bare_tokenizer
    from edgekit.runtimes.protocol import SessionConfig, get_runtime

    if find_spec("tokenizers") is None:
        raise EnvironmentLacksError(f"the package 'tokenizers' is not installed. Install it: {install_command('run')}")
    session = get_runtime(manifest.versions.runtime).open(
        _Files(directory, manifest.format), SessionConfig(threads=manifest.session.threads)
    )
    return Classifier(manifest, load_bare_tokenizer(directory / manifest.tokenizer), session)
