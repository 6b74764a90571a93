"""Generates with GGUF files in llama.cpp, inside this process, set up as an app on a device would set it up.

The key-value cache is float16 and attention is llama.cpp's choice, both its defaults. Logits are complete: one number
for every row of the vocabulary.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int8, c_int32
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, UsageError
from edgekit.runtimes.generation import task_context
from edgekit.runtimes.protocol import ModelOnDisk, model_file

if TYPE_CHECKING:
    from numpy import ndarray

    from edgekit.runtimes.generation import GenerationConfig
    from edgekit.runtimes.llama_cpp_library import LlamaLibrary

_FLOAT32 = 0
_NO_FLASH_ATTENTION = 0
# Tokens that go through the model together in a prefill: llama.cpp's own default.
PREFILL_TOKENS = 512
_OUT_OF_ROOM = 1


class LlamaCppGeneration:
    """The runtime `llama.cpp`; a shared cache and graph optimization are what it always has."""

    name = "llama.cpp"
    formats: tuple[str, ...] = ("gguf",)
    libraries: tuple[str, ...] = ("numpy", "edgekit.runtimes.llama_cpp_library")

    def unavailable_reason(self) -> str | None:
        """Returns None when a llama.cpp library is at hand, else how to install one."""
        from edgekit.runtimes.llama_cpp_library import missing_reason

        return missing_reason()

    def version(self) -> str:
        """Returns the version of the library, which has to be loaded for that."""
        return str(_library().version)

    def open(self, model: ModelOnDisk, config: GenerationConfig) -> LlamaCppSession:
        """Returns a session for `model`.

        Raises:
            ModelError: llama.cpp cannot open the file.
            UsageError: the model has a shorter context than `config` asks for.
            EnvironmentLacksError: the library is missing or of another version.
        """
        asked = config.context_length
        session = LlamaCppSession(
            model_file(model),
            threads=config.threads,
            context_length=asked or task_context(model.path),
            conversations=config.conversations,
        )
        if asked is not None and asked != session.context_length:
            available = session.context_length
            session.close()
            raise UsageError(
                f"context: found {asked} tokens, expected 1 to {available}, which is what the model allows."
            )
        return session


class LlamaCppSession:
    """A GGUF file, open, with the cache of one conversation, or of several that move on together."""

    def __init__(
        self,
        file: Path,
        *,
        threads: int = 1,
        context_length: int | None = None,
        conversations: int = 1,
        exact_attention: bool = False,
    ) -> None:
        """Loads the file on the processor, for at most `context_length` tokens (None: as many as it was trained for).

        As an app runs it, keys and values are float16, and flash attention adds up in float16 too: logits move by some
        thousandths. `exact_attention` does both in float32, to tell a wrong file from rounding.

        Raises:
            ModelError: llama.cpp cannot open the file.
            EnvironmentLacksError: the library is missing or of another version.
        """
        self._context: int | None = None
        self._model: int | None = None
        self._library = _library()
        self._model = self._library.call("llama_model_load_from_file", str(file).encode(), self._model_parameters())
        if not self._model:
            reason = self._library.last_errors()
            raise ModelError(f"{file}: llama.cpp {self._library.version} cannot open it ({reason}). Export it again.")
        trained = int(self._library.call("llama_model_n_ctx_train", self._model))
        self.context_length = min(trained, context_length or trained)
        """Tokens that fit."""
        self._vocabulary = self._library.call("llama_model_get_vocab", self._model)
        self.vocabulary_size = int(self._library.call("llama_vocab_n_tokens", self._vocabulary))
        """Logits a token."""
        self._conversations = conversations
        parameters = self._context_parameters(threads, exact_attention=exact_attention)
        self._context = self._library.call("llama_init_from_model", self._model, parameters)
        if not self._context:
            raise ModelError(f"{file}: llama.cpp made no context for it ({self._library.last_errors()}).")
        self._position = 0

    def close(self) -> None:
        """Frees the model and its cache; the session is of no use afterwards."""
        if self._context:
            self._library.call("llama_free", self._context)
        if self._model:
            self._library.call("llama_model_free", self._model)
        self._context = self._model = None

    def __del__(self) -> None:
        """Frees what `close` was not called for."""
        self.close()

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return self._position

    def reset(self) -> None:
        """Forgets everything that was said."""
        self.truncate(0)

    def truncate(self, position: int) -> None:
        """Forgets all tokens from `position` on.

        Raises:
            ModelError: the model cannot forget a part only.
        """
        memory = self._library.call("llama_get_memory", self._context)
        if position == 0:
            self._library.call("llama_memory_clear", memory, False)
        elif not self._library.call("llama_memory_seq_rm", memory, 0, position, -1):
            raise ModelError(f"llama.cpp cannot cut this model's cache to {position} tokens. Reset it instead.")
        self._position = position

    def prefill(self, ids: ndarray | list[int]) -> ndarray:
        """Takes the tokens in and returns the logits after the last one, float32 (V,).

        Raises:
            UsageError: no token, an unknown one, or more than fit into the context.
            ModelError: llama.cpp failed.
        """
        last: ndarray = self._evaluate(_one_row(ids), every=False)[0, -1]
        return last

    def take(self, ids: ndarray) -> ndarray:
        """Takes the next tokens of every conversation, (B, T), and returns the last one's logits of each, (B, V).

        Raises what `prefill` raises.
        """
        last: ndarray = self._evaluate(ids, every=False)[:, -1]
        return last

    def step(self, token: int) -> ndarray:
        """Takes one token in and returns the logits after it, float32 (V,); raises what `prefill` raises."""
        return self.prefill([token])

    def logits(self, ids: ndarray | list[int]) -> ndarray:
        """Takes the tokens in and returns the logits after each, float32 (T, V); raises what `prefill` raises."""
        every: ndarray = self._evaluate(_one_row(ids), every=True)[0]
        return every

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Returns the tokens of a text by llama.cpp's own tokenizer, special tokens in the text understood.

        `special` adds the tokens that the model begins or ends a text with.
        """
        data = text.encode("utf-8", "surrogatepass")
        count = len(data) + 8
        for _ in range(2):
            room = (c_int32 * count)()
            found = self._library.call("llama_tokenize", self._vocabulary, data, len(data), room, count, special, True)
            if found >= 0:
                return list(room[:found])
            count = -found
        raise ModelError(f"llama.cpp could not tokenize a text of {len(data)} bytes ({self._library.last_errors()}).")

    def piece(self, token: int) -> bytes:
        """Returns the bytes that a token stands for; special tokens as they are written."""
        room = ctypes.create_string_buffer(256)
        length = self._library.call("llama_token_to_piece", self._vocabulary, token, room, len(room), 0, True)
        if length < 0:
            room = ctypes.create_string_buffer(-length)
            length = self._library.call("llama_token_to_piece", self._vocabulary, token, room, len(room), 0, True)
        return room.raw[:length]

    def ends_generation(self, token: int) -> bool:
        """Returns whether an answer ends at this token."""
        return bool(self._library.call("llama_vocab_is_eog", self._vocabulary, token))

    def chat_template(self) -> str | None:
        """Returns the chat template in the file (Jinja), or None."""
        template = self._library.call("llama_model_chat_template", self._model, None)
        return template.decode("utf-8") if template is not None else None

    def _evaluate(self, ids: ndarray, *, every: bool) -> ndarray:
        """Runs `ids` (B, T) in batches; returns float32 logits, (B, T, V) if `every`, else (B, 1, V)."""
        import numpy as np

        tokens = np.asarray(ids, dtype=np.int64)
        self._check(tokens)
        rows, length = tokens.shape
        wanted = np.full((rows, length), every)
        wanted[:, -1] = True
        places = np.indices((rows, length)).reshape(2, -1)
        outputs = np.empty((int(wanted.sum()), self.vocabulary_size), dtype=np.float32)
        filled = 0
        for start in range(0, tokens.size, PREFILL_TOKENS):
            part = slice(start, start + PREFILL_TOKENS)
            marks = wanted.reshape(-1)[part]
            self._decode(tokens.reshape(-1)[part], places[:, part], marks)
            for index in np.flatnonzero(marks):
                row = self._library.call("llama_get_logits_ith", self._context, int(index))
                outputs[filled] = np.ctypeslib.as_array(row, (self.vocabulary_size,))
                filled += 1
        self._position += length
        return outputs.reshape(rows, -1, self.vocabulary_size)

    def _check(self, tokens: ndarray) -> None:
        if tokens.shape[1] == 0:
            raise UsageError("found no tokens, expected at least one.")
        if len(tokens) != self._conversations:
            raise UsageError(f"found {len(tokens)} conversations, expected {self._conversations}.")
        if self._position + tokens.shape[1] > self.context_length:
            raise UsageError(
                f"found {self._position + tokens.shape[1]} tokens, the model's context holds {self.context_length}. "
                "Shorten the text, or reset the session."
            )
        if tokens.min() < 0 or tokens.max() >= self.vocabulary_size:
            raise UsageError(f"found the token {int(tokens.max())}, the vocabulary has {self.vocabulary_size}.")

    def _decode(self, part: ndarray, places: ndarray, wanted: ndarray) -> None:
        """Runs one batch (N,); `places` (2, N) are conversations and tokens since `position`.

        The logits of the tokens marked in `wanted` (N,) can be read afterwards.
        """
        import numpy as np

        from edgekit.runtimes.llama_cpp_library import Batch

        count = len(part)
        sequences = [ctypes.pointer(c_int32(row)) for row in range(self._conversations)]
        tokens, marks = part.astype(np.int32), wanted.astype(np.int8)
        batch = Batch(
            n_tokens=count,
            token=tokens.ctypes.data_as(ctypes.POINTER(c_int32)),
            pos=(c_int32 * count)(*(places[1] + self._position).tolist()),
            n_seq_id=(c_int32 * count)(*[1] * count),
            seq_id=(ctypes.POINTER(c_int32) * count)(*[sequences[row] for row in places[0]]),
            logits=marks.ctypes.data_as(ctypes.POINTER(c_int8)),
        )
        status = self._library.call("llama_decode", self._context, batch)
        if status:
            reason = "the cache is full" if status == _OUT_OF_ROOM else self._library.last_errors()
            raise ModelError(f"llama.cpp failed on {count} tokens after {self._position} ({reason}).")

    def _model_parameters(self) -> Any:
        parameters = self._library.call("llama_model_default_params")
        parameters.n_gpu_layers = 0
        return parameters

    def _context_parameters(self, threads: int, *, exact_attention: bool) -> Any:
        parameters = self._library.call("llama_context_default_params")
        parameters.n_ctx = self.context_length * self._conversations  # each gets its share
        parameters.n_seq_max = self._conversations
        parameters.n_batch = parameters.n_ubatch = PREFILL_TOKENS
        parameters.n_outputs_max_per_seq = 0  # as many as the batch has tokens
        if exact_attention:
            parameters.type_k = parameters.type_v = _FLOAT32
            parameters.flash_attn_type = _NO_FLASH_ATTENTION
        parameters.n_threads = parameters.n_threads_batch = threads
        return parameters


def _one_row(ids: ndarray | list[int]) -> ndarray:
    import numpy as np

    return np.asarray(ids, dtype=np.int64).reshape(1, -1)


def _library() -> LlamaLibrary:
    from edgekit.errors import EnvironmentLacksError
    from edgekit.runtimes.llama_cpp_library import find_library, load_library, missing_reason

    file = find_library()
    if file is None:
        raise EnvironmentLacksError(f"runtime 'llama.cpp' is not available: {missing_reason()}")
    return load_library(file)
