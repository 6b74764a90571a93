"""One training of a language model from models and data in memory: tokens, objective and teacher for the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.contract import StageInputs
from edgekit.data.packing import PackedTokens, pack_tokens
from edgekit.data.prepared import PreparedData
from edgekit.data.separation import find_separation
from edgekit.data.token_store import TokenSettings, TokenStore, open_tokens
from edgekit.distillation.attention import bf16_attention
from edgekit.distillation.capture_session import (
    capture_language,
    captured_here,
    learned_splits,
    shortest_length,
    workplace,
)
from edgekit.distillation.compiling import compiled_layers, require_compiler
from edgekit.distillation.config import DistillConfig, FinetuneConfig, TrainingConfig, token_capture_config
from edgekit.distillation.divergences import Divergence
from edgekit.distillation.language_capture import Reading, capture_plan
from edgekit.distillation.language_lesson import LanguageLearner, LanguageLesson
from edgekit.distillation.language_teacher import CachedTeacher, LanguageSource, LanguageTeacher
from edgekit.distillation.matching import Matcher, View, drawing_projections, matching_of
from edgekit.distillation.on_policy import StudentWriter, end_ids_of
from edgekit.distillation.processes import make_accelerator
from edgekit.distillation.progress import Best
from edgekit.distillation.session import set_dropout
from edgekit.distillation.signal import CaptureRun
from edgekit.distillation.token_store import TokenSignal
from edgekit.distillation.trainer import Run, train
from edgekit.distillation.vocabulary_losses import VocabularyObjective
from edgekit.errors import UnsupportedError, UsageError
from edgekit.events import within
from edgekit.models.source import LoadedModel, load_model
from edgekit.models.tokenizer import load_tokenizer
from edgekit.models.vocabulary_map import teacher_token_ids


@dataclass(frozen=True)
class _Course:
    """What a training is made of besides the model and the data."""

    objective: VocabularyObjective
    length: int
    teacher: LanguageTeacher | None = None
    """A teacher that runs beside the student."""
    matcher: Matcher | None = None
    """Compares that teacher's layers with the student's."""
    signal: Callable[[Path, TokenStore], TokenSignal] | None = None
    """Returns what was kept of a teacher, given the work directory and the tokens that are trained on."""


def train_language_model(loaded: LoadedModel, data: PreparedData, config: FinetuneConfig, run: Run) -> Best:
    """Trains `loaded` in place on the split `train`, by cross-entropy, and says how good the best evaluation was."""
    language = config.language
    objective = VocabularyObjective(
        soft_targets=0.0, cross_entropy=1.0, chunk_tokens=language.chunk_tokens, compiled=language.compile
    )
    length = min(language.sequence_length, loaded.task.max_length)
    return _train(loaded, data, config, run, _Course(objective, length))


def train_language_student(
    student: LoadedModel, inputs: StageInputs, data: PreparedData, config: DistillConfig, run: Run
) -> Best:
    """Trains `student` in place on what its teacher says of every token, and says how good the best evaluation was.

    It learns from `train` and, unless told otherwise, from `unlabelled`. The teacher is in memory only where it runs
    beside the student: with a signal it is not loaded, and a signal that is captured here is captured before.

    Raises:
        ModelError: a token of the student is not one of the teacher's.
        ArtifactError: the signal is of another teacher, other data, other tokens or another temperature.
        UnsupportedError: layers are to be matched that cannot be compared.
        UsageError: the student is to write its own text, or layers are to be matched, and there is a signal; or a layer
            is named that is not there.
    """
    teacher = inputs.require("teacher", "distill")
    _check(config, inputs)
    language = config.language
    objective = VocabularyObjective(
        divergence=Divergence(language.divergence, language.mixture, config.temperature),
        soft_targets=config.alpha,
        cross_entropy=1 - config.alpha,
        chunk_tokens=language.chunk_tokens,
        compiled=language.compile,
    )
    length = shortest_length("distill", language, inputs.require("model", "distill"), teacher)
    if inputs.signal is None and language.signal == "online":
        loaded = load_model(teacher)
        token_ids = teacher_token_ids(student.tokenizer, loaded.tokenizer)
        matcher = _matcher(student, loaded, config, run)
        view = View() if matcher is None else matcher.matching.teacher_view
        beside = LanguageTeacher(loaded.model, token_ids, find_separation(loaded.model), view)
        return _train(student, data, config, run, _Course(objective, length, beside, matcher))
    kept = _Kept(student, inputs, data, config, run, length)
    return _train(student, data, config, run, _Course(objective, length, signal=kept.open))


@dataclass(frozen=True)
class _Kept:
    """Finds what was kept of a teacher, or captures it first."""

    student: LoadedModel
    inputs: StageInputs
    data: PreparedData
    config: DistillConfig
    run: Run
    length: int

    def open(self, folder: Path, store: TokenStore) -> TokenSignal:
        """Returns the signal after checking that it is of this teacher, these tokens and this temperature."""
        teacher, config = self.inputs.require("teacher", "distill"), self.config
        signal = self._given() if self.inputs.signal is not None else self._captured(folder, teacher)
        if signal.identity.config.kind == "sampled" and config.language.divergence != "forward_kl":
            raise UnsupportedError(
                f"language.divergence: found '{config.language.divergence}' with a sampled signal, expected "
                "'forward_kl': only that is unbiased from samples. Choose it, or capture a top-k signal."
            )
        token_ids = teacher_token_ids(self.student.tokenizer, load_tokenizer(teacher.path))
        reading = Reading(store, token_ids, 0, self.length)
        settings = signal.identity.config.model_copy(update={"temperature": config.temperature})
        signal.require(capture_plan(teacher, self.data.digest, reading, settings, self.run.seed).identity)
        return signal

    def _given(self) -> TokenSignal:
        return TokenSignal.open(self.inputs.require("signal", "distill").path)

    def _captured(self, folder: Path, teacher: Artifact) -> TokenSignal:
        settings = token_capture_config(self.config)
        language = settings.language.model_copy(update={"sequence_length": self.length})
        run = CaptureRun("distill", self.run.events, folder, self.run.fingerprint, self.run.seed)
        plan = capture_language(
            teacher, self.student.tokenizer, self.data, settings.model_copy(update={"language": language}), run, folder
        )
        return captured_here(self.run.stage, folder, plan, shared=self.run.work_directory is not None)


def _check(config: DistillConfig, inputs: StageInputs) -> None:
    if inputs.signal is not None and config.matches_layers:
        raise UsageError(
            f"distill: found a signal, hidden_state_weight {config.hidden_state_weight} and attention_relation_weight "
            f"{config.attention_relation_weight}: nothing was captured of the teacher's layers. Pass no signal, or set "
            "both weights to 0."
        )
    if inputs.signal is not None and config.language.on_policy.share > 0:
        raise UsageError(
            f"distill: found a signal and language.on_policy.share {config.language.on_policy.share}: nothing was "
            "captured of text that the student has yet to write. Pass no signal, or set the share to 0."
        )


def _matcher(student: LoadedModel, teacher: LoadedModel, config: DistillConfig, run: Run) -> Matcher | None:
    """Returns what compares the two models' layers; None where nothing is to be compared."""
    if not config.matches_layers:
        return None
    matching = matching_of(config, student.model, teacher.model)
    with drawing_projections(run.seed):
        return Matcher(matching, student.model.config.hidden_size, teacher.model.config.hidden_size)


