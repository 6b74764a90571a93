"""One capture of a language model from artifacts: which tokens are read, by whom, and where the shards lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact
from edgekit.data.prepared import PreparedData
from edgekit.data.separation import find_separation
from edgekit.data.token_store import TokenSettings, open_tokens
from edgekit.distillation.config import CaptureConfig, SequenceConfig
from edgekit.distillation.language_capture import Reading, capture_plan, capture_tokens
from edgekit.distillation.language_teacher import LanguageTeacher
from edgekit.distillation.processes import make_accelerator, wait_for_all
from edgekit.distillation.signal import CaptureRun
from edgekit.distillation.signal_capture import CapturePlan, assemble
from edgekit.distillation.token_store import TokenSignal
from edgekit.errors import UsageError
from edgekit.events import Event, EventSink, within
from edgekit.models.source import load_model
from edgekit.models.tasks import read_task
from edgekit.models.vocabulary_map import teacher_token_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@contextmanager
def workplace(work_directory: Path | None) -> Iterator[Path]:
    """Yields the work directory, or one that is removed afterwards."""
    if work_directory is not None:
        work_directory.mkdir(parents=True, exist_ok=True)
        yield work_directory
        return
    with TemporaryDirectory(prefix="edgekit-") as temporary:
        yield Path(temporary)


def shortest_length(stage: str, config: SequenceConfig, *models: Artifact) -> int:
    """Returns the tokens of a sequence: those asked for, or the shortest context of `models` where that is less.

    Raises:
        UsageError: fewer than 2 are left.
    """
    length = min(config.sequence_length, *(read_task(model).max_length for model in models))
    if length < 2:
        raise UsageError(f"{stage}: language.sequence_length: found {length}, expected at least 2 tokens.")
    return length


def learned_splits(data: PreparedData, *, use_unlabelled: bool) -> list[str]:
    """Returns the splits that a student learns from its teacher."""
    return ["train", "unlabelled"] if use_unlabelled and "unlabelled" in data.rows else ["train"]


def read_tokens(  # noqa: PLR0913 - what tokens depend on, and whom to tell
    folder: Path,
    data: PreparedData,
    reader: PreTrainedTokenizerBase,
    token_ids: Tensor,
    settings: TokenSettings,
    events: EventSink,
    *,
    use_unlabelled: bool,
) -> Reading:
    """Returns the tokens that are learned from a teacher, as the tokenizer `reader` cuts them."""
    splits = learned_splits(data, use_unlabelled=use_unlabelled)
    store = open_tokens(folder / "tokens", data, splits, reader, settings, events)
    return Reading(store, token_ids, int(reader.pad_token_id or 0), settings.length)


def capture_language(  # noqa: PLR0913 - what a capture depends on, and where it runs
    teacher: Artifact,
    reader: PreTrainedTokenizerBase | None,
    data: PreparedData,
    config: CaptureConfig,
    run: CaptureRun,
    folder: Path,
) -> CapturePlan:
    """Makes the shards of a capture in `folder` and returns what they are of.

    Args:
        teacher: whose words are kept.
        reader: the tokenizer that cuts the text, the student's; none: the teacher's own.
        data: prepared data of documents.
        config: what to keep.
        run: whom to tell, and the seed.
        folder: shared by all processes that capture together.

    Raises:
        ModelError: a token of the reader is not one of the teacher's.
        UsageError: a record would be above 300 bytes.
        TrainingError: a logit is not finite.
        EnvironmentLacksError: the disk is full or not writable; finished shards are kept.
    """
    language = config.language
    settings = TokenSettings(shortest_length(run.stage, language, teacher), language.long_documents)
    loaded = load_model(teacher)
    tokenizer = loaded.tokenizer if reader is None else reader
    token_ids = teacher_token_ids(tokenizer, loaded.tokenizer)
    events, use_unlabelled = within(run.events, run.stage), config.use_unlabelled
    reading = read_tokens(folder, data, tokenizer, token_ids, settings, events, use_unlabelled=use_unlabelled)
    plan = capture_plan(teacher, data.digest, reading, language.signal, run.seed)
    speaker = LanguageTeacher(loaded.model, token_ids, find_separation(loaded.model))
    state = make_accelerator()
    speaker.place(state.device, config.precision)

    def tell(finished: int, total: int) -> None:
        if state.is_main_process:
            run.events(Event("progress", run.stage, "teacher", completed=finished, total=total, unit="tokens"))

    capture_tokens(speaker, reading, plan, config, folder / "signal", tell)
    return plan


def captured_here(stage: str, folder: Path, plan: CapturePlan, *, shared: bool) -> TokenSignal:
    """Returns the capture whose finished shards lie in `folder`, put together there; `shared` by all processes."""
    state = make_accelerator()
    place = folder / "signal" / f"whole-{plan.fingerprint[:16]}"
    if not place.exists() and (state.is_main_process or not shared):
        with TemporaryDirectory(prefix=".whole-", dir=folder / "signal") as temporary:
            made = Path(temporary) / place.name
            made.mkdir()
            assemble(folder / "signal", plan, made)
            made.rename(place)
    if shared:
        wait_for_all(stage, state)
    return TokenSignal.open(place)
