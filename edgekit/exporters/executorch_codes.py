"""Reads the weights back from a .pte file and compares them with the codes, and sees who multiplies with them.

    linear    a FullyConnected of an XNNPACK graph in the file, whose filter is the codes and whose input is rounded
    table     a constant of the file, and its scales another

Weights in a file have no names: a module's is found by its bytes. Constants of XNNPACK graphs lie in the file once,
called after their hashes, whichever graph reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import ModelError, UnsupportedError
from edgekit.exporters.executorch_needs import require_kernel
from edgekit.models.codes import QuantizedTensor, pack
from edgekit.models.quantized import QuantizedLinear, QuantizedModule

BACKEND = "XnnpackBackend"
_ROUNDED_INPUT = "xnn_datatype_qdint8"

# flatc writes floats that are no numbers as C does; Python's reader of JSON wants other names.
_BARE_FLOAT = re.compile(rb"(?<=: )(-?inf|-?nan)\b")
_SPELLED = {b"inf": b"Infinity", b"-inf": b"-Infinity", b"nan": b"NaN", b"-nan": b"NaN"}


@dataclass(frozen=True)
class CodedWeight:
    """The weight of a module as the file is to hold it."""

    codes: bytes
    """Row by row, one code a byte; of 4 bits two, plus 8 each, the first in the low half."""
    scales: bytes
    """float32, one a row; bfloat16, one a group."""
    is_linear: bool


@dataclass(frozen=True)
class PteWeights:
    """The weights that a .pte file holds."""

    products: set[tuple[bytes, bytes]]
    """Codes and scales of each linear that XNNPACK computes on codes and a rounded input."""
    constants: list[bytes]
    """What other operators read; some end with a few bytes of padding."""

    def holds(self, content: bytes) -> bool:
        """Returns whether a constant is `content`."""
        return any(constant.startswith(content) for constant in self.constants)


def coded_weights(network: nn.Module) -> dict[str, CodedWeight]:
    """Returns module name to the weight of each linear and table on codes.

    Raises:
        UnsupportedError: ExecuTorch has no kernel for a scheme; names the module.
    """
    modules = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedModule)}
    return {name: _coded(name, module) for name, module in modules.items()}


def require_codes(content: bytes, weights: dict[str, CodedWeight]) -> None:
    """Does nothing where a .pte file holds the codes and scales of every weight, those of linears in XNNPACK's hands.

    Raises:
        ModelError: it does not hold them.
        UnsupportedError: it holds those of a linear, but XNNPACK does not multiply with them.
    """
    if not weights:
        return
    found = read_weights(content)
    for name, weight in weights.items():
        is_constant = found.holds(weight.codes) and found.holds(weight.scales)
        if (weight.codes, weight.scales) in found.products if weight.is_linear else is_constant:
            continue
        if is_constant:
            raise UnsupportedError(
                f"executorch: XNNPACK did not take the linear '{name}', which would be slow. Exclude the module from "
                "quantization, or export the model as onnx."
            )
        raise ModelError(f"executorch: the file does not hold the codes of '{name}'. Nothing was exported.")


def read_weights(content: bytes) -> PteWeights:
    """Returns the weights of a .pte file."""
    from executorch.exir._serialize import _deserialize_pte_binary
    from executorch.exir.schema import DataLocation

    file = _deserialize_pte_binary(content)
    program, named = file.program, file.named_data
    shared = {} if named is None else {key: bytes(named.buffers[at.buffer_index]) for key, at in named.pte_data.items()}
    products: set[tuple[bytes, bytes]] = set()
    for plan in program.execution_plan:
        for delegate in plan.delegates:
            if delegate.id == BACKEND and delegate.processed.location == DataLocation.INLINE:
                payload = bytes(program.backend_delegate_data[delegate.processed.index].data)
                products |= set(_products(_read_graph(payload), shared))
    constants = [bytes(buffer.storage) for buffer in program.constant_buffer]
    return PteWeights(products, [*constants, *shared.values()])


def _read_graph(payload: bytes) -> Any:
    """Returns an XNNPACK graph as its schema's JSON: the payload is a header, the graph, and constants of its own."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    graph = payload[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size]
    with TemporaryDirectory() as scratch:
        schema, binary = Path(scratch) / "schema.fbs", Path(scratch) / "graph.bin"
        schema.write_bytes(_get_schema_bytes())
        binary.write_bytes(graph)
        _flatc_decompile(scratch, str(schema), str(binary))
        written = binary.with_suffix(".json").read_bytes()
    return json.loads(_BARE_FLOAT.sub(lambda match: _SPELLED[match[1]], written))


def _products(graph: Any, shared: dict[str, bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yields codes and scales of each linear of a graph that rounds its input."""
    values = [value["xvalue_union"] for value in graph["xvalues"]]
    keys = [constant.get("named_key") for constant in graph["constant_data"]]
    for node in graph["xnodes"]:
        if node["xnode_union_type"] != "XNNFullyConnected":
            continue
        inputs, weight = (values[node["xnode_union"][key]] for key in ("input1_id", "filter_id"))
        rounds = inputs.get("tensor_value", inputs)["datatype"] == _ROUNDED_INPUT
        if rounds and "quant_params" in weight:
            places = weight["tensor_value"]["constant_buffer_idx"], weight["quant_params"]["scale_buffer_idx"]
            codes, scales = (shared[keys[place]] for place in places)
            yield codes, scales


def _coded(name: str, module: QuantizedModule) -> CodedWeight:
    weight: QuantizedTensor = module.quantized_weight()
    is_linear = isinstance(module, QuantizedLinear)
    try:
        require_kernel(weight.scheme, is_table=not is_linear)
    except UnsupportedError as error:
        raise UnsupportedError(f"module '{name}': {error}") from error
    size = weight.scheme.group_size
    if size is not None and weight.codes.shape[1] % size:
        raise UnsupportedError(
            f"module '{name}': executorch has no kernel for rows of {weight.codes.shape[1]} codes in groups of {size}, "
            "expected whole groups. Exclude the module from quantization, or use smaller groups."
        )
    if weight.scheme.bits == 4:
        return CodedWeight(_bytes(pack(weight.codes + weight.scheme.middle, 4)), _bytes(_shorten(weight)), is_linear)
    return CodedWeight(_bytes(weight.codes), _bytes(weight.scales.float()), is_linear)


def _shorten(weight: QuantizedTensor) -> Tensor:
    """Returns the scales as the upper halves of float32 numbers, int16; the lower halves of narrow ones are zero."""
    return (weight.scales.float().view(torch.int32) >> 16).to(torch.int16)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().numpy().tobytes())
