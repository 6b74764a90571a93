"""One training of a language model from models and data in memory: tokens, objective and teacher for the loop."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from edgekit.artifact import Artifact
from edgekit.data.packing import PackedTokens, pack_tokens
from edgekit.data.prepared import PreparedData
from edgekit.data.separation import find_separation
from edgekit.data.token_store import TokenSettings, open_tokens
from edgekit.distillation.config import DistillConfig, FinetuneConfig, TrainingConfig
from edgekit.distillation.divergences import Divergence
from edgekit.distillation.language_lesson import LanguageLearner, LanguageLesson, LanguageTeacher
from edgekit.distillation.progress import Best
from edgekit.distillation.session import set_dropout
from edgekit.distillation.trainer import Run, train
from edgekit.distillation.vocabulary_losses import VocabularyObjective
from edgekit.errors import UsageError
from edgekit.models.source import LoadedModel, load_model
from edgekit.models.vocabulary_map import teacher_token_ids


def train_language_model(loaded: LoadedModel, data: PreparedData, config: FinetuneConfig, run: Run) -> Best:
    """Trains `loaded` in place on the split `train`, by cross-entropy, and says how good the best evaluation was."""
    objective = VocabularyObjective(soft_targets=0.0, cross_entropy=1.0, chunk_tokens=config.language.chunk_tokens)
    return _train(loaded, data, config, run, objective, None)


def train_language_student(
    student: LoadedModel, teacher: Artifact, data: PreparedData, config: DistillConfig, run: Run
) -> Best:
    """Trains `student` in place on what its teacher says of every token, and says how good the best evaluation was.

    Raises:
        ModelError: a token of the student is not one of the teacher's.
    """
    loaded = load_model(teacher)
    language = config.language
    objective = VocabularyObjective(
        divergence=Divergence(language.divergence, language.mixture, config.temperature),
        soft_targets=config.alpha,
        cross_entropy=1 - config.alpha,
        chunk_tokens=language.chunk_tokens,
    )
    token_ids = teacher_token_ids(student.tokenizer, loaded.tokenizer)
    beside = LanguageTeacher(loaded.model, token_ids, find_separation(loaded.model))
    return _train(student, data, config, run, objective, beside)


def _train(  # noqa: PLR0913 - everything that a training of a language model is made of
    loaded: LoadedModel,
    data: PreparedData,
    config: TrainingConfig,
    run: Run,
    objective: VocabularyObjective,
    teacher: LanguageTeacher | None,
) -> Best:
    set_dropout(loaded.model, config.dropout)
    if config.gradient_checkpointing:
        loaded.model.activation_checkpointing_enable()
    vocabulary = max(loaded.tokenizer.get_vocab().values()) + 1
    learner = LanguageLearner(loaded.model, objective, vocabulary, precision=config.precision)
    with TemporaryDirectory(prefix="edgekit-tokens-") as temporary:
        folder = run.work_directory / "tokens" if run.work_directory is not None else Path(temporary)
        lesson = LanguageLesson(
            learner,
            _tokens(folder, data, "train", loaded, config, run),
            _tokens(folder, data, "validation", loaded, config, run),
            teacher,
        )
        best = train(lesson, config, run)
    if config.gradient_checkpointing:
        loaded.model.activation_checkpointing_disable()
    return best


def _tokens(  # noqa: PLR0913 - what tokens depend on
    folder: Path, data: PreparedData, split: str, loaded: LoadedModel, config: TrainingConfig, run: Run
) -> PackedTokens:
    language = config.language
    length = min(language.sequence_length, loaded.task.max_length)
    if length < 2:
        raise UsageError(f"{run.stage}: language.sequence_length: found {length}, expected at least 2 tokens.")
    settings = TokenSettings(length, language.long_documents)
    store = open_tokens(folder, data, split, loaded.tokenizer, settings, run.events)
    pad_id = loaded.tokenizer.pad_token_id
    return pack_tokens(store, length, 0 if pad_id is None else int(pad_id), seed=run.seed)