def _train(loaded: LoadedModel, data: PreparedData, config: TrainingConfig, run: Run, course: _Course) -> Best:
    model = loaded.model
    set_dropout(model, config.dropout)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    vocabulary = max(loaded.tokenizer.get_vocab().values()) + 1
    learner = LanguageLearner(model, course.objective, vocabulary, precision=config.precision, matcher=course.matcher)
    with workplace(run.work_directory) as folder, _frozen_embedding(loaded, config):
        uses_more = isinstance(config, DistillConfig) and config.use_unlabelled
        learned = learned_splits(data, use_unlabelled=uses_more)
        tokens, validation = (
            _tokens(folder, data, splits, loaded, config, course, run) for splits in (learned, ["validation"])
        )
        teacher: LanguageSource | None = course.teacher
        if course.signal is not None:
            teacher = CachedTeacher(course.signal(folder, tokens.store), tokens)
        lesson = LanguageLesson(learner, tokens, validation, teacher, _writer(loaded, config, run))
        beside = [] if course.teacher is None else [course.teacher.model]
        with ExitStack() as stack:
            if config.language.compile:
                require_compiler(make_accelerator().device)
            for runs in (model, *beside):
                stack.enter_context(bf16_attention(runs, config.precision, make_accelerator().device))
                if config.language.compile:
                    stack.enter_context(compiled_layers(runs))
            best = train(lesson, config, run)
    if config.gradient_checkpointing:
        model.activation_checkpointing_disable()
    return best


def _tokens(  # noqa: PLR0913 - what tokens depend on
    folder: Path,
    data: PreparedData,
    splits: list[str],
    loaded: LoadedModel,
    config: TrainingConfig,
    course: _Course,
    run: Run,
) -> PackedTokens:
    settings = TokenSettings(course.length, config.language.long_documents)
    events = within(run.events, run.stage)
    store = open_tokens(folder / "tokens", data, splits, loaded.tokenizer, settings, events)
    return pack_tokens(store, course.length, int(loaded.tokenizer.pad_token_id or 0), seed=run.seed)


def _writer(loaded: LoadedModel, config: TrainingConfig, run: Run) -> StudentWriter | None:
    settings = config.language.on_policy
    if settings.share == 0 or not isinstance(config, DistillConfig):
        return None
    return StudentWriter(settings, run.seed, end_ids_of(loaded), config.precision)


@contextmanager
def _frozen_embedding(loaded: LoadedModel, config: TrainingConfig) -> Iterator[None]:
    """Keeps the token table, and a head tied to it, as they are while the block runs, where `config` says so."""
    if not config.language.freeze_embedding:
        yield
        return
    loaded.model.get_input_embeddings().requires_grad_(False)
    try:
        yield
    finally:
        loaded.model.get_input_embeddings().requires_grad_(True)
