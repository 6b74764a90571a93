"""The `import` stage: brings a model from a hub, a directory or an installed package into an artifact.

It checks that the model fits the task, gives it a classification head where it has none, and saves it the way every
later stage expects: float32 safetensors, a tokenizer that neither pads nor truncates, labels that agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from edgekit.artifact import Artifact, Lineage, hash_json, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import ModelError
from edgekit.events import Event
from edgekit.models.tasks import TASK_FILE, TaskConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edgekit.models.files import ModelFiles
    from edgekit.models.source import LoadedModel, LoadReport

_HEAD_SUFFIX = "ForSequenceClassification"
_SHOWN_NAMES = 3


class ImportConfig(StageConfig):
    """Which model, and what it is for."""

    source: str
    """A hub id, a directory, a .gguf file (also owner/name/file.gguf of the hub), or pkg:NAME/path of an installed
    package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; name a commit to get the same model for ever."""
    task: TaskConfig | None = None
    """What the model is for; not needed when the model has a classification head with labels, or is a causal language
    model, whose context is then as long as its positions."""


def import_model(inputs: StageInputs, config: ImportConfig, context: StageContext) -> Artifact:
    """Makes a `model` artifact of a model source.

    Raises:
        UntrustedModelError: the weights are pickled, or the model asks for code of its own.
        ModelError: not found, truncated or altered, without a tokenizer, or with other labels than the task.
        EnvironmentLacksError: a package or the network is missing, or the disk is full.
    """
    from edgekit.models.language_model import is_language_model, load_language_model
    from edgekit.models.source import resolve, save_model

    _tell(context, f"reading {config.source}")
    files = resolve(config.source, revision=config.revision, offline=context.offline)
    if is_language_model(files, config.task):
        loaded = load_language_model(files, config.task, lambda text: _tell(context, text))
    else:
        loaded = _load_classifier(files, config, context)
    _compare_tokenizers(files, loaded.tokenizer, loaded.task.max_length, context)
    lineage = _lineage(lineage_of("import", inputs, config, context), files)
    with publish(context.out, kind="model", lineage=lineage) as staging:
        save_model(loaded, staging)
    return Artifact.open(context.out, kind="model")


def source_digest(config: ImportConfig, offline: bool = False) -> str:
    """Returns a digest that changes when the source's content does; for cache keys. Loads neither torch nor weights.

    Raises:
        ModelError: not found, or a part is missing, truncated or altered.
        EnvironmentLacksError: a package is not installed, or the hub cannot be reached or must not be.
    """
    from edgekit import hub
    from edgekit.models.source import hub_repository, is_on_hub, resolve

    if is_on_hub(config.source):
        commit = hub.commit_of(hub_repository(config.source), "model", config.revision, offline=offline)
        return hash_json({"hub": config.source, "commit": commit})
    return resolve(config.source, revision=config.revision).digest()


def _load_classifier(files: ModelFiles, config: ImportConfig, context: StageContext) -> LoadedModel:
    """Returns a text classifier, with a new head where the source has none."""
    from edgekit.models.source import LoadedModel, load_network, set_labels
    from edgekit.models.tokenizer import load_tokenizer

    task = _agree_on_task(files, config.task, context)
    tokenizer = load_tokenizer(files.path)
    network, report = load_network(files.path, task.kind, seed=context.seed, num_labels=len(task.labels))
    new_head = _check_report(files, report, network.base_model_prefix, context)
    set_labels(network.config, task.labels)
    loaded = LoadedModel(network, tokenizer, task, head_trained=not new_head and _came_trained(files))
    _check_network(files, loaded)
    return loaded


def _agree_on_task(files: ModelFiles, task: TaskConfig | None, context: StageContext) -> TaskConfig:
    """Returns the task, after checking it against the labels of the source's head, if it has one."""
    config = files.config()
    found = _head_labels(files, config)
    if found is None:
        if task is None:
            raise ModelError(
                f"{files.source}: has no classification head (found {_architecture(config)}), so its labels are not "
                "known. Name them in the task."
            )
        return task
    if task is None:
        return _own_task(files, found)
    if found == task.labels:
        return task
    if len(found) == len(task.labels) and found == [f"LABEL_{index}" for index in range(len(found))]:
        pairs = ", ".join(f"{generic} = {label}" for generic, label in zip(found, task.labels, strict=True))
        _tell(context, f"the model's labels have no names; taken in order: {pairs}")
        return task
    raise ModelError(
        f"{files.source}: found the label map {_label_map(found)}, the task has {_label_map(task.labels)}; expected "
        "the same names in the same order. Write the task's labels as the model has them (label_map of the data maps "
        "its values to these names), or import the encoder without its head to train a new one."
    )


def _own_task(files: ModelFiles, labels: list[str]) -> TaskConfig:
    """Returns the task that the source tells by itself: its `task.json`, else its labels and the usual length."""
    from edgekit.models.tasks import read_task_file

    if (files.path / TASK_FILE).is_file():
        return read_task_file(files.path / TASK_FILE)
    try:
        return TaskConfig(labels=labels)
    except ValueError as error:
        raise ModelError(
            f"{files.source}: config.json: id2label {_label_map(labels)} are no labels of a task."
        ) from error


