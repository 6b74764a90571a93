"""llama.cpp's C interface, called through ctypes: the shared library that `node-llama-cpp` ships, or one of one's own.

Structures are laid out as in llama.cpp 0.5 and checked against the library's own default values when it is loaded: a
build with another layout is refused, never called. Nothing here knows of artifacts or runtimes.
"""

from __future__ import annotations

import ctypes
import os
import platform
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any, ClassVar

from edgekit.errors import EnvironmentLacksError

LOCATION_VARIABLE = "EDGEKIT_LLAMA_CPP"
INSTALL = "npm install node-llama-cpp@3.22.1"
_PLATFORMS = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "arm64"): "mac-arm64-metal",
    ("Darwin", "x86_64"): "mac-x64",
}
_SUFFIX = ".dylib" if platform.system() == "Darwin" else ".so"
_ERROR_LEVEL = 4
_KEPT_LINES = 3
_Callback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)


class ModelParameters(ctypes.Structure):
    """`llama_model_params`."""

    _fields_: ClassVar = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParameters(ctypes.Structure):
    """`llama_context_params`."""

    _fields_: ClassVar = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_: ClassVar = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_Callback, c_void_p]),
    "llama_version": (c_char_p, []),
    "llama_model_default_params": (ModelParameters, []),
    "llama_context_default_params": (ContextParameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParameters]),
    "llama_model_free": (None, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParameters]),
    "llama_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
}
# Defaults that are unlikely to stand at the same places by chance in another layout.
_EXPECTED = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "no_perf": True,
    "swa_full": True,
    "n_samplers": 0,
}
_loaded: dict[Path, LlamaLibrary] = {}


class LlamaLibrary:
    """The functions of one llama.cpp build, as attributes, and the last errors that it logged."""

    def __init__(self, file: Path) -> None:
        """Loads the library and the processor-specific kernels beside it; llama.cpp's log goes nowhere else."""
        try:
            self._library = ctypes.CDLL(str(file))
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise EnvironmentLacksError(
                f"{file}: is not a llama.cpp that edgekit can call ({error}). {_advice()}"
            ) from error
        self._errors: list[str] = []
        # The library keeps the pointer only: the object must live as long.
        self._callback = _Callback(self._hear)
        self.call("llama_log_set", self._callback, None)
        self._check_layout(file)
        _load_kernels(file.parent)
        self.call("llama_backend_init")
        self.version = self.call("llama_version").decode().removeprefix("v")

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls the C function `name`."""
        return getattr(self._library, name)(*arguments)

    def last_errors(self) -> str:
        """Returns what llama.cpp last complained of, and forgets it."""
        text = "; ".join(self._errors[-_KEPT_LINES:])
        self._errors.clear()
        return text or "it gave no reason"

    def _hear(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR_LEVEL and line:
            self._errors.append(line)

    def _check_layout(self, file: Path) -> None:
        defaults = self.call("llama_context_default_params")
        found = {name: getattr(defaults, name) for name in _EXPECTED}
        if found != _EXPECTED:
            name = next(name for name in _EXPECTED if found[name] != _EXPECTED[name])
            raise EnvironmentLacksError(
                f"{file}: its default for {name} reads as {found[name]}, expected {_EXPECTED[name]}: another version "
                f"of llama.cpp than 0.5, whose structures edgekit knows. {_advice()}"
            )


def load_library(file: Path) -> LlamaLibrary:
    """Returns the library in `file`, loaded once in a process.

    Raises:
        EnvironmentLacksError: it cannot be loaded, or is of another version.
    """
    if file not in _loaded:
        _loaded[file] = LlamaLibrary(file)
    return _loaded[file]


def find_library() -> Path | None:
    """Returns the file of the llama.cpp library, or None.

    Looks into the directory that the environment variable EDGEKIT_LLAMA_CPP names, else into `node_modules` of the
    working directory and those above it.
    """
    named = os.environ.get(LOCATION_VARIABLE)
    if named:
        return _library_in(Path(named).expanduser())
    folder = _PLATFORMS.get((platform.system(), platform.machine()))
    if folder is None:
        return None
    here = Path.cwd()
    for parent in (here, *here.parents):
        found = _library_in(parent / "node_modules" / "@node-llama-cpp" / folder / "bins" / folder)
        if found is not None:
            return found
    return None


def missing_reason() -> str | None:
    """Returns None when a llama.cpp library is at hand, else what to install."""
    if find_library() is not None:
        return None
    return f"found no llama.cpp library. {_advice()}"


def _advice() -> str:
    return f"Install it here: {INSTALL} - or name its directory in the environment variable {LOCATION_VARIABLE}."


def _library_in(directory: Path) -> Path | None:
    """Returns the library in a directory: `libllama.so`, or with a version in its name."""
    files = sorted(directory.glob(f"libllama.*{_SUFFIX.lstrip('.')}")) if directory.is_dir() else []
    return files[0] if files else None


def _load_kernels(directory: Path) -> None:
    """Loads ggml's kernels, which are libraries of their own where a build has several for one architecture."""
    for file in sorted(directory.glob(f"libggml.*{_SUFFIX.lstrip('.')}")):
        ggml = ctypes.CDLL(str(file))
        load = getattr(ggml, "ggml_backend_load_all_from_path", None)
        if load is not None:
            load.restype, load.argtypes = None, [c_char_p]
            load(str(directory).encode())
            return
