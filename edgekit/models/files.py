"""Checks a model directory before anything is loaded from it: whole, readable, and nothing that runs code.

Only the standard library is needed, and no byte of a weight is interpreted. What the weights mean is not known here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import hash_file, hash_json
from edgekit.errors import ModelError, UntrustedModelError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model source, on this machine and checked."""

    source: str
    """The source as the user spelled it."""
    path: Path
    """Directory of the files."""
    commit: str | None
    """The hub commit that they are of; None for files that were here."""
    gguf: Path | None = None
    """The one file that holds everything; None for a transformers directory."""

    def config(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        return read_json(self.path / CONFIG_FILE)

    def weights(self) -> list[Path]:
        """Returns the safetensors files that hold the weights."""
        return weight_files(self.path)

    def digest(self) -> str:
        """Returns the SHA-256 over the names and contents of the files that a model is loaded from."""
        if self.gguf is not None:
            return hash_json({self.gguf.name: hash_file(self.gguf)})
        suffixes = {".json", ".txt", ".model", ".jinja"}
        files = {file for file in self.path.iterdir() if file.suffix in suffixes and file.is_file()}
        files |= set(self.weights())
        return hash_json({file.name: hash_file(file) for file in sorted(files)})


def check_files(source: str, directory: Path, *, commit: str | None) -> ModelFiles:
    """Returns the model files in `directory` after checking that they are whole and run no code.

    Raises:
        UntrustedModelError: the weights are pickled, or the configuration asks for remote code.
        ModelError: a part is missing, truncated or altered, or is of a kind that cannot be imported.
    """
    if not (directory / CONFIG_FILE).is_file():
        refuse_pickles(source, _names(directory))
        raise ModelError(
            f"{source}: found no {CONFIG_FILE}; expected a transformers model directory, or the path of a .gguf file. "
            f"It holds: {_listing(directory)}."
        )
    config = read_json(directory / CONFIG_FILE)
    _check_config(directory, config)
    _refuse_remote_code(source, directory)
    if not (directory / WEIGHTS_FILE).is_file() and not (directory / INDEX_FILE).is_file():
        refuse_pickles(source, _names(directory))
        raise ModelError(f"{source}: found no {WEIGHTS_FILE}; it holds: {_listing(directory)}.")
    for file in weight_files(directory):
        check_safetensors(file)
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{source}: found no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}. "
            f"Copy the tokenizer of the model that it was made from. It holds: {_listing(directory)}."
        )
    return ModelFiles(source, directory, commit)


