"""Runs model artifacts in torch: the reference that exports are checked against, and a baseline for their speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgekit.runtimes.generation import GenerationSession, check_tokens
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig

if TYPE_CHECKING:
    from numpy import ndarray
    from transformers import PreTrainedModel

    from edgekit.models.source import LoadedModel


class TorchRuntime:
    """The runtime `torch`; `graph_optimization` has no meaning here, for nothing is compiled."""

    name = "torch"
    formats: tuple[str, ...] = ("model",)
    libraries: tuple[str, ...] = ("numpy", "torch", "transformers", "edgekit.models.source")

    def unavailable_reason(self) -> str | None:
        """Returns None when torch and transformers are installed, else how to install them."""
        from importlib.util import find_spec

        missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
        if not missing:
            return None
        return f"the package '{missing[0]}' is not installed. Install it: pip install 'edgekit[train]'"

    def version(self) -> str:
        """Returns the version of the installed torch."""
        from importlib.metadata import version

        return version("torch")

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session that runs the model eagerly, in inference mode.

        Raises:
            ModelError: the model cannot be loaded.
        """
        loaded = _load(model)
        takes_segments = "token_type_ids" in loaded.tokenizer.model_input_names
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if takes_segments else [])]
        return TorchSession(loaded.model, names, config.threads)

    def open_generation(self, model: ModelOnDisk, config: SessionConfig) -> GenerationSession:
        """Returns a session that writes text eagerly, in inference mode.

        Raises:
            ModelError: the model cannot be loaded.
        """
        loaded = _load(model)
        return TorchGenerationSession(loaded.model, loaded.task.max_length, config.threads)


class TorchSession:
    """A torch model, loaded."""

    def __init__(self, network: PreTrainedModel, input_names: list[str], threads: int) -> None:
        """Keeps the network; `threads` holds during its own calls only, for torch's setting is the process's."""
        self._network = network.eval()
        self._threads = threads
        self.input_names = input_names
        self.output_names = ["logits"]

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once and returns float32 logits."""
        import torch

        with _inference(self._threads):
            feeds = {name: torch.from_numpy(inputs[name]) for name in self.input_names}
            return {"logits": self._network(**feeds).logits.float().numpy()}


class TorchGenerationSession:
    """A language model, loaded, with transformers' own cache."""

    def __init__(self, network: PreTrainedModel, context_length: int, threads: int) -> None:
        """Keeps the network and an empty cache; `threads` holds during its own calls only."""
        self._network = network.eval()
        self._threads = threads
        self._cache: Any = None
        self.context_length = context_length
        """Tokens that fit."""
        self.position = 0
        """Tokens in the cache."""

    def reset(self) -> None:
        """Forgets everything that was said."""
        self._cache, self.position = None, 0

    def prefill(self, ids: Sequence[int]) -> ndarray:
        """Takes the tokens in and returns the logits after the last one, float32 (V,)."""
        last: ndarray = self._run(ids, kept=1)[-1]
        return last

    def step(self, token: int) -> ndarray:
        """Takes one token in and returns the logits after it, float32 (V,)."""
        return self.prefill([token])

    def logits(self, ids: Sequence[int]) -> ndarray:
        """Takes the tokens in and returns the logits after each, float32 (T, V)."""
        return self._run(ids, kept=0)

    def _run(self, ids: Sequence[int], *, kept: int) -> ndarray:
        import torch

        check_tokens(ids, self.position, self.context_length)
        with _inference(self._threads):
            found = self._network(
                input_ids=torch.tensor([list(ids)], dtype=torch.int64),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=kept,
            )
            self._cache, self.position = found.past_key_values, self.position + len(ids)
            logits: ndarray = found.logits[0].float().numpy()
            return logits


def _load(model: ModelOnDisk) -> LoadedModel:
    from edgekit.artifact import Artifact
    from edgekit.models.source import load_model

    return load_model(model if isinstance(model, Artifact) else Artifact.open(model.path, verify=False))


@contextmanager
def _inference(threads: int) -> Iterator[None]:
    """Runs the `with` block in inference mode on so many threads; torch's own setting is restored."""
    import torch

    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        if before != threads:
            torch.set_num_threads(before)
