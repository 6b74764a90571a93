"""Generates with model artifacts in torch: the reference for exports, and a baseline for their speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.runtimes.generation import GenerationConfig, GenerationSession, choose_context, require_room
from edgekit.runtimes.protocol import ModelOnDisk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from transformers import PreTrainedModel


class TorchGeneration:
    """The runtime `torch`; `shared_cache` and `graph_optimization` have no meaning here."""

    name = "torch"
    formats: tuple[str, ...] = ("model",)
    libraries: tuple[str, ...] = ("numpy", "torch", "transformers", "edgekit.models.source")

    def unavailable_reason(self) -> str | None:
        """Returns None when torch and transformers are installed, else how to install them."""
        from edgekit.runtimes.torch_runtime import TorchRuntime

        return TorchRuntime().unavailable_reason()

    def version(self) -> str:
        """Returns the version of the installed torch."""
        from importlib.metadata import version

        return version("torch")

    def open(self, model: ModelOnDisk, config: GenerationConfig) -> GenerationSession:
        """Returns a session that runs the model eagerly, in inference mode.

        Raises:
            ModelError: the model cannot be loaded.
            UsageError: the model has a shorter context than `config` asks for.
        """
        from edgekit.artifact import Artifact
        from edgekit.models.source import load_model

        artifact = model if isinstance(model, Artifact) else Artifact.open(model.path, verify=False)
        loaded = load_model(artifact)
        context_length = choose_context(config.context_length, loaded.task.max_length)
        return TorchGenerationSession(loaded.model, context_length, config.threads)


class TorchGenerationSession:
    """A torch model with transformers' own cache."""

    def __init__(self, network: PreTrainedModel, context_length: int, threads: int = 1) -> None:
        """Keeps the network; `threads` holds during its own calls only, for torch's setting is the process's."""
        self._network: PreTrainedModel | None = network.eval()
        self._threads = threads
        self._cache: Any = None
        self.context_length = context_length
        self.position = 0

    def prefill(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes `ids` (T,) and returns the last one's logits (V,).

        Raises:
            UsageError: no tokens, or more than fit.
        """
        last: NDArray[np.float32] = self._run(ids[None], kept=1)[0, -1]
        return last

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes the next tokens of every conversation, (B, T), and returns the last one's logits of each, (B, V).

        Raises:
            UsageError: no tokens, or more than fit.
        """
        last: NDArray[np.float32] = self._run(ids, kept=1)[:, -1]
        return last

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes `ids` (T,) and returns the logits of each, (T, V).

        Raises:
            UsageError: no tokens, or more than fit.
        """
        every: NDArray[np.float32] = self._run(ids[None], kept=0)[0]
        return every

    def logits_and_states(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Takes `ids` (T,) and returns the logits of each, (T, V), and the states (T, H) they were made of.

        None where the output layer alone does not make the same logits of them, to the bit: the model caps or scales
        them afterwards, or its states are not float32.

        Raises:
            UsageError: no tokens, or more than fit.
        """
        import numpy as np
        import torch

        seen: list[torch.Tensor] = []
        with self._output_layer().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            logits = self.logits(ids)
        if len(seen) != 1 or seen[0].dtype != torch.float32:
            return logits, None
        states: NDArray[np.float32] = seen[0][0].numpy()
        return logits, states if np.array_equal(self.head_logits(states), logits) else None

    def head_logits(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns what the output layer makes of states (T, H): (T, V)."""
        import torch

        from edgekit.models.threads import torch_threads

        with torch_threads(self._threads), torch.inference_mode():
            # into torch's own memory: on its alignment a product's last bit may depend
            own = torch.from_numpy(states)[None].clone()
            logits: NDArray[np.float32] = self._output_layer()(own)[0].float().numpy()
        return logits

    def step(self, token: int) -> NDArray[np.float32]:
        """Takes one token and returns its logits (V,).

        Raises:
            UsageError: the context is full.
        """
        import numpy as np

        return self.prefill(np.array([token], dtype=np.int64))

    def reset(self) -> None:
        """Forgets every token."""
        self._cache, self.position = None, 0

    def close(self) -> None:
        """Frees the model and the cache."""
        self._network = self._cache = None

    def _output_layer(self) -> nn.Module:
        if self._network is None:
            raise RuntimeError("the session is closed.")
        layer: nn.Module = self._network.get_output_embeddings()
        return layer

    def _run(self, ids: NDArray[np.int64], *, kept: int) -> NDArray[np.float32]:
        """Returns the logits of the last `kept` tokens (0: of all) of every row of `ids`, (B, T, V)."""
        import torch

        from edgekit.models.threads import torch_threads

        require_room(self.position, ids.shape[1], self.context_length)
        if self._network is None:
            raise RuntimeError("the session is closed.")
        with torch_threads(self._threads), torch.inference_mode():
            inputs = torch.from_numpy(ids.astype("int64"))
            output = self._network(input_ids=inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=kept)
            self._cache = output.past_key_values
            self.position += ids.shape[1]
            logits: NDArray[np.float32] = output.logits.float().numpy()
        return logits
