"""The `gguf` branch of the stage `export`: a language model artifact in, a `gguf` artifact out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, hash_json, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.events import Event
from edgekit.exporters.description import ExportDescription, write_description
from edgekit.formats import FORMATS, FormatName

if TYPE_CHECKING:
    from edgekit.exporters.stage import ExportConfig

GGUF_FILE = FORMATS["gguf"].file
_COPIED = (
    "config.json",
    "generation_config.json",
    "task.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class GgufDescription(ExportDescription):
    """`export.json` of a GGUF."""

    format: FormatName = "gguf"
    file: str = GGUF_FILE
    architecture: str
    """llama.cpp's name of the architecture."""
    tensor_types: dict[str, int]
    """F32, F16 or block type to the number of tensors."""
    context_length: int
    """Tokens that the file says it takes."""


def export_gguf_artifact(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Writes a language model as a `gguf` artifact: `model.gguf`, which llama.cpp opens, and the parts beside it.

    Raises:
        UnsupportedError: a task, architecture, scheme or tokenizer that llama.cpp does not have.
        ModelError: the model cannot be read, a weight is not finite, or the file does not give back what was written
            into it.
    """
    from edgekit.exporters.gguf import export_gguf
    from edgekit.exporters.precision import apply_precision, require_finite
    from edgekit.models.source import load_model

    model = inputs.require("model", "export")
    loaded = load_model(model)
    require_finite(loaded.model, str(model.path))
    apply_precision(loaded.model, config.precision)
    context.events(Event("progress", stage="export", text="writing the GGUF"))
    with publish(context.out, kind="gguf", lineage=lineage_of("export", inputs, config, context)) as directory:
        written = export_gguf(
            loaded,
            directory / GGUF_FILE,
            floats="F16" if config.precision == "float16" else "F32",
            lineage=_lineage(model, loaded.task.max_length),
        )
        for note in written.notes:
            context.events(Event("message", stage="export", text=note))
        description = GgufDescription(
            precision=config.precision,
            architecture=written.architecture,
            tensor_types=written.types,
            context_length=written.context_length,
            notes=written.notes,
            model_digest=model.digest,
        )
        _write_beside(directory, model.path, description)
    return Artifact.open(context.out)


def require_expressible(model: Artifact) -> None:
    """Does nothing where llama.cpp has the model's architecture and tokenizer; reads no weights.

    Raises:
        UnsupportedError: it does not have them.
    """
    from transformers import AutoConfig

    from edgekit.models.gguf_configuration import metadata_of
    from edgekit.models.gguf_vocabulary import vocabulary_of
    from edgekit.models.tokenizer import load_tokenizer

    config = AutoConfig.from_pretrained(model.path, local_files_only=True, trust_remote_code=False)
    metadata_of(config)
    vocabulary_of(load_tokenizer(model.path), config.vocab_size, None)


def _lineage(model: Artifact, max_length: int) -> dict[str, str]:
    """Returns what the file itself says of where it comes from."""
    from edgekit._version import __version__

    return {
        "lineage_digest": hash_json(model.as_ancestor().model_dump(mode="json")),
        "max_length": str(max_length),
        "model_digest": model.digest,
        "version": __version__,
    }


def _write_beside(directory: Path, model: Path, description: GgufDescription) -> None:
    for name in _COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, directory / name)
    write_description(directory, description)
