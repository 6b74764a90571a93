"""Modules on codes: the arithmetic of the deployed kernels, how codes are kept and saved, and what is refused."""

from __future__ import annotations

import functools
import json
from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F

from edgekit.errors import ModelError, UnsupportedError
from edgekit.models.activation_rounding import multiply_exactly, quantize_dynamically, round_blocks, round_rows
from edgekit.models.codes import pack, unpack
from edgekit.models.quantized import (
    FORMAT,
    QUANTIZATION_FILE,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedTensor,
    Scheme,
    empty_like,
    install,
    read_quantization,
    replace_module,
    schemes_of,
    write_quantization,
)

TABLE = Scheme(activations="float")
SCHEMES = [
    Scheme(bits=bits, group_size=group_size, symmetric=symmetric, activations=activations)
    for bits, group_size, symmetric, activations in product(
        (8, 4, 3, 2), (None, 1, 4), (True, False), ("float", "dynamic-int8")
    )
] + [Scheme(reduce_range=True)]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: str(scheme)[7:-1])


def random_weight(scheme: Scheme, rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    """Codes, scales and zero points over their whole ranges."""
    generator = np.random.default_rng(seed)
    shape = (rows, scheme.groups(columns))
    codes = generator.integers(scheme.code_min, scheme.code_max, size=(rows, columns), endpoint=True)
    zeros = None if scheme.symmetric else generator.integers(0, scheme.code_max, size=shape, endpoint=True)
    return QuantizedTensor(
        codes=torch.from_numpy(codes.astype(np.int8 if scheme.symmetric else np.uint8)),
        scales=torch.from_numpy(generator.uniform(0.001, 0.1, size=shape).astype(np.float16)),
        zero_points=None if zeros is None else torch.from_numpy(zeros.astype(np.uint8)),
        scheme=scheme,
    )


def linear_of(weight: QuantizedTensor, bias: torch.Tensor | None = None) -> QuantizedLinear:
    rows, columns = weight.codes.shape
    module = QuantizedLinear(columns, rows, bias=bias is not None, scheme=weight.scheme)
    module.set_weight(weight)
    if bias is not None:
        module.bias = bias
    return module


def table_of(weight: QuantizedTensor) -> QuantizedEmbedding:
    module = QuantizedEmbedding(*weight.codes.shape, padding_idx=None, scheme=weight.scheme)
    module.set_weight(weight)
    return module


def in_float64(weight: QuantizedTensor) -> np.ndarray:
    """The weights from their definition, group by group: `(out, in)` float64."""
    values = weight.codes.numpy().astype(np.float64)
    size = weight.scheme.group_size or values.shape[1]
    for group in range(weight.scales.shape[1]):
        columns = slice(group * size, (group + 1) * size)
        if weight.zero_points is not None:
            values[:, columns] -= weight.zero_points[:, group : group + 1].numpy()
        values[:, columns] *= weight.scales[:, group : group + 1].numpy().astype(np.float64)
    return values


def assert_same(found: QuantizedTensor, expected: QuantizedTensor) -> None:
    assert found.scheme == expected.scheme
    for name in ("codes", "scales", "zero_points"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None)
        assert left is None or (left.dtype == right.dtype and torch.equal(left, right)), name


# The rounding of activations


def test_dynamic_quantization_as_worked_in_the_onnx_standard():
    # range -3 to 2, so the scale is 5 / 255 and zero is code 3 / (5 / 255) = 153
    codes, scale, zero_point = quantize_dynamically(torch.tensor([0.0, 2.0, -3.0, -2.5, 1.34, 0.5]))
    assert codes.tolist() == [153, 255, 0, 26, 221, 179]
    assert zero_point.item() == 153
    assert scale.item() == pytest.approx(5 / 255, rel=1e-7)


@functools.cache
def operator() -> onnxruntime.InferenceSession:
    """Returns onnxruntime's own DynamicQuantizeLinear of `(rows, columns)`."""
    outputs = [("y", TensorProto.UINT8, ["rows", "columns"]), ("scale", TensorProto.FLOAT, [])]
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero_point"])],
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "columns"])],
        [helper.make_tensor_value_info(*output) for output in [*outputs, ("zero_point", TensorProto.UINT8, [])]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def assert_as_onnxruntime(inputs: np.ndarray) -> None:
    codes, scale, zero_point = operator().run(None, {"x": inputs})
    found = quantize_dynamically(torch.from_numpy(inputs))
    assert found[1].numpy() == scale
    assert found[2].numpy() == zero_point
    np.testing.assert_array_equal(found[0].numpy(), codes)


NORMAL = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float32)
EDGES = {
    "all zero": NORMAL * 0,
    "all positive": abs(NORMAL) + 1,
    "all negative": -abs(NORMAL) - 1,
    "constant": np.full((3, 5), 0.7, dtype=np.float32),
    "constant negative": np.full((3, 5), -0.7, dtype=np.float32),
    "one value": np.array([[-2.5]], dtype=np.float32),
    "halves": np.arange(-127.5, 128, dtype=np.float32)[None],
    "an outlier": np.append(NORMAL, np.full((1, 33), 1e4, dtype=np.float32), axis=0),
    "huge": NORMAL * np.float32(1e30),
    "tiny": NORMAL * np.float32(1e-30),
}


