"""Bytes of a step, counted from the file and again from the model in memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgekit
from edgekit.benchmarking.step_bytes import LayerCache, StepBytes, count_step_bytes
from edgekit.exporters.stage import ExportConfig
from edgekit.models.quantized import Scheme
from tests.coded_decoders import code_linears
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder

WIDE = {"hidden_size": 64, "head_dim": 16}
CACHE = 2 * 2 * 16
"""Keys and values of one layer and token: two heads of 16."""


@dataclass(frozen=True)
class Built:
    """A directory that another tool wrote."""

    path: Path
    kind: str = "onnx"


def counted(loaded, directory, config=None):
    model = publish_model(loaded, directory / "model")
    if config is None:
        return count_step_bytes(model)
    return count_step_bytes(edgekit.export(model, config, out=directory / "export"))


def float_bytes(loaded, *, tied: bool) -> int:
    """Returns the weights in float32 without the rows of a table that nothing looks up."""
    parameters = {id(each): each for each in loaded.model.parameters()}
    total = 4 * sum(each.numel() for each in parameters.values())
    table = loaded.model.get_input_embeddings().weight
    return total if tied else total - 4 * (table.shape[0] - 1) * table.shape[1]


@pytest.mark.parametrize(
    ("form", "element", "tied"),
    [(None, 4, True), (None, 4, False), ("onnx", 4, False), ("gguf", 2, True), ("gguf", 2, False)],
)
def test_float_weights_are_counted_once_and_a_table_as_a_row(form, element, tied, tmp_path):
    loaded = pico_decoder("llama", layers=2, tied=tied, **WIDE)
    found = counted(loaded, tmp_path, form and ExportConfig(format=form))
    expected = float_bytes(loaded, tied=tied)
    # ONNX adds rows of rotary angles and a few constants.
    assert expected <= found.weights <= expected + (0 if form != "onnx" else 400)
    assert found.caches == (LayerCache(CACHE * element, None),) * 2
    assert found.at(10) == found.weights + 10 * 2 * CACHE * element


@pytest.mark.parametrize("form", [None, "onnx", "gguf"])
def test_a_sliding_window_bounds_what_is_read(form, tmp_path):
    loaded = pico_decoder("gemma3_text", layers=2, query_pre_attn_scalar=16, **WIDE)
    found = counted(loaded, tmp_path, form and ExportConfig(format=form))
    windows = [cache.window for cache in found.caches]
    kinds = loaded.model.config.layer_types
    assert windows == [16 if kind == "sliding_attention" else None for kind in kinds]
    assert 16 in windows
    full = windows.count(None)
    one = found.caches[0].bytes_per_token
    assert found.at(100) - found.at(16) == full * 84 * one


def test_learned_positions_count_as_a_row(tmp_path):
    loaded = pico_decoder("gpt2", layers=2)
    found = counted(loaded, tmp_path)
    positions = loaded.model.transformer.wpe.weight
    assert found.weights == float_bytes(loaded, tied=True) - 4 * (positions.shape[0] - 1) * positions.shape[1]


def test_codes_count_as_they_are_stored(tmp_path):
    loaded = pico_decoder("llama", layers=2, hidden_size=64, intermediate_size=64, head_dim=16)
    code_linears(loaded, Scheme(bits=4, group_size=32, symmetric=True, activations="float"))
    table = loaded.model.get_input_embeddings().weight
    norms = sum(p.numel() for name, p in loaded.model.named_parameters() if "norm" in name)
    linears = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 64)
    expected = linears // 2 + linears // 32 * 2 + 4 * (table.numel() + norms)
    assert counted(loaded, tmp_path).weights == expected
    # A Q4_0 block is 16 bytes of codes and a float16 scale: the same.
    assert counted(loaded, tmp_path / "gguf", ExportConfig(format="gguf")).weights == expected
    # MatMulNBits takes float32 scales.
    found = counted(loaded, tmp_path / "onnx", ExportConfig(format="onnx")).weights
    assert found == pytest.approx(expected + linears // 32 * 2, abs=400)


@given(st.integers(0, 10**9), st.lists(st.tuples(st.integers(1, 10**6), st.none() | st.integers(1, 500))))
def test_a_longer_context_never_reads_less(weights, layers):
    step = StepBytes(weights, tuple(LayerCache(*layer) for layer in layers))
    sizes = [step.at(tokens) for tokens in range(0, 1000, 50)]
    assert sizes == sorted(sizes)
    assert sizes[0] == weights


def test_a_file_without_head_sizes_takes_them_from_the_configuration_beside_it(tmp_path):
    loaded = pico_decoder("llama", layers=2, **WIDE)
    model = publish_model(loaded, tmp_path / "model")
    export = edgekit.export(model, ExportConfig(format="onnx"), out=tmp_path / "export")
    graph = onnx.load(export.path / "onnx" / "model.onnx", load_external_data=False)
    for value in graph.graph.input:
        if value.name.startswith("past_key_values"):
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    directory = tmp_path / "built"
    directory.mkdir()
    onnx.save(graph, directory / "model.onnx")

    assert count_step_bytes(Built(directory)) is None
    shutil.copyfile(export.path / "config.json", directory / "config.json")
    assert count_step_bytes(Built(directory)) == count_step_bytes(export)