def refuse_pickles(source: str, names: list[str]) -> None:
    """Refuses a model whose weights are all pickled; `names` are its files.

    Raises:
        UntrustedModelError: there is a pickle and no safetensors.
    """
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES) and "/" not in name)
    pickles = [name for name in pickles if name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")]
    if pickles and WEIGHTS_FILE not in names and INDEX_FILE not in names:
        raise UntrustedModelError(
            f"{source}: found {pickles[0]} and no {WEIGHTS_FILE}. A pickle runs code when it is loaded, so it is "
            'refused. If you trust it, convert it where nothing is at stake: python -c "from transformers import '
            f"AutoModelForSequenceClassification as M; M.from_pretrained('{source}').save_pretrained('converted')\" "
            "(AutoModel for an encoder without a head), copy the tokenizer files beside it, and give that directory."
        )


def weight_files(directory: Path) -> list[Path]:
    """Returns the safetensors files of a model directory: one, or the shards that the index names.

    Raises:
        ModelError: the index is not valid or names a file that is missing.
    """
    if (directory / WEIGHTS_FILE).is_file() or not (directory / INDEX_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    index = directory / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: found no 'weight_map'; expected tensor names and the files that hold them.")
    shards = sorted({str(name) for name in weight_map.values()})
    for name in shards:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: names the file '{name}'; expected safetensors files beside the index.")
        if not (directory / name).is_file():
            raise ModelError(f"{directory / name}: missing; {INDEX_FILE} names it. Download the model again.")
    return [directory / name for name in shards]


def check_safetensors(file: Path) -> None:
    """Checks a safetensors file's header, and that its length is exactly what the header says.

    Raises:
        ModelError: the file is missing, truncated, altered, or a Git LFS pointer.
    """
    if not file.is_file():
        raise ModelError(f"{file}: missing; expected the weights.")
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise ModelError(f"{file}: is a Git LFS pointer, not the weights. Fetch them: git lfs pull")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ModelError(f"{file}: found {size} bytes, too few for its header. {_AGAIN}")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        spans = sorted(_span(name, entry) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{file}: its header is not valid ({error}). {_AGAIN}") from error
    end = 0
    for first, last, name in spans:
        if first != end:
            raise ModelError(f"{file}: tensor '{name}' starts at byte {first}, expected {end}. {_AGAIN}")
        end = last
    if size != 8 + length + end:
        raise ModelError(f"{file}: found {size} bytes, its header says {8 + length + end}. {_AGAIN}")


def sort_metadata(file: Path) -> None:
    """Writes the metadata of a safetensors file in the order of their names, in place.

    safetensors itself writes them in a random order, so that equal models would not be equal bytes.
    """
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= length:
            stream.seek(8)
            stream.write(content.ljust(length))


_AGAIN = "It is truncated or altered: download or save it again."


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        ModelError: it is not one.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: not valid JSON ({error}). {_AGAIN}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: found a {type(value).__name__}, expected a JSON object. {_AGAIN}")
    return value


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int, str]:
    """Returns where a tensor starts and ends, after checking that its shape needs just that."""
    first, last = entry["data_offsets"]
    shape, dtype = entry["shape"], entry["dtype"]
    if dtype not in _DTYPE_BITS:
        raise ValueError(f"tensor '{name}' is of the unknown type {dtype!r}")
    needed = math.prod(shape) * _DTYPE_BITS[dtype] // 8
    if last - first != needed:
        raise ValueError(f"tensor '{name}' takes {last - first} bytes, its shape {shape} needs {needed}")
    return first, last, name


def _check_config(directory: Path, config: dict[str, Any]) -> None:
    file = directory / CONFIG_FILE
    if "model_type" not in config and "auto_map" not in config:
        raise ModelError(f"{file}: found no 'model_type'; expected the configuration of a transformers model.")
    if (directory / "adapter_config.json").is_file():
        raise ModelError(
            f"{directory}: holds an adapter (adapter_config.json). Merge it into its base model first: "
            "peft's `merge_and_unload()`, then `save_pretrained`."
        )
    if "quantization_config" in config or (directory / "quantization.json").is_file():
        raise ModelError(
            f"{directory}: is quantized already. Import the float model that it was made from; edgekit quantizes last."
        )


def _refuse_remote_code(source: str, directory: Path) -> None:
    """Refuses a model that comes with Python code: every later stage would have to run it again, unasked."""
    for name in (CONFIG_FILE, "tokenizer_config.json"):
        auto_map = read_json(directory / name).get("auto_map") if (directory / name).is_file() else None
        if auto_map:
            modules = ", ".join(_modules(auto_map))
            raise UntrustedModelError(
                f"{source}: its {name} asks for Python code of its own (auto_map: {modules}), and code that comes with "
                "a model is never run. Expected an architecture and a tokenizer that transformers has itself. Where it "
                f"has this one too, remove auto_map from a copy of {name}; else convert the weights to one that it has."
            )


def _modules(auto_map: object) -> list[str]:
    """Returns the Python files that an `auto_map` names; `owner/name--module.Class` is of another repository."""
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    return sorted({f"{str(entry).rpartition('.')[0] or entry}.py" for entry in entries if entry})


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def _listing(directory: Path) -> str:
    names = _names(directory)
    shown = ", ".join(names[:12]) or "nothing"
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
