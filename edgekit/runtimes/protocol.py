"""What a runtime is, how one is found by name, and which file of an artifact it opens.

A runtime turns an artifact into a session: named arrays in, named arrays out. Where the arrays come from, and what
is done with the time they take, is not known here. This module imports nothing heavy: the process that measures
memory (`benchmarking/worker.py`) imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgekit.errors import ArtifactError, EnvironmentLacksError, UsageError
from edgekit.formats import FORMATS

if TYPE_CHECKING:
    from numpy import ndarray

ENTRY_POINT_GROUP = "edgekit.runtimes"

# Used where the checkout was never installed, so that no entry points are registered for it.
BUILT_IN = {
    "torch": "edgekit.runtimes.torch_runtime:TorchRuntime",
    "onnxruntime": "edgekit.runtimes.onnxruntime_runtime:OnnxRuntime",
    "openvino": "edgekit.runtimes.openvino_runtime:OpenVinoRuntime",
    "litert": "edgekit.runtimes.litert_runtime:LiteRTRuntime",
    "executorch": "edgekit.runtimes.executorch_runtime:ExecuTorchRuntime",
    "coreml": "edgekit.runtimes.coreml_runtime:CoreMLRuntime",
    "onnxruntime-node": "edgekit.runtimes.node_runtime:OnnxRuntimeNode",
    "onnxruntime-web": "edgekit.runtimes.browser_runtime:OnnxRuntimeWeb",
    "onnxruntime-web-node": "edgekit.runtimes.node_runtime:OnnxRuntimeWebNode",
    "transformers.js": "edgekit.runtimes.node_runtime:TransformersJs",
}

_OWN_WEIGHTS = "model.safetensors"


class ModelOnDisk(Protocol):
    """What a runtime needs to know of an artifact: `Artifact` fits, and so does anything lighter."""

    @property
    def path(self) -> Path:
        """Directory of the artifact."""

    @property
    def kind(self) -> str:
        """Kind of the artifact: `model`, a format, or `bundle`, which holds an export's files unchanged."""


@dataclass(frozen=True)
class SessionConfig:
    """How a session runs; the same for every runtime."""

    threads: int = 1
    """Threads that one call may use."""
    graph_optimization: bool = True
    """Let the runtime optimize the graph at load, as it does in an app."""


class Session(Protocol):
    """An open model."""

    @property
    def input_names(self) -> list[str]:
        """Names of the arrays that `run` needs."""

    @property
    def output_names(self) -> list[str]:
        """Names of the arrays that `run` returns."""

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once: int64 `input_ids` and `attention_mask`, each (B, T), give float32 `logits` (B, C).

        Arrays that the model does not take are ignored; where it takes `token_type_ids`, they must be given.
        """


class Runtime(Protocol):
    """Something that runs models of one or more artifact kinds."""

    name: str
    """The name that people type."""
    formats: tuple[str, ...]
    """What it opens: `model`, or names of formats; a bundle has the format of the file in it."""
    libraries: tuple[str, ...]
    """Modules that `open` needs; imported before a load is timed, so that the import is not counted as loading."""

    def unavailable_reason(self) -> str | None:
        """Returns None when the runtime can be used, else what is missing and how to install it."""

    def version(self) -> str:
        """Returns the version of the library, without importing it where that is possible."""

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session for `model`. For language models see `generation.GenerationRuntime`.

        Raises:
            ModelError: the runtime cannot open the file.
        """


@dataclass(frozen=True)
class MissingRuntime:
    """A runtime that is known and not here."""

    name: str
    reason: str
    """What is missing, and how to install it."""


@runtime_checkable
class OwnProcess(Protocol):
    """What a runtime has besides where it is no Python library: a program that is measured in its own process."""

    def program(self) -> list[str]:
        """Returns the command of a process that answers what `benchmarking/worker.py` answers."""

    def describe(self, model: ModelOnDisk) -> dict[str, Any]:
        """Returns what that process is asked to open with, besides what every worker gets."""


def reads_directory(runtime: Runtime) -> bool:
    """Returns whether a runtime opens a whole export, configuration included, and not its file alone."""
    return bool(getattr(runtime, "reads_directory", False))


def list_runtimes() -> dict[str, str]:
    """Returns the name of every registered runtime and where its class is (`module:Class`), sorted by name."""
    from importlib.metadata import entry_points

    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return dict(sorted({**BUILT_IN, **found}.items()))


def load_runtime(location: str) -> Runtime:
    """Returns an instance of the class at `location`, spelled `module:Class`."""
    from importlib import import_module

    module, _, name = location.partition(":")
    runtime: Runtime = getattr(import_module(module), name)()
    return runtime


def runtimes() -> list[Runtime]:
    """Returns an instance of every registered runtime, usable or not, sorted by name."""
    return [load_runtime(location) for location in list_runtimes().values()]


