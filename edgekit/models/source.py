"""Loads and saves models: the one place where weights enter and leave memory.

`resolve` finds a source's files and refuses what cannot be trusted or read; `load_model` and `save_model` read and
write model artifacts. What a model is cut to, trained on or exported as is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import hub
from edgekit.artifact import DESCRIPTOR, Artifact
from edgekit.errors import ModelError, UntrustedModelError, UsageError
from edgekit.models.files import (
    WEIGHTS_FILE,
    ModelFiles,
    check_files,
    check_safetensors,
    refuse_pickles,
    sort_metadata,
)
from edgekit.models.quiet import quiet_transformers
from edgekit.models.tasks import TASKS, TaskConfig, is_head_trained, read_task, write_task
from edgekit.models.tokenizer import load_tokenizer, save_tokenizer
from edgekit.resources import is_package_resource, package_resource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

QUANTIZATION_FILE = "quantization.json"
GENERATION_FILE = "generation_config.json"
GGUF_SUFFIX = ".gguf"
# What a model is loaded from; subdirectories and other suffixes of a repository are other formats.
_HUB_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")


@dataclass
class LoadedModel:
    """A model in memory with all that belongs to it."""

    model: PreTrainedModel
    """Float32 (quantized modules keep their codes), in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    """Neither pads nor truncates unless told to in a call."""
    task: TaskConfig
    """What the model is for."""
    head_trained: bool = True
    """False while a classification head is as it was drawn at random: such a model can learn, and teaches nothing."""


@dataclass(frozen=True)
class LoadReport:
    """Which weights of a checkpoint and of a network did not meet."""

    missing: list[str]
    """The network has them, the checkpoint does not: drawn at random."""
    unexpected: list[str]
    """The checkpoint has them, the network does not: left out."""
    mismatched: list[str]
    """Both have them, in different shapes."""


def resolve(source: str, *, revision: str | None = None, offline: bool = False) -> ModelFiles:
    """Returns the files of a model source, fetched when it is a hub id, and checked.

    `source` is a directory or a GGUF file, `pkg:NAME/path` of one, a hub id, or a hub id with a GGUF file
    (`owner/name/file.gguf`); what is on this machine goes first.

    Raises:
        UntrustedModelError: the weights are pickled, or the model asks for code of its own.
        ModelError: not found, or a part is missing, truncated or altered.
        EnvironmentLacksError: a package is not installed, or the hub cannot be reached or must not be.
    """
    if is_on_hub(source):
        if source.endswith(GGUF_SUFFIX):
            return _resolve_hub_file(source, revision, offline=offline)
        return _resolve_hub(source, revision, offline=offline)
    if revision is not None:
        raise ModelError(f"{source}: found revision '{revision}', which only a hub id has. Leave it out.")
    directory = find_local(source)
    if directory.is_file():
        return _check_file(source, directory, commit=None)
    if (directory / DESCRIPTOR).is_file():
        Artifact.open(directory, kind="model")
    return check_files(source, directory, commit=None)


def is_on_hub(source: str) -> bool:
    """Returns True when `source` is a hub id and nothing on this machine has that name.

    `name.gguf` and `directory/name.gguf` are files: of the hub's it takes an owner and a repository too.
    """
    is_here = is_package_resource(source) or Path(source).expanduser().exists()
    repository = hub_repository(source)
    return not is_here and not repository.endswith(GGUF_SUFFIX) and hub.is_hub_id(repository)


def hub_repository(source: str) -> str:
    """Returns the repository of a hub id: `owner/name` of `owner/name/file.gguf`."""
    return source.rpartition("/")[0] if source.endswith(GGUF_SUFFIX) and source.count("/") == 2 else source


def load_model(model: Artifact) -> LoadedModel:
    """Returns the model of an artifact in evaluation mode, float32, its quantized modules installed; no network.

    Raises:
        ModelError: a file is missing or not readable, or the weights do not fit the configuration.
    """
    task = read_task(model)
    if (model.path / QUANTIZATION_FILE).is_file():
        network = _load_quantized(model.path, task.kind)
    else:
        network, report = load_network(model.path, task.kind)
        _require_whole(model.path, report)
    return LoadedModel(network, load_tokenizer(model.path), task, is_head_trained(model.path))


def save_model(loaded: LoadedModel, directory: Path) -> None:
    """Writes configuration, weights, tokenizer and task into `directory`; equal models give equal bytes.

    Raises:
        ModelError: the tokenizer cannot be written so that it loads as an equal one.
    """
    from edgekit.models.quantized import schemes_of, write_quantization

    directory.mkdir(parents=True, exist_ok=True)
    set_labels(loaded.model.config, loaded.task.labels)
    schemes = schemes_of(loaded.model)
    if schemes:
        _save_quantized(loaded.model, directory)
        write_quantization(directory, schemes)
    else:
        with quiet_transformers():
            loaded.model.save_pretrained(directory, max_shard_size="1000GB")
    save_tokenizer(loaded.tokenizer, directory)
    write_task(directory, loaded.task, head_trained=loaded.head_trained)


