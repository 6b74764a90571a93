from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.exporters.gguf import export_gguf
from edgekit.models.gguf_source import load_gguf
from edgekit.models.gguf_weights import model_rows, stored_rows
from edgekit.models.quiet import quiet_transformers
from tests.pico_decoders import pico_decoder


def rewrite(source: Path, out: Path, *, drop: tuple[str, ...] = (), changes: dict[str, Any] | None = None) -> Path:
    """Writes a GGUF again with metadata changed (None: left out) and tensors dropped."""
    reader = gguf.GGUFReader(source)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    values = {key: field.contents() for key, field in fields.items()} | (changes or {})
    writer = gguf.GGUFWriter(out, str(values.pop("general.architecture")))
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_gguf(pico_decoder(hidden_size=64, intermediate_size=128, layers=1), file, lineage={})
    return file


def test_rows_of_two_heads_by_hand() -> None:
    # Heads of four channels: transformers pairs 0 with 2 and 1 with 3, llama.cpp wants pairs side by side.
    assert stored_rows(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@given(st.integers(1, 6), st.integers(1, 16))
def test_the_order_of_rows_is_undone(heads: int, half: int) -> None:
    rows = heads * half * 2
    assert stored_rows(rows, heads)[model_rows(rows, heads)].tolist() == list(range(rows))


def test_it_reads_what_transformers_reads(llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        reference = AutoModelForCausalLM.from_pretrained(llama.parent, gguf_file=llama.name, dtype=torch.float32)
    own = load_gguf(llama).network.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in reference.state_dict().items())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "BF16", "F16"])
def test_every_block_is_decoded(llama: Path, tmp_path: Path, kind: str) -> None:
    reader = gguf.GGUFReader(llama)
    quantization = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    plain = rewrite(llama, tmp_path / "plain.gguf")
    for key, field in gguf.GGUFReader(plain).fields.items():
        if key.startswith(("llama.", "tokenizer.")):
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=(field.types[1:] or [None])[-1])
    expected = {}
    for tensor in reader.tensors:
        if tensor.data.ndim == 2:
            packed = gguf.quants.quantize(np.asarray(tensor.data), quantization)
            expected[tensor.name] = gguf.quants.dequantize(packed, quantization)
            writer.add_tensor(tensor.name, packed, raw_dtype=quantization)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_gguf(tmp_path / "q.gguf")
    assert found.types[kind] == sum(values.size for values in expected.values())
    gate = found.network.state_dict()["model.layers.0.mlp.gate_proj.weight"].numpy()
    assert np.array_equal(gate, expected["blk.0.ffn_gate.weight"])


@pytest.mark.parametrize(
    ("drop", "changes", "message"),
    [
        (("blk.0.ffn_up.weight",), {}, "lacks 1 of 11 tensors, first 'blk.0.ffn_up.weight'"),
        (("token_embd.weight",), {}, "lacks the tensor 'token_embd.weight'"),
        ((), {"general.architecture": "mamba"}, "found the GGUF architecture 'mamba', expected one of gemma3"),
        ((), {"llama.block_count": None}, "found no metadata 'llama.block_count'"),
        ((), {"llama.block_count": 2}, "lacks 9 of 20 tensors"),
        ((), {"llama.feed_forward_length": 96}, r"has the shape \(128, 64\), its metadata say \(96, 64\)"),
        ((), {"llama.rope.scaling.type": "yarn"}, "rotary scaling of the type 'yarn'"),
        ((), {"tokenizer.ggml.model": "bert"}, "found a tokenizer of the kind 'bert'"),
        ((), {"tokenizer.ggml.pre": "unheard-of"}, "found the pre-tokenizer 'unheard-of', expected one of gpt-2"),
        ((), {"tokenizer.ggml.merges": None}, "found no metadata 'tokenizer.ggml.merges'"),
        ((), {"tokenizer.ggml.eos_token_id": 5000}, "its eos token is number 5000, but it has 300 tokens"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_named(
    llama: Path, tmp_path: Path, drop: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    file = rewrite(llama, tmp_path / "x.gguf", drop=drop, changes=changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_gguf(file)
    assert str(file) in str(caught.value)


def test_reading_prints_and_warns_nothing(
    llama: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    state = torch.random.get_rng_state()
    load_gguf(llama)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert torch.equal(torch.random.get_rng_state(), state)
