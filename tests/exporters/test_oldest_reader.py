"""Which onnxruntime a file asks for, as `export.json` says it: the versions were found by opening such files."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgekit
from edgekit.exporters.description import EXPORT_FILE, OldestReader, OnnxDescription
from edgekit.exporters.stage import ExportConfig
from edgekit.quantization.stage import QuantizeConfig
from tests.pico import pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder


def oldest_reader(
    model: edgekit.Artifact, place: Path, config: QuantizeConfig | None = None, export: ExportConfig | None = None
) -> OldestReader | None:
    if config is not None:
        model = edgekit.quantize(model, config, out=place / "codes")
    file = edgekit.export(model, export, out=place / "export").path / EXPORT_FILE
    return OnnxDescription.model_validate_json(file.read_text()).oldest_reader


@pytest.mark.parametrize(
    ("config", "version", "what"),
    [
        (None, "1.22.0", "GroupQueryAttention"),
        (QuantizeConfig(bits=4, group_size=32), "1.22.0", "GroupQueryAttention"),
        (QuantizeConfig(bits=4, group_size=32, embeddings_group_size=32), "1.23.0", "GatherBlockQuantized"),
        (QuantizeConfig(bits=2, group_size=32, embeddings_group_size=32), "1.24.1", "MatMulNBits of 2 bits"),
    ],
    ids=["float", "plain table", "table in groups", "2 bits"],
)
def test_a_language_model_asks_for_the_newest_that_any_part_needs(tmp_path, config, version, what):
    model = publish_model(pico_decoder("llama", layers=1), tmp_path / "model")
    found = oldest_reader(model, tmp_path, config)
    assert found is not None
    assert (found.version, what in found.what) == (version, True)


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (QuantizeConfig(), None),
        (QuantizeConfig(bits=4, group_size=32), None),
        (QuantizeConfig(bits=8, group_size=32), "1.22.0"),
    ],
    ids=["8 bits by channel", "4 bits in groups", "8 bits in groups"],
)
def test_a_classifier_asks_for_more_than_its_operator_set_only_with_8_bits_in_groups(tmp_path, config, version):
    found = oldest_reader(pico_model_artifact(tmp_path / "model", layers=1), tmp_path, config)
    assert (None if found is None else found.version) == version


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (QuantizeConfig(), None),
        (QuantizeConfig(bits=8, group_size=32, activations="float"), None),
        (QuantizeConfig(bits=4, group_size=32), "1.28.0"),
    ],
    ids=["8 bits by channel", "8 bits in groups with floats", "4 bits in groups"],
)
def test_in_onnxruntimes_own_format_products_of_blocks_ask_for_more(tmp_path, config, version):
    model = pico_model_artifact(tmp_path / "model", layers=1)
    found = oldest_reader(model, tmp_path, config, ExportConfig(format="ort"))
    assert (None if found is None else found.version) == version