@pytest.mark.parametrize("name", EDGES)
def test_dynamic_quantization_is_onnxruntimes_at_the_edges(name):
    assert_as_onnxruntime(EDGES[name])


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.float32, (4, 9), elements=st.floats(-1000, 1000, width=32, allow_subnormal=False)))
def test_dynamic_quantization_is_onnxruntimes_everywhere(inputs):
    assert_as_onnxruntime(inputs)


def test_blocks_by_hand():
    # absmax 127 gives steps of 1, absmax 2.54 steps of 0.02, and a block of zeros stays zero
    inputs = torch.tensor([[127.0, 63.6, -0.4, 2.54, -1.013, 0.0, 0.0, 0.0, 0.0, -254.0]])
    expected = torch.tensor([[127.0, 64.0, 0.0, 2.54, -1.02, 0.0, 0.0, 0.0, 0.0, -254.0]])
    torch.testing.assert_close(round_blocks(inputs, 3), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 40), block=st.integers(1, 17))
def test_no_activation_is_further_than_half_a_step_of_its_block(seed, columns, block):
    inputs = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, columns))).float()
    errors = (round_blocks(inputs, block) - inputs).abs()
    assert errors.shape == inputs.shape
    for start in range(0, columns, block):
        step = inputs[:, start : start + block].abs().amax(dim=1, keepdim=True) / 127
        assert (errors[:, start : start + block] <= step * 0.501).all()