def set_labels(config: PretrainedConfig, labels: list[str]) -> None:
    """Makes `id2label` and `label2id` of a configuration agree with `labels`, in place; nothing when there are none."""
    if not labels:
        return
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}


def load_network(directory: Path, kind: str, *, seed: int = 0, **settings: Any) -> tuple[PreTrainedModel, LoadReport]:
    """Returns the network in `directory` for the task `kind`, and which weights did not fit.

    Weights that are missing are drawn from `seed`; torch's global generator is left as it was found. `settings` go
    to the configuration.

    Raises:
        ModelError: the configuration or the weights cannot be read.
    """
    import torch
    import transformers

    auto_class = getattr(transformers, TASKS[kind].auto_class)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.default_generator.manual_seed(seed)
        try:
            network, info = auto_class.from_pretrained(
                directory,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,  # left out, transformers would ask on the terminal
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, by name
                **settings,
            )
        except Exception as error:
            raise ModelError(f"{directory}: could not be loaded as a {kind} model ({_first_line(error)}).") from error
    report = LoadReport(
        missing=sorted(info["missing_keys"]),
        unexpected=sorted(info["unexpected_keys"]),
        mismatched=sorted(str(entry[0]) for entry in info["mismatched_keys"]),
    )
    return network.eval(), report


def find_local(source: str) -> Path:
    """Returns the directory or file of a source that is no hub id.

    Raises:
        ModelError: not found.
        EnvironmentLacksError: a package is not installed.
    """
    try:
        path = package_resource(source) if is_package_resource(source) else Path(source).expanduser()
    except UsageError as error:
        raise ModelError(str(error)) from error
    if not path.exists():
        raise ModelError(f"{source}: not found; expected a directory, a .gguf file, a hub id, or pkg:NAME/path.")
    return path


def _check_file(source: str, file: Path, *, commit: str | None) -> ModelFiles:
    """Returns a GGUF file, after checking that it is whole."""
    from edgekit.models.gguf_header import read_header

    if file.suffix != GGUF_SUFFIX:
        refuse_pickles(source, [file.name])
        raise ModelError(f"{source}: is a file; expected a .gguf file, or the directory that holds it and config.json.")
    read_header(file)
    return ModelFiles(source, file.parent, commit, gguf=file)


def _resolve_hub_file(source: str, revision: str | None, *, offline: bool) -> ModelFiles:
    repository, _, name = source.rpartition("/")
    try:
        directory = hub.download(repository, "model", revision, (name,), offline=offline)
    except UsageError as error:
        raise ModelError(str(error)) from error
    if not (directory / name).is_file():
        raise ModelError(f"{source}: the hub's {repository} holds no file '{name}'. Look at its files on the hub.")
    return _check_file(source, directory / name, commit=directory.name)


def _resolve_hub(source: str, revision: str | None, *, offline: bool) -> ModelFiles:
    try:
        if not offline:
            refuse_pickles(source, hub.list_files(source, "model", revision))
        directory = hub.download(source, "model", revision, _HUB_SUFFIXES, offline=offline)
    except UntrustedModelError:
        raise
    except UsageError as error:
        raise ModelError(str(error)) from error
    return check_files(source, directory, commit=directory.name)


def _load_quantized(directory: Path, kind: str) -> PreTrainedModel:
    """Builds the network from its configuration, makes room for the codes, and fills it."""
    import torch
    import transformers
    from safetensors.torch import load_model as fill

    from edgekit.models.quantized import install, read_quantization

    check_safetensors(directory / WEIGHTS_FILE)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            auto_class = getattr(transformers, TASKS[kind].auto_class)
            network: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
            install(network, read_quantization(directory))
            fill(network, directory / WEIGHTS_FILE, strict=True)
            if (directory / GENERATION_FILE).is_file():
                network.generation_config = transformers.GenerationConfig.from_pretrained(directory)
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(f"{directory}: weights and configuration do not fit ({_first_line(error)}).") from error
    network.eval()
    return network


def _save_quantized(network: PreTrainedModel, directory: Path) -> None:
    from safetensors.torch import save_model as write

    network.config.architectures = [type(network).__name__]
    network.config.dtype = "float32"
    with quiet_transformers():
        network.config.save_pretrained(directory)
        if network.can_generate():
            network.generation_config.save_pretrained(directory)
    write(network, str(directory / WEIGHTS_FILE), metadata={"format": "pt"})
    sort_metadata(directory / WEIGHTS_FILE)


def _require_whole(directory: Path, report: LoadReport) -> None:
    problems = {"missing": report.missing, "unknown": report.unexpected, "of another shape": report.mismatched}
    for problem, names in problems.items():
        if names:
            raise ModelError(
                f"{directory / WEIGHTS_FILE}: {len(names)} weights are {problem}, first '{names[0]}'; expected exactly "
                "those of the configuration. Build the model again."
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