def _head_labels(files: ModelFiles, config: dict[str, Any]) -> list[str] | None:
    """Returns the labels of the source's classification head in the order of its logits, or None without a head."""
    if not _architecture(config).endswith(_HEAD_SUFFIX):
        return None
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise ModelError(f"{files.source}: config.json: found problem_type '{problem}', expected one label a text.")
    id2label = config.get("id2label")
    if id2label is None:
        return [f"LABEL_{index}" for index in range(config.get("num_labels", 2))]
    try:
        return [str(id2label[str(index)]) for index in range(len(id2label))]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{files.source}: config.json: found id2label {id2label}, expected a name for each of 0, 1, 2 ..."
        ) from error


def _architecture(config: dict[str, Any]) -> str:
    architectures = config.get("architectures") or ["no architecture"]
    return str(architectures[0])


def _came_trained(files: ModelFiles) -> bool:
    """Returns False for a model of edgekit's own whose head is still as an earlier import drew it."""
    from edgekit.models.tasks import is_head_trained

    return not (files.path / TASK_FILE).is_file() or is_head_trained(files.path)


def _check_report(files: ModelFiles, report: LoadReport, prefix: str, context: StageContext) -> bool:
    """Refuses an encoder with weights missing; tells of weights without use, and of a new head: then returns True."""
    is_head = [name for name in report.missing if not name.startswith(f"{prefix}.") or ".pooler." in name]
    lacking = sorted(set(report.missing) - set(is_head))
    if lacking or report.mismatched:
        problem, name = (
            ("lack", lacking[0]) if lacking else ("have another shape than config.json for", report.mismatched[0])
        )
        raise ModelError(
            f"{files.source}: its weights {problem} '{name}'. Expected a whole encoder: download it again."
        )
    if _architecture(files.config()).endswith(_HEAD_SUFFIX) and is_head:
        raise ModelError(
            f"{files.source}: config.json says {_architecture(files.config())}, but its weights lack '{is_head[0]}'. "
            "Expected a trained head: download it again."
        )
    if is_head:
        _tell(context, f"new classification head from seed {context.seed}: {_some(is_head)}; finetune before use")
    if report.unexpected:
        _tell(context, f"left out weights that the task has no use for: {_some(report.unexpected)}")
    return bool(is_head)


def _check_network(files: ModelFiles, loaded: Any) -> None:
    """Runs the longest input that the task allows, and checks that every weight is a number."""
    import torch

    network, tokenizer, task = loaded.model, loaded.tokenizer, loaded.task
    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"{files.source}: the weight '{name}' holds values that are not finite. Download it again."
            )
    rows = network.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{files.source}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows; expected at least "
            "as many rows. Tokenizer and weights are of different models."
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{files.source}: its tokenizer names no padding token; expected one, to make batches.")
    token = next(index for index in range(rows) if index != tokenizer.pad_token_id)
    ids = torch.full((1, task.max_length), token)
    try:
        with torch.inference_mode():
            network(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError) as error:
        longest = getattr(network.config, "max_position_embeddings", None)
        raise ModelError(
            f"{files.source}: fails on a text of max_length = {task.max_length} tokens; its configuration has "
            f"{longest} positions. Set the task's max_length lower."
        ) from error


def _compare_tokenizers(
    files: ModelFiles, tokenizer: PreTrainedTokenizerBase, max_length: int, context: StageContext
) -> None:
    """Tells when transformers' class makes another tokenizer of the source than its tokenizer.json says."""
    from edgekit.models.tokenizer import NASTY_TEXTS, TOKENIZER_FILE, load_bare_tokenizer, tokenizer_vectors

    if files.gguf is not None or not (files.path / TOKENIZER_FILE).is_file():
        return
    bare = tokenizer_vectors(load_bare_tokenizer(files.path / TOKENIZER_FILE), NASTY_TEXTS, max_length)
    own = tokenizer_vectors(tokenizer, NASTY_TEXTS, max_length)
    differing = sum(one != other for one, other in zip(bare, own, strict=True))
    if differing:
        _tell(
            context,
            f"{TOKENIZER_FILE} encodes {differing} of {len(NASTY_TEXTS)} probe texts differently from transformers' "
            f"{type(tokenizer).__name__}, which is kept: the model's quality is measured with it",
        )


def _lineage(lineage: Lineage, files: ModelFiles) -> Lineage:
    """Adds what was read to the record of what was asked for."""
    found: dict[str, JsonValue] = {"source_digest": files.digest(), "source_commit": files.commit}
    return lineage.model_copy(update={"config": {**lineage.config, **found}})


def _label_map(labels: list[str]) -> str:
    return "{" + ", ".join(f"{index}: '{label}'" for index, label in enumerate(labels)) + "}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")


def _tell(context: StageContext, text: str) -> None:
    context.events(Event("message", stage="import", text=text))
