"""Generates with ONNX files of decoders in onnxruntime on the CPU, without copying the cache.

Keys and values stay in buffers of the runtime that are bound as input and output:

- shared: one buffer of the whole context for each layer's keys and values, bound as past and as present alike; the
  attention writes the new tokens in place. It is what onnxruntime-genai does.
- exact: past tensors of the exact length go in, and the present ones that come out are the next call's past. It is what
  transformers.js and optimum do.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, UsageError
from edgekit.runtimes.generation import GenerationConfig, GenerationSession, choose_context, require_room, task_context
from edgekit.runtimes.onnxruntime_runtime import OnnxRuntime, open_file, session_options
from edgekit.runtimes.protocol import ModelOnDisk, SessionConfig, model_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_DEVICE = "cpu"
LOGITS_TO_KEEP = "num_logits_to_keep"
"""An input with a default, by which edgekit's exports give the logits of so many last tokens; 0: of all."""


class OnnxRuntimeGeneration:
    """The runtime `onnxruntime`."""

    name = "onnxruntime"
    formats: tuple[str, ...] = ("onnx",)
    libraries: tuple[str, ...] = ("numpy", "onnxruntime")

    def unavailable_reason(self) -> str | None:
        """Returns None when onnxruntime is installed, else how to install it."""
        return OnnxRuntime().unavailable_reason()

    def version(self) -> str:
        """Returns the version of the installed onnxruntime."""
        return OnnxRuntime().version()

    def open(self, model: ModelOnDisk, config: GenerationConfig) -> GenerationSession:
        """Returns a session on the CPU provider.

        Raises:
            ModelError: onnxruntime cannot open the file, or it is no decoder with a cache.
            UsageError: the model has a shorter context than `config` asks for.
        """
        available = task_context(model.path)
        if available is None:
            raise ModelError(f"{model.path / 'task.json'}: missing, or without max_length. Export the model again.")
        options = session_options(SessionConfig(config.threads, config.graph_optimization))
        session = open_file(model_file(model), options)
        context_length = choose_context(config.context_length, available)
        return OnnxGenerationSession(session, replace(config, context_length=context_length))


class OnnxGenerationSession:
    """An ONNX decoder, open, with the cache of one sequence, or of several that move on together."""

    context_length: int

    def __init__(self, session: Any, config: GenerationConfig) -> None:
        """Wraps an `onnxruntime.InferenceSession`; `config.context_length` must be chosen.

        Raises:
            ModelError: the file has no past keys and values.
        """
        assert config.context_length is not None
        self._session = session
        self._past = {entry.name: entry for entry in session.get_inputs() if _PAST.fullmatch(entry.name)}
        if not self._past:
            raise ModelError("found no inputs past_key_values.N.key, expected a decoder with a cache. Export it again.")
        names = {entry.name for entry in session.get_overridable_initializers()}
        self._chooses_logits = LOGITS_TO_KEEP in names
        self._shared, self._conversations = config.shared_cache, config.conversations
        self._binding: Any = None
        self._cache: dict[str, Any] = {}
        self.context_length = config.context_length
        self.position = 0
        self.reset()

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
            UsageError: no tokens, more than fit, or, after the first call, more than one of several conversations.
        """
        if len(ids) > 1 and self.position and ids.shape[1] > 1:
            raise UsageError(
                f"found {ids.shape[1]} tokens after {self.position}, expected 1: onnxruntime takes several "
                "conversations on by one token of each."
            )
        last: NDArray[np.float32] = self._run(ids, kept=1)[:, -1]
        return last

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes `ids` (T,) and returns the logits of each, (T, V).

        Raises:
            UsageError: no tokens, or more than fit.
        """
        every: NDArray[np.float32] = self._run(ids[None], kept=0)[0]
        return every

    def step(self, token: int) -> NDArray[np.float32]:
        """Takes one token and returns its logits (V,).

        Raises:
            UsageError: the context is full.
        """
        import numpy as np

        return self.prefill(np.array([token], dtype=np.int64))

    def reset(self) -> None:
        """Forgets every token. Shared buffers stay: what is in them beyond `position` is never read."""
        self.position = 0
        if self._shared and self._cache:
            return
        self._binding = self._session.io_binding()
        self._cache = {name: self._empty(entry) for name, entry in self._past.items()}
        if self._shared:
            for name, value in self._cache.items():
                self._binding.bind_ortvalue_input(name, value)
                self._binding.bind_ortvalue_output(_present(name), value)

    def close(self) -> None:
        """Frees the model and the cache."""
        self._binding, self._cache, self._session = None, {}, None

    def _run(self, ids: NDArray[np.int64], *, kept: int) -> NDArray[np.float32]:
        """Returns the logits of the last `kept` tokens (0: of all) of every row of `ids`, (B, T, V)."""
        import numpy as np

        require_room(self.position, ids.shape[1], self.context_length)
        total = self.position + ids.shape[1]
        self._bind("input_ids", np.asarray(ids, dtype=np.int64))
        self._bind("attention_mask", np.ones((len(ids), total), dtype=np.int64))
        if self._chooses_logits:
            self._bind(LOGITS_TO_KEEP, np.array(kept, dtype=np.int64))
        if not self._shared:
            self._bind_exact()
        self._binding.bind_output("logits", _DEVICE)
        self._session.run_with_iobinding(self._binding)
        # a binding gives its outputs in the order in which they were first bound
        values = dict(zip((*map(_present, self._past), "logits"), self._binding.get_outputs(), strict=True))
        if not self._shared:
            self._cache = {name: values[_present(name)] for name in self._past}
        self.position = total
        logits: NDArray[np.float32] = values["logits"].numpy()
        return logits.astype(np.float32, copy=False)

    def _bind(self, name: str, array: NDArray[np.int64]) -> None:
        from onnxruntime import OrtValue

        self._binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))

    def _bind_exact(self) -> None:
        for name, value in self._cache.items():
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_output(_present(name), _DEVICE)

    def _empty(self, entry: Any) -> Any:
        """Returns room for the context, or a tensor of length 0: (B, M, L, D)."""
        import numpy as np
        from onnxruntime import OrtValue

        _, heads, _, size = entry.shape
        length = self.context_length if self._shared else 0
        dtype = np.float16 if "float16" in entry.type else np.float32
        return OrtValue.ortvalue_from_numpy(np.zeros((self._conversations, heads, length, size), dtype=dtype))


def _present(past: str) -> str:
    """Returns the name of the output that belongs to an input."""
    return past.replace("past_key_values", "present")
