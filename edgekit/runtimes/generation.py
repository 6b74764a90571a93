"""What a runtime that generates text is: a session that takes tokens and gives the next token's logits.

    session = get_generation_runtime("onnxruntime").open(model, GenerationConfig(threads=2))
    logits = session.prefill(prompt_ids)          # (V,): what may follow the prompt
    while logits.argmax() != end:
        logits = session.step(int(logits.argmax()))

A session holds one sequence and its cache of keys and values. Sampling, stopping and text are not known here. This
module imports nothing heavy: the process that measures memory imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgekit.errors import EnvironmentLacksError, UsageError
from edgekit.runtimes.protocol import MissingRuntime, format_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.protocol import ModelOnDisk

ENTRY_POINT_GROUP = "edgekit.generation"

# Used where the checkout was never installed, so that no entry points are registered for it.
BUILT_IN = {
    "torch": "edgekit.runtimes.torch_generation:TorchGeneration",
    "onnxruntime": "edgekit.runtimes.onnxruntime_generation:OnnxRuntimeGeneration",
    "onnxruntime-genai": "edgekit.runtimes.genai_generation:GenAiGeneration",
    "llama.cpp": "edgekit.runtimes.llama_cpp_generation:LlamaCppGeneration",
}


@dataclass(frozen=True)
class GenerationConfig:
    """How a session generates; the same for every runtime."""

    threads: int = 1
    """Threads that one call may use."""
    context_length: int | None = None
    """Tokens to make room for, at most the model's; None: the model's."""
    shared_cache: bool = True
    """Keep keys and values in buffers of `context_length` and write in place, where the runtime can; else tensors of
    the exact length go in and come out of every call."""
    graph_optimization: bool = True
    """Let the runtime optimize the graph at load, as it does in an app."""
    conversations: int = 1
    """Conversations that are written at once; of more than one see `conversations.py`."""


class GenerationSession(Protocol):
    """An open model with the cache of one sequence."""

    @property
    def context_length(self) -> int:
        """Tokens that fit, prompt and answer together."""

    @property
    def position(self) -> int:
        """Tokens taken since the last reset."""

    def prefill(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes the tokens `ids` (T,), T >= 1, after those taken before; returns the last one's logits (V,).

        Called more than once it goes on where it stands (a prompt in chunks, a second turn of a chat).

        Raises:
            UsageError: no tokens, or more than fit; the cache is as before.
        """

    def step(self, token: int) -> NDArray[np.float32]:
        """Takes one token and returns its logits (V,).

        Raises:
            UsageError: the context is full; the cache is as before.
        """

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes the tokens in as `prefill` does and returns the logits of each, (T, V).

        Raises:
            UsageError: no tokens, or more than fit; the cache is as before.
        """

    def reset(self) -> None:
        """Forgets every token; the next call starts a new sequence."""

    def close(self) -> None:
        """Frees the model and the cache; the session is not used after it."""


@runtime_checkable
class Tokenizing(Protocol):
    """A session of a runtime with a tokenizer of its own."""

    def tokenize(self, text: str) -> list[int]:
        """Returns the tokens of a text, special tokens included and understood."""


@runtime_checkable
class Templating(Protocol):
    """A session of a runtime that renders chat templates itself."""

    def render(self, messages: list[dict[str, str]]) -> str:
        """Returns a conversation (`role`, `content`) as the model's chat template writes it, ready for an answer.

        Raises:
            UsageError: the template refuses the conversation, or the runtime cannot run the template.
        """


@runtime_checkable
class Templated(Protocol):
    """A session of a model whose file carries a chat template."""

    def chat_template(self) -> str | None:
        """Returns the template in the file (Jinja); None where there is none."""


class GenerationRuntime(Protocol):
    """Something that generates with models of one or more artifact kinds."""

    name: str
    """The name that people type."""
    formats: tuple[str, ...]
    """Artifact kinds that it opens."""
    libraries: tuple[str, ...]
    """Modules that `open` needs; imported before a load is timed, so that the import is not counted as loading."""

    def unavailable_reason(self) -> str | None:
        """Returns None when the runtime can be used, else what is missing and how to install it."""

    def version(self) -> str:
        """Returns the version of the library, without importing it where that is possible."""

    def open(self, model: ModelOnDisk, config: GenerationConfig) -> GenerationSession:
        """Returns a session for `model`.

        Raises:
            ModelError: the runtime cannot open the file.
            UsageError: `config` asks for a longer context than the model has.
        """


def list_generation_runtimes() -> dict[str, str]:
    """Returns the name of every registered runtime and where its class is (`module:Class`), sorted by name."""
    from importlib.metadata import entry_points

    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return dict(sorted({**BUILT_IN, **found}.items()))


def load_generation_runtime(location: str) -> GenerationRuntime:
    """Returns an instance of the class at `location`, spelled `module:Class`."""
    from importlib import import_module

    module, _, name = location.partition(":")
    runtime: GenerationRuntime = getattr(import_module(module), name)()
    return runtime


def get_generation_runtime(name: str) -> GenerationRuntime:
    """Returns the runtime called `name`.

    Raises:
        UsageError: no such runtime; names the nearest.
        EnvironmentLacksError: its library is missing; says what to install.
    """
    from edgekit.spelling import did_you_mean

    known = list_generation_runtimes()
    if name not in known:
        raise UsageError(f"runtime '{name}' is unknown.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    runtime = load_generation_runtime(known[name])
    reason = runtime.unavailable_reason()
    if reason is not None:
        raise EnvironmentLacksError(f"runtime '{name}' is not available: {reason}")
    return runtime


def missing_runtime(kind: str, name: str | None = None) -> MissingRuntime | None:
    """Returns the runtime called `name`, or the first that generates with artifacts of `kind`, where it is not here.

    None: it is here, or there is no such runtime at all, which `generation_runtime_for` says.
    """
    known = list_generation_runtimes()
    names = [name] if name is not None else _in_order(known)
    loaded = [load_generation_runtime(known[each]) for each in names if each in known]
    fitting = [runtime for runtime in loaded if kind in runtime.formats]
    reasons = {runtime.name: runtime.unavailable_reason() for runtime in fitting}
    if not fitting or None in reasons.values():
        return None
    first = fitting[0].name
    return MissingRuntime(first, reasons[first] or "")


def generation_runtimes_for(kind: str) -> list[GenerationRuntime]:
    """Returns the available runtimes that generate with artifacts of `kind`, the built-in ones first."""
    known = list_generation_runtimes()
    runtimes = [load_generation_runtime(known[name]) for name in _in_order(known)]
    return [runtime for runtime in runtimes if kind in runtime.formats and runtime.unavailable_reason() is None]


def generation_runtime_for(model: ModelOnDisk, name: str | None = None) -> GenerationRuntime:
    """Returns the runtime called `name`, or the first available one that generates with such a model.

    Raises:
        UsageError: the runtime called `name` does not open such a model, or none does.
        EnvironmentLacksError: its library is missing.
    """
    kind = format_of(model)
    if name is not None:
        runtime = get_generation_runtime(name)
        if kind not in runtime.formats:
            raise UsageError(
                f"{model.path}: the runtime '{name}' generates with {' and '.join(runtime.formats)} artifacts, found "
                f"one of kind '{kind}'. Export the model for it first."
            )
        return runtime
    fitting = generation_runtimes_for(kind)
    if not fitting:
        raise UsageError(
            f"{model.path}: no runtime at hand generates with artifacts of kind '{kind}'. `edgekit doctor` says "
            "what to install."
        )
    return fitting[0]


def _in_order(known: dict[str, str]) -> list[str]:
    """Returns the names, the built-in ones first."""
    return [*(name for name in BUILT_IN if name in known), *(name for name in known if name not in BUILT_IN)]


def task_context(directory: Path) -> int | None:
    """Returns the context that a model's `task.json` names; None where there is none.

    Read as plain JSON: the process that measures load and memory must not import what checks the whole file.
    """
    import json

    file = directory / "task.json"
    if not file.is_file():
        return None
    length = json.loads(file.read_text(encoding="utf-8")).get("max_length")
    return length if isinstance(length, int) else None


def choose_context(asked: int | None, available: int) -> int:
    """Returns the context length of a session: what was asked for, or all that the model has.

    Raises:
        UsageError: the model has less than was asked for.
    """
    if asked is None:
        return available
    if not 1 <= asked <= available:
        raise UsageError(f"context: found {asked} tokens, expected 1 to {available}, which is what the model allows.")
    return asked


def require_room(taken: int, more: int, context_length: int) -> None:
    """Does nothing where `more` tokens fit after `taken`.

    Raises:
        UsageError: there are none, or they do not fit.
    """
    if more < 1:
        raise UsageError("prefill: found no tokens, expected at least 1.")
    if taken + more > context_length:
        raise UsageError(
            f"found {taken} + {more} tokens, expected at most {context_length}, the context of this session. "
            "Shorten the text, reset the session, or open it with a longer context where the model allows one."
        )
