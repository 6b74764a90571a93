"""Brings a causal language model into memory for the `import` stage, from a transformers directory or a GGUF.

It checks that weights, tokenizer, chat template and ends of text are whole and agree, and chooses a padding token
where there is none. Publishing is the stage's part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError
from edgekit.models.files import ModelFiles
from edgekit.models.tasks import TASK_FILE, TaskConfig, read_task_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edgekit.models.source import LoadedModel

Tell = Callable[[str], None]

_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_LONGEST = 131072
_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def is_language_model(files: ModelFiles, task: TaskConfig | None) -> bool:
    """Returns whether a source is to be imported as a causal language model.

    Raises:
        ModelError: the file is a GGUF and the task is another one.
    """
    if task is not None:
        if files.gguf is not None and task.kind != "causal-lm":
            raise ModelError(f"{files.source}: a GGUF holds a causal language model, the task is '{task.kind}'.")
        return task.kind == "causal-lm"
    if files.gguf is not None:
        return True
    if (files.path / TASK_FILE).is_file():
        return read_task_file(files.path / TASK_FILE).kind == "causal-lm"
    architectures = files.config().get("architectures") or [""]
    return str(architectures[0]).endswith(_SUFFIXES)


def load_language_model(files: ModelFiles, task: TaskConfig | None, tell: Tell) -> LoadedModel:
    """Returns the model of a source with its tokenizer and task, float32 and in evaluation mode.

    Raises:
        ModelError: a part is missing, or the parts do not fit together.
        EnvironmentLacksError: the package `gguf` is not installed.
    """
    from edgekit.models.source import LoadedModel

    network, tokenizer = _load_gguf(files, tell) if files.gguf is not None else _load_directory(files, tell)
    _check_network(files, network, tokenizer)
    _choose_padding(files, network, tokenizer, tell)
    _choose_ends(files, network, tokenizer, tell)
    _check_template(files, tokenizer, tell)
    return LoadedModel(network, tokenizer, _task(files, task, network))


def _load_gguf(files: ModelFiles, tell: Tell) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from edgekit.models.gguf_source import load_gguf

    found = load_gguf(files.gguf) if files.gguf is not None else None
    if found is None:
        raise ModelError(f"{files.source}: is no GGUF.")
    held = ", ".join(f"{name} {count:,}" for name, count in found.types.items())
    tell(f"weights decoded to float32 from {held}")
    return found.network, found.tokenizer


def _load_directory(files: ModelFiles, tell: Tell) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from edgekit.models.source import load_network
    from edgekit.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(files.path)
    network, report = load_network(files.path, "causal-lm")
    if report.missing or report.mismatched:
        problem = "lack" if report.missing else "have another shape than config.json for"
        name = (report.missing or report.mismatched)[0]
        raise ModelError(
            f"{files.source}: its weights {problem} '{name}'. Expected a whole language model, head included: "
            "download it again."
        )
    if report.unexpected:
        tell(f"left out {len(report.unexpected)} weights that a language model has no use for: {report.unexpected[0]}")
    return network, tokenizer


def _check_network(files: ModelFiles, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that every weight is a number and every token has a row, and runs a few tokens."""
    import torch

    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"{files.source}: the weight '{name}' holds values that are not finite. Download it again."
            )
    table: Any = network.get_input_embeddings()
    rows = int(table.weight.shape[0])
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"{files.source}: its tokenizer has the token {highest}, its embedding {rows} rows; expected at least "
            f"{highest + 1}. Tokenizer and weights are of different models."
        )
    with torch.inference_mode():
        logits = network(input_ids=torch.arange(min(rows, 8))[None]).logits
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{files.source}: its logits are not finite. The weights are damaged: download it again.")


def _choose_padding(
    files: ModelFiles, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tell: Tell
) -> None:
    """Names a padding token where the tokenizer has none, and writes it wherever a padding token is written."""
    if tokenizer.pad_token_id is None:
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        spare = [token for token in special if "pad" in token.lower()]
        chosen = spare[0] if spare else tokenizer.eos_token
        if chosen is None:
            raise ModelError(f"{files.source}: its tokenizer names neither a padding token nor an end of text.")
        tokenizer.pad_token = chosen
        tell(
            f"no padding token: took {chosen!r} ({'unused' if spare else 'the end of text'}), "
            f"id {tokenizer.pad_token_id}"
        )
    for config in _configurations(network):
        config.pad_token_id = tokenizer.pad_token_id


def _choose_ends(files: ModelFiles, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tell: Tell) -> None:
    """Makes sure that generation knows where to end."""
    generation: Any = network.generation_config
    if generation.eos_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{files.source}: neither generation_config.json nor its tokenizer names a token that ends a text. "
                "Set eos_token in tokenizer_config.json."
            )
        generation.eos_token_id = tokenizer.eos_token_id
        tell(f"generation ends at the tokenizer's {tokenizer.eos_token!r}, id {tokenizer.eos_token_id}")
    if generation.bos_token_id is None:
        generation.bos_token_id = tokenizer.bos_token_id


def _check_template(files: ModelFiles, tokenizer: PreTrainedTokenizerBase, tell: Tell) -> None:
    if not tokenizer.chat_template:
        tell("no chat template: a base model, which continues text")
        return
    try:
        tokenizer.apply_chat_template(list(_PROBE), tokenize=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{files.source}: its chat template fails on one question and one answer ({reason}). Correct "
            "chat_template.jinja, or remove it to import a base model."
        ) from error


def _task(files: ModelFiles, task: TaskConfig | None, network: PreTrainedModel) -> TaskConfig:
    """Returns the task as asked for, as the source's own `task.json` says, or with all positions as context."""
    positions = getattr(network.config, "max_position_embeddings", None)
    if task is None and files.gguf is None and (files.path / TASK_FILE).is_file():
        task = read_task_file(files.path / TASK_FILE)
    if task is None:
        return TaskConfig(kind="causal-lm", max_length=min(positions or _LONGEST, _LONGEST))
    if positions is not None and task.max_length > positions:
        raise ModelError(
            f"{files.source}: has {positions} positions, the task asks for max_length = {task.max_length}. "
            "Set it lower."
        )
    return task


def _configurations(network: PreTrainedModel) -> tuple[Any, Any]:
    return network.config, network.generation_config
