"""Generates with a directory that holds a `genai_config.json` in onnxruntime-genai on the CPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, UsageError
from edgekit.extras import install_command
from edgekit.runtimes.generation import GenerationConfig, GenerationSession, choose_context, require_room
from edgekit.runtimes.onnxruntime_runtime import SESSION_SETTINGS
from edgekit.runtimes.protocol import ModelOnDisk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG_FILE = "genai_config.json"


class GenAiGeneration:
    """The runtime `onnxruntime-genai`; `graph_optimization` has no meaning here."""

    name = "onnxruntime-genai"
    formats: tuple[str, ...] = ("onnx",)
    libraries: tuple[str, ...] = ("numpy", "onnxruntime_genai")

    def unavailable_reason(self) -> str | None:
        """Returns None when onnxruntime-genai is installed, else how to install it."""
        from importlib.util import find_spec

        if find_spec("onnxruntime_genai") is not None:
            return None
        return f"the package 'onnxruntime-genai' is not installed. Install it: {install_command('genai')}"

    def version(self) -> str:
        """Returns the version of the installed onnxruntime-genai."""
        from importlib.metadata import version

        return version("onnxruntime-genai")

    def open(self, model: ModelOnDisk, config: GenerationConfig) -> GenerationSession:
        """Returns a session on the CPU.

        Raises:
            ModelError: there is no `genai_config.json`, or the library cannot open the model.
            UsageError: the model has a shorter context than `config` asks for.
        """
        import onnxruntime_genai

        file = model.path / CONFIG_FILE
        if not file.is_file():
            raise ModelError(f"{file}: missing; expected an export of a language model. Export it again.")
        available = int(json.loads(file.read_text(encoding="utf-8"))["model"]["context_length"])
        context_length = choose_context(config.context_length, available)
        options = {"intra_op_num_threads": config.threads, "inter_op_num_threads": 1, **SESSION_SETTINGS}
        try:
            settings = onnxruntime_genai.Config(str(model.path))
            settings.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            opened = onnxruntime_genai.Model(settings)
        except Exception as error:  # the library raises plain RuntimeError and others
            raise ModelError(f"{model.path}: onnxruntime-genai cannot open it ({error}). Export it again.") from error
        return GenAiSession(opened, context_length, shared_cache=config.shared_cache)


class GenAiSession:
    """An open model with the library's own cache."""

    def __init__(self, model: Any, context_length: int, *, shared_cache: bool) -> None:
        """Wraps an `onnxruntime_genai.Model`."""
        self._model = model
        self._shared = shared_cache
        self._generator: Any = None
        self.context_length = context_length
        self.position = 0
        self.reset()

    def prefill(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes `ids` (T,) and returns the last one's logits (V,).

        Raises:
            UsageError: no tokens, or more than fit.
        """
        import numpy as np

        require_room(self.position, len(ids), self.context_length)
        self._generator.append_tokens(np.asarray(ids, dtype=np.int32))
        self.position += len(ids)
        logits: NDArray[np.float32] = np.asarray(self._generator.get_logits(), dtype=np.float32).reshape(-1)
        return logits

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes `ids` (T,) one by one, for the library gives the last one's logits only, and returns all, (T, V).

        Raises:
            UsageError: no tokens, or more than fit.
        """
        import numpy as np

        require_room(self.position, len(ids), self.context_length)
        return np.stack([self.step(int(token)) for token in ids])

    def step(self, token: int) -> NDArray[np.float32]:
        """Takes one token and returns its logits (V,).

        Raises:
            UsageError: the context is full.
        """
        import numpy as np

        return self.prefill(np.array([token], dtype=np.int64))

    def tokenize(self, text: str) -> list[int]:
        """Returns the tokens of a text by the library's own tokenizer, up to the first NUL, as its texts end there."""
        return [int(token) for token in self._tokenizer().encode(text)]

    def render(self, messages: list[dict[str, str]]) -> str:
        """Returns a conversation as the library's own template engine writes it, ready for an answer.

        Raises:
            UsageError: the engine cannot run the template, or the template refuses the conversation.
        """
        try:
            text: str = self._tokenizer().apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise UsageError(
                f"onnxruntime-genai: its template engine fails on this conversation ({reason}). Change the "
                "conversation, or use another runtime."
            ) from error
        return text

    def _tokenizer(self) -> Any:
        import onnxruntime_genai

        return onnxruntime_genai.Tokenizer(self._model)

    def reset(self) -> None:
        """Forgets every token."""
        import onnxruntime_genai

        parameters = onnxruntime_genai.GeneratorParams(self._model)
        # The library wants room for one token beyond the last that it is given.
        parameters.set_search_options(max_length=self.context_length, past_present_share_buffer=self._shared)
        self._generator = onnxruntime_genai.Generator(self._model, parameters)
        self.position = 0

    def close(self) -> None:
        """Frees the model and the cache."""
        self._generator = self._model = None
