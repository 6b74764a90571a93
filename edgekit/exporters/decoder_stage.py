"""What the stage `export` does for language models: one decoder, and all that three runtimes read beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact
from edgekit.events import Event

if TYPE_CHECKING:
    from edgekit.contract import StageContext
    from edgekit.exporters.decoder import DecoderExport
    from edgekit.exporters.onnx import OnnxSettings
    from edgekit.exporters.stage import ExportConfig
    from edgekit.models.source import LoadedModel

_CHAT_TEMPLATE_FILE = "chat_template.jinja"
_OPTIONAL = (_CHAT_TEMPLATE_FILE, "generation_config.json", "special_tokens_map.json")


def write_decoder(
    directory: Path, loaded: LoadedModel, settings: OnnxSettings, config: ExportConfig, context: StageContext
) -> DecoderExport:
    """Writes the model into `directory` after checking it against torch, with its `genai_config.json`.

    Raises:
        UnsupportedError: the model computes what no operator does.
        ParityError: the file computes something else than the model.
    """
    from edgekit.exporters.block_rounding import multiply_floats
    from edgekit.exporters.decoder import DecoderSettings, export_decoder
    from edgekit.exporters.genai_config import GENAI_CONFIG_FILE, make_genai_config
    from edgekit.exporters.lowering_names import takes_floats
    from edgekit.exporters.onnx import save_onnx
    from edgekit.exporters.onnx_stage import MODEL_FILE
    from edgekit.exporters.self_check import self_check

    decoder = DecoderSettings(left_padding=config.left_padding, logits_to_keep=config.logits_to_keep)
    exported = export_decoder(loaded, settings, decoder)
    file = directory / MODEL_FILE
    save_onnx(exported.export, file, external_data=config.external_data)
    context.events(Event("progress", stage="export", text="comparing with torch"))
    multiply_floats(loaded.model, takes_floats(exported.export.lowerings))
    self_check(file, loaded.model, exported.context_length, left_padding=config.left_padding)
    content = make_genai_config(
        loaded.model.config,
        getattr(loaded.model, "generation_config", None),
        exported.survey,
        context_length=exported.context_length,
        file=MODEL_FILE,
    )
    text = json.dumps(content, indent=2, sort_keys=True)
    (directory / GENAI_CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    return exported


def copy_generation_files(directory: Path, model: Artifact) -> None:
    """Copies chat template and generation settings, the template into the tokenizer's configuration as well.

    onnxruntime-genai and older versions of transformers.js read it there.
    """
    for name in _OPTIONAL:
        if (model.path / name).is_file():
            shutil.copyfile(model.path / name, directory / name)
    template = directory / _CHAT_TEMPLATE_FILE
    if template.is_file():
        file = directory / "tokenizer_config.json"
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        content.setdefault("chat_template", template.read_text(encoding="utf-8"))
        text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
        file.write_text(text + "\n", encoding="utf-8")
