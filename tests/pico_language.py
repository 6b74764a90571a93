"""Text that a pico language model can learn, as a `data` artifact."""

from __future__ import annotations

import random
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.data.stage import PrepareConfig, prepare
from tests.pico_decoders import TRAINING_TEXT

WORDS = TRAINING_TEXT.split()


def pico_language_data(directory: Path, *, documents: int = 120, seed: int = 0, most_words: int = 40) -> Artifact:
    """Publishes documents of 5 to `most_words` words as a `data` artifact with train, validation and test."""
    generator = random.Random(seed)
    lines = [" ".join(generator.choices(WORDS, k=generator.randint(5, most_words))) for _ in range(documents)]
    source = directory / f"documents-{seed}.txt"
    source.write_text("\n".join(lines) + "\n")
    config = PrepareConfig(source=str(source), form="text")
    return prepare(StageInputs(), config, StageContext(directory / f"language-data-{seed}", seed=seed))