def test_rows_are_rounded_by_hand():
    """0 to 255 in steps of 1; -5.1 to 0 in steps of 0.02: each row has a scale and a zero point of its own."""
    inputs = torch.tensor([[0.0, 3.4, 255.0], [-5.1, -0.031, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 3.0, 255.0], [-5.1, -0.04, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(round_rows(inputs), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_a_row_is_rounded_alone_and_by_half_a_step_at_most(seed, columns):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(3, columns)) * 10 ** generator.uniform(-3, 3, size=(3, 1))
    found = round_rows(torch.from_numpy(inputs).float()).double().numpy()
    steps = (np.maximum(inputs.max(1), 0) - np.minimum(inputs.min(1), 0)) / 255
    assert (np.abs(found - inputs).max(1) <= steps * (1 + 1e-3)).all()  # the zero point is rounded as well
    alone = round_rows(torch.from_numpy(inputs[1:2]).float())
    np.testing.assert_array_equal(alone.double().numpy()[0], found[1])


# How codes are kept


@pytest.mark.parametrize(
    ("codes", "packed"),
    [
        (torch.tensor([[1, -2, 7], [-7, 0, -8]], dtype=torch.int8), [[0x69, 0x0F], [0x81, 0x00]]),
        (torch.tensor([[1, -2]], dtype=torch.int8), [[0x69]]),
        (torch.tensor([[1, 2, 15], [0, 9, 3]], dtype=torch.uint8), [[0x21, 0x0F], [0x90, 0x03]]),
        (torch.tensor([[15]], dtype=torch.uint8), [[0x0F]]),
    ],
)
def test_four_bits_two_a_byte_by_hand(codes, packed):
    unsigned = codes.to(torch.int16) + (8 if codes.dtype == torch.int8 else 0)
    found = pack(unsigned, 4)
    assert found.dtype == torch.uint8
    assert found.tolist() == packed
    assert unpack(found, codes.shape[1], 4).tolist() == unsigned.tolist()


@every_scheme
@settings(max_examples=6, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 37), seed=st.integers(0, 10_000))
def test_codes_come_back_from_a_saved_module(scheme, rows, columns, seed):
    weight = random_weight(scheme, rows, columns, seed)
    saved = linear_of(weight).state_dict()
    loaded = QuantizedLinear(columns, rows, bias=False, scheme=scheme)
    loaded.load_state_dict(saved)
    assert_same(loaded.weight, weight)
    assert saved["weight_codes"].shape == (rows, -(-columns * scheme.bits // 8))
    assert saved["weight_codes"].element_size() == 1


@every_scheme
def test_scales_survive_a_change_of_precision(scheme):
    weight = random_weight(scheme, 4, 21)
    for convert in (nn.Module.half, nn.Module.float, nn.Module.double):
        module = convert(linear_of(weight, torch.zeros(4)))
        assert_same(module.weight, weight)
    assert_same(linear_of(weight).half().float().weight, weight)


def test_dequantized_by_hand():
    # groups of two of three columns: the last group is short
    scheme = Scheme(bits=4, group_size=2, symmetric=False)
    weight = QuantizedTensor(
        codes=torch.tensor([[0, 15, 3], [8, 9, 0]], dtype=torch.uint8),
        scales=torch.tensor([[0.5, 2.0], [0.25, 1.0]], dtype=torch.float16),
        zero_points=torch.tensor([[8, 1], [8, 15]], dtype=torch.uint8),
        scheme=scheme,
    )
    assert weight.centered().tolist() == [[-8, 7, 2], [0, 1, -15]]
    assert weight.dequantize().tolist() == [[-4.0, 3.5, 4.0], [0.0, 0.25, -15.0]]


@every_scheme
@settings(max_examples=10, deadline=None)
@given(columns=st.integers(1, 37), seed=st.integers(0, 10_000))
def test_dequantized_weights_are_exact(scheme, columns, seed):
    weight = random_weight(scheme, 3, columns, seed)
    np.testing.assert_array_equal(weight.dequantize().numpy(), in_float64(weight))


# Products


def assert_exact(codes: np.ndarray, weights: np.ndarray) -> None:
    found = multiply_exactly(torch.from_numpy(codes).float(), torch.from_numpy(weights).float())
    np.testing.assert_array_equal(found.numpy(), (codes @ weights.T).astype(np.float32))


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 1536, 1537, 4096])
@pytest.mark.parametrize("kind", ["highest", "opposite", "any"])
def test_wide_products_are_exact(kind, columns):
    generator = np.random.default_rng(columns)
    codes, weights = np.full((2, columns), 255), np.full((3, columns), 255)
    if kind == "opposite":  # the largest partial sums, cancelling to a small total
        weights[:, ::2] *= -1
    if kind == "any":
        codes, weights = generator.integers(-255, 256, (2, columns)), generator.integers(-255, 256, (3, columns))
    assert_exact(codes, weights)


@pytest.mark.parametrize("columns", [1536, 4096])
def test_a_total_above_what_float32_counts_is_rounded_once(columns):
    generator = np.random.default_rng(columns)
    assert_exact(generator.integers(200, 256, (2, columns)), generator.integers(200, 256, (3, columns)))


def reference_linear(inputs: np.ndarray, weight: QuantizedTensor, bias: np.ndarray) -> np.ndarray:
    """The scheme's kernel in float64; activations are rounded by onnxruntime or as MatMulNBits defines it."""
    scheme, values = weight.scheme, inputs.astype(np.float64)
    if scheme.activations == "dynamic-int8" and scheme.group_size is None:
        codes, scale, zero_point = operator().run(None, {"x": inputs})
        values = (codes.astype(np.float64) - zero_point) * np.float64(scale)
    elif scheme.activations == "dynamic-int8":
        for start in range(0, values.shape[1], scheme.group_size):
            block = values[:, start : start + scheme.group_size]
            step = abs(block).max(axis=1, keepdims=True) / 127
            block[:] = np.rint(block / step) * step
    return values @ in_float64(weight).T + bias


@every_scheme
@pytest.mark.parametrize("columns", [32, 21], ids=["whole groups", "a short last group"])
def test_a_linear_computes_what_its_kernel_does(scheme, columns):
    generator = np.random.default_rng(3)
    inputs = generator.normal(size=(6, columns)).astype(np.float32)
    bias = generator.normal(size=5).astype(np.float32)
    module = linear_of(random_weight(scheme, 5, columns), torch.from_numpy(bias))
    expected = reference_linear(inputs, module.weight, bias)
    np.testing.assert_allclose(module(torch.from_numpy(inputs)).numpy(), expected, rtol=1e-5, atol=1e-5)
    folded = module(torch.from_numpy(inputs.reshape(2, 3, columns)))
    np.testing.assert_allclose(folded.numpy().reshape(6, 5), expected, rtol=1e-5, atol=1e-5)


def test_a_linear_by_hand():
    # input range 0 to 255: scale 1, zero point 0, so codes are the rounded inputs 255, 1 and 2
    module = linear_of(
        QuantizedTensor(
            torch.tensor([[1, 2, -3], [127, 0, 1]], dtype=torch.int8),
            torch.tensor([[0.5], [2.0]]).half(),
            None,
            Scheme(),
        ),
        bias=torch.tensor([1.0, 0.0]),
    )
    assert module(torch.tensor([[255.0, 1.4, 1.6]])).tolist() == [[(255 + 2 - 6) * 0.5 + 1, (127 * 255 + 2) * 2.0]]


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(reduce_range=True)], ids=["full range", "reduced"])
@pytest.mark.parametrize("convert", [nn.Module.float, nn.Module.half], ids=["float", "half"])
def test_a_table_looks_up_its_dequantized_rows(scheme, convert):
    weight = random_weight(scheme, 11, 6)
    module = convert(table_of(weight))
    ids = torch.tensor([[0, 10, 3], [3, 3, 7]])
    expected = F.embedding(ids, torch.from_numpy(in_float64(weight)).float())
    assert torch.equal(module(ids), expected)
    assert torch.equal(module.weight[ids], expected)