def get_runtime(name: str, *, must_be_here: bool = True) -> Runtime:
    """Returns the runtime called `name`, from the entry points or, in a checkout, the built-in table.

    Raises:
        UsageError: no such runtime; names the nearest.
        EnvironmentLacksError: its library is missing; says what to install.
    """
    from edgekit.spelling import did_you_mean

    known = list_runtimes()
    if name not in known:
        raise UsageError(f"runtime '{name}' is unknown.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    runtime = load_runtime(known[name])
    reason = runtime.unavailable_reason() if must_be_here else None
    if reason is not None:
        raise EnvironmentLacksError(f"runtime '{name}' is not available: {reason}")
    return runtime


def runtime_for(model: ModelOnDisk, name: str | None = None, *, must_be_here: bool = True) -> Runtime:
    """Returns the runtime called `name`, or the first that opens artifacts of this kind when `name` is None.

    One that runs on another machine need not be installed here.

    Raises:
        UsageError: the runtime called `name` does not open this kind, or none does.
        EnvironmentLacksError: its library is missing.
    """
    kind = format_of(model)
    if name is not None:
        runtime = get_runtime(name, must_be_here=must_be_here)
        if kind in runtime.formats:
            return runtime
        fitting = _names_for(kind)
        advice = f"Use {' or '.join(fitting)}, or export the model first." if fitting else "Export the model first."
        raise UsageError(
            f"{model.path}: the runtime '{name}' opens {' and '.join(runtime.formats)} artifacts, found one of kind "
            f"'{kind}'. {advice}"
        )
    fitting = _names_for(kind)
    if not fitting:
        raise UsageError(f"{model.path}: no runtime opens artifacts of kind '{kind}'. Export the model first.")
    return get_runtime(fitting[0], must_be_here=must_be_here)


def runtime_elsewhere(kind: str, name: str | None = None) -> MissingRuntime | None:
    """Returns the runtime of a format that is written where it cannot run, if it is not here; `name` may be another's.

    None: it is here, or such a file is only written where its runtime is.

    Raises:
        UsageError: no such runtime.
    """
    if kind not in FORMATS or not FORMATS[kind].runs_elsewhere:
        return None
    runtime = get_runtime(name or FORMATS[kind].runtime, must_be_here=False)
    reason = runtime.unavailable_reason()
    return None if reason is None else MissingRuntime(runtime.name, reason)


def available_runtimes_for(kind: str) -> list[Runtime]:
    """Returns the runtimes at hand that open `kind`, the built-in ones first."""
    known = list_runtimes()
    loaded = [load_runtime(known[name]) for name in _names_for(kind)]
    return [runtime for runtime in loaded if runtime.unavailable_reason() is None]


def _names_for(kind: str) -> list[str]:
    """Returns the names of the runtimes that open `kind`, the built-in ones first."""
    known = list_runtimes()
    names = [*BUILT_IN, *(name for name in known if name not in BUILT_IN)]
    return [name for name in names if kind in load_runtime(known[name]).formats]


def format_of(model: ModelOnDisk) -> str:
    """Returns the kind of artifact whose files `model` holds: for a bundle the format of the file in it."""
    if model.kind != "bundle":
        return model.kind
    return next((name for name, row in FORMATS.items() if (model.path / row.file).is_file()), "onnx")


def model_file(model: ModelOnDisk) -> Path:
    """Returns the file that a runtime opens: `model.safetensors`, or the one of the format.

    An export with another file name is accepted as long as it holds one file of the format only.

    Raises:
        ArtifactError: there is no such file, or the artifact is no model.
    """
    kind = format_of(model)
    if kind != "model" and kind not in FORMATS:
        raise ArtifactError(f"{model.path}: found an artifact of kind '{model.kind}', expected a model.")
    usual = model.path / (_OWN_WEIGHTS if kind == "model" else FORMATS[kind].file)
    if usual.is_file():
        return usual
    others = sorted(model.path.rglob(f"*{usual.suffix}"))
    if len(others) == 1:
        return others[0]
    found = ", ".join(str(file.relative_to(model.path)) for file in others) or "none"
    raise ArtifactError(f"{usual}: missing; other {usual.suffix} files: {found}. Export the model again.")


def model_files(model: ModelOnDisk) -> list[Path]:
    """Returns the files that a runtime reads: the model file and the weights that the format keeps beside it."""
    file, kind = model_file(model), format_of(model)
    parts = f"*{file.suffix}" if kind == "model" else FORMATS[kind].parts
    pattern = parts.format(name=file.name, stem=file.stem)
    found = {file, *(part for part in file.parent.glob(pattern) if part.is_file())}
    return sorted(found)


def model_bytes(model: ModelOnDisk) -> int:
    """Returns the size of the files that a runtime reads."""
    return sum(file.stat().st_size for file in model_files(model))


def pad_token_id(model: ModelOnDisk) -> int:
    """Returns `pad_token_id` of the model's configuration; 0 where it has none, for padding is masked anyway."""
    import json

    pad_id = json.loads((model.path / "config.json").read_text(encoding="utf-8")).get("pad_token_id")
    return pad_id if isinstance(pad_id, int) else 0


def select_inputs(names: Sequence[str], input_ids: ndarray, attention_mask: ndarray) -> dict[str, ndarray]:
    """Returns the arrays called `names` for one batch; `token_type_ids` are zeros (one segment).

    Raises:
        UsageError: the model takes an input that text alone does not give.
    """
    given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": input_ids * 0}
    unknown = [name for name in names if name not in given]
    if unknown:
        raise UsageError(f"the model takes the input '{unknown[0]}'; expected only {', '.join(given)}.")
    return {name: given[name] for name in names}