@pytest.mark.parametrize("changes", [{"bits": 4}, {"bits": 3, "group_size": 4, "symmetric": False}], ids=str)
def test_a_table_of_other_codes_looks_up_its_dequantized_rows(changes):
    weight = random_weight(Scheme(**changes), 11, 6)
    module = table_of(weight)
    ids = torch.tensor([[0, 10, 3], [3, 3, 7]])
    assert torch.equal(module(ids), F.embedding(ids, torch.from_numpy(in_float64(weight)).float()))


# Schemes


@pytest.mark.parametrize(
    ("scheme", "low", "high"),
    [
        (Scheme(bits=8), -127, 127),
        (Scheme(bits=8, symmetric=False), 0, 255),
        (Scheme(bits=4), -8, 7),
        (Scheme(bits=4, symmetric=False), 0, 15),
    ],
)
def test_codes_in_use(scheme, low, high):
    assert (scheme.code_min, scheme.code_max) == (low, high)


def test_the_number_of_groups_counts_a_short_one():
    assert [Scheme(group_size=32).groups(columns) for columns in (1, 32, 33, 64)] == [1, 1, 2, 2]
    assert Scheme().groups(1000) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 5}, "bits: found 5, expected 8, 4, 3 or 2"),
        ({"group_size": 0}, "group_size: found 0, expected at least 1"),
        ({"activations": "int4"}, "activations: found 'int4', expected 'float' or 'dynamic-int8'"),
        ({"reduce_range": True, "bits": 4}, "reduce_range: needs symmetric 8-bit codes"),
        ({"reduce_range": True, "symmetric": False}, "reduce_range: needs symmetric 8-bit codes"),
        ({"reduce_range": True, "group_size": 32}, "reduce_range: needs symmetric 8-bit codes"),
        ({"narrow_scales": True, "bits": 8, "group_size": 32}, "narrow_scales: needs symmetric 4-bit codes in groups"),
        ({"narrow_scales": True, "bits": 4}, "narrow_scales: needs symmetric 4-bit codes in groups"),
    ],
)
def test_a_scheme_without_a_kernel_is_refused(values, message):
    with pytest.raises(UnsupportedError, match=message):
        Scheme(**values)


# Whole models


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 8, padding_idx=0)
        self.hidden = nn.Linear(8, 8, bias=False)
        self.decoder = nn.Sequential(nn.Linear(8, 3))
        self.shared = nn.ModuleDict({"again": self.hidden})

    def forward(self, ids):
        return self.decoder(self.hidden(self.words(ids)))


CHOSEN = {"words": TABLE, "hidden": Scheme(group_size=4), "decoder.0": Scheme()}


def test_installed_modules_have_the_shapes_the_mode_and_the_names_of_what_they_replace():
    network = Network().eval()
    install(network, CHOSEN)
    assert schemes_of(network) == CHOSEN
    assert network.shared["again"] is network.hidden
    assert not network.hidden.training
    assert (network.words.num_embeddings, network.words.embedding_dim, network.words.padding_idx) == (12, 8, 0)
    assert (network.hidden.bias, network.decoder[0].bias.shape) == (None, (3,))
    assert network(torch.tensor([[1, 2]])).shape == (1, 2, 3)


def test_a_replaced_module_keeps_training():
    network = Network().train()
    replace_module(network, network.hidden, empty_like(network.hidden, Scheme(), "hidden"))
    assert network.hidden.training


def test_a_module_that_the_model_lacks_is_named_with_its_nearest():
    with pytest.raises(ModelError, match=r"'decoder.O', which the model does not have. Did you mean 'decoder.0'\?"):
        install(Network(), {"decoder.O": Scheme()})


def test_a_module_without_a_weight_matrix_is_refused():
    with pytest.raises(ModelError, match="module 'decoder': found Sequential, expected a Linear or an Embedding"):
        install(Network(), {"decoder": Scheme()})


# The file


def test_schemes_come_back_from_their_file(tmp_path):
    modules = {f"layer.{index}": scheme for index, scheme in enumerate(SCHEMES)}
    write_quantization(tmp_path, modules)
    assert read_quantization(tmp_path) == modules


def test_a_float_model_has_no_file(tmp_path):
    write_quantization(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
    assert read_quantization(tmp_path) == {}


def test_another_format_is_refused(tmp_path):
    (tmp_path / QUANTIZATION_FILE).write_text(json.dumps({"format": FORMAT + 1, "modules": {}}))
    with pytest.raises(ModelError, match=f"found format {FORMAT + 1}, this edgekit reads format {FORMAT}"):
        read_quantization(tmp_path)


GARBAGE = {
    "not text": b"\xff\xfe\x00",
    "not JSON": b"{",
    "a list": b"[]",
    "no format": b"{}",
    "no modules": b'{"format": 2}',
    "modules in a list": b'{"format": 2, "modules": ["a"]}',
    "a scheme that is a number": b'{"format": 2, "modules": {"a": 8}}',
    "an unknown setting": b'{"format": 2, "modules": {"a": {"bit": 8}}}',
    "no such kernel": b'{"format": 2, "modules": {"a": {"bits": 5}}}',
    "a size in words": b'{"format": 2, "modules": {"a": {"group_size": "32"}}}',
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_with_the_files_name(tmp_path, name):
    (tmp_path / QUANTIZATION_FILE).write_bytes(GARBAGE[name])
    with pytest.raises(ModelError, match=rf"{QUANTIZATION_FILE}: is not a description of quantized modules \("):
        read_quantization(tmp_path)
