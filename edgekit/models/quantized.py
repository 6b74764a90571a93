"""The torch modules that compute on integer codes what the deployed kernels compute, and how a model gets them.

It knows how codes are kept in a module, saved and multiplied; what a code means is in `codes.py`, which codes stand for
a weight is decided in `quantization/`, and how a file format stores them in `exporters/`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import ModelError, UnsupportedError
from edgekit.models.activation_rounding import multiply_exactly, quantize_dynamically, round_blocks
from edgekit.models.codes import Activations, QuantizedTensor, Scheme, pack, packed_width, unpack
from edgekit.spelling import did_you_mean

# `codes.py` is where these live; whoever handles modules finds them here too.
__all__ = ["Activations", "QuantizedEmbedding", "QuantizedLinear", "QuantizedModule", "QuantizedTensor", "Scheme"]

QUANTIZATION_FILE = "quantization.json"
FORMAT = 2

# Decoded weights are kept only where this many times their size is free.
_ROOM_FACTOR = 4


class QuantizedModule(nn.Module):
    """A module with a weight matrix of codes, kept in plain buffers, packed as `codes.py` says.

    In evaluation mode, what the codes stand for is decoded once and kept, where memory allows.
    """

    weight_codes: Tensor
    weight_scales: Tensor
    weight_zero_points: Tensor | None

    def __init__(self, rows: int, columns: int, scheme: Scheme) -> None:
        """Makes room for `(rows, columns)` codes; `set_weight` or `load_state_dict` fills it."""
        super().__init__()
        self.scheme = scheme
        self._columns = columns
        self._decoded: tuple[list[tuple[Tensor, int]], Tensor] | None = None
        groups = scheme.groups(columns)
        dtype = scheme.code_dtype if scheme.bits == 8 else torch.uint8
        zeros = None if scheme.symmetric else torch.zeros(rows, packed_width(groups, scheme.bits), dtype=torch.uint8)
        self.register_buffer("weight_codes", torch.zeros(rows, packed_width(columns, scheme.bits), dtype=dtype))
        self.register_buffer("weight_scales", torch.ones(rows, groups, dtype=torch.float16))
        self.register_buffer("weight_zero_points", zeros)

    def set_weight(self, weight: QuantizedTensor) -> None:
        """Takes the codes of `weight`, whose scheme and shape must be this module's."""
        bits = self.scheme.bits
        unsigned = weight.codes.to(torch.int16) + self.scheme.middle
        self.weight_codes = weight.codes if bits == 8 else pack(unsigned, bits)
        self.weight_scales = weight.scales
        self.weight_zero_points = None if weight.zero_points is None else pack(weight.zero_points, bits)

    def share_weight(self, other: QuantizedModule) -> None:
        """Uses the buffers of `other`, so that a tied table and head are stored once."""
        self.weight_codes = other.weight_codes
        self.weight_scales = other.weight_scales
        self.weight_zero_points = other.weight_zero_points

    def quantized_weight(self) -> QuantizedTensor:
        """Returns the weight as codes, `(rows, columns)`."""
        return self._decode(self.weight_codes, self.weight_scales, self.weight_zero_points)

    def train(self, mode: bool = True) -> QuantizedModule:
        """Sets the mode; training mode forgets decoded weights."""
        self._decoded = None
        super().train(mode)
        return self

    def _decode(self, packed: Tensor, scales: Tensor, zeros: Tensor | None) -> QuantizedTensor:
        """Returns the codes of some rows `(rows, ...)` of the buffers."""
        scheme = self.scheme
        codes = packed
        if scheme.bits != 8:
            codes = unpack(packed, self._columns, scheme.bits)
            if scheme.symmetric:
                codes = codes.to(torch.int8) - scheme.middle
        if zeros is not None:
            zeros = unpack(zeros, scales.shape[-1], scheme.bits)
        # `model.float()` widens the scales; they are float16 values still.
        return QuantizedTensor(codes, scales.to(torch.float16), zeros, scheme)

    def _once(self, decode: Callable[[], Tensor]) -> Tensor:
        """Returns `decode()`, kept from the last time where the buffers are still those of then."""
        buffers = [self.weight_codes, self.weight_scales]
        buffers += [] if self.weight_zero_points is None else [self.weight_zero_points]
        if self.training or any(buffer.is_inference() for buffer in buffers):  # those count no versions
            return decode()
        versions = [(buffer, buffer._version) for buffer in buffers]
        if self._decoded is not None and _same(self._decoded[0], versions):
            return self._decoded[1]
        decoded = decode()
        self._decoded = (versions, decoded) if _has_room(decoded) else None
        return decoded


class QuantizedLinear(QuantizedModule):
    """A linear layer on codes: `(..., in) -> (..., out)`, numerically what the deployed kernel computes."""

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool, scheme: Scheme) -> None:
        """Makes an empty layer; `set_weight` or `load_state_dict` fills it."""
        super().__init__(out_features, in_features, scheme)
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @property
    def weight(self) -> QuantizedTensor:
        """The codes, `(out, in)`."""
        return self.quantized_weight()

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns `inputs @ weight.T + bias` with the rounding that the scheme's kernel does."""
        if self.scheme.activations == "float":
            weight = self._once(lambda: self.weight.dequantize())
            return F.linear(inputs, weight.to(inputs.dtype), self.bias)
        if self.scheme.group_size is not None:
            rounded = round_blocks(inputs.float(), self.scheme.group_size)
            weight = self._once(lambda: self.weight.dequantize())
            return F.linear(rounded, weight, self.bias).to(inputs.dtype)
        codes, scale, zero_point = quantize_dynamically(inputs.float())
        total = multiply_exactly(codes - zero_point, self._once(lambda: self.weight.centered()))
        outputs = total * (scale * self.weight_scales.float()[:, 0])
        return (outputs if self.bias is None else outputs + self.bias).to(inputs.dtype)

    def extra_repr(self) -> str:
        """Describes the layer for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, scheme={self.scheme}"


class QuantizedEmbedding(QuantizedModule):
    """An embedding table on codes: `(...) int64 -> (..., embedding_dim) float32`."""

    embed_scale: Tensor | None

    def __init__(self, num_embeddings: int, embedding_dim: int, *, padding_idx: int | None, scheme: Scheme) -> None:
        """Makes an empty table; `set_weight` or `load_state_dict` fills it."""
        super().__init__(num_embeddings, embedding_dim, scheme)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        # What some models multiply their embeddings by (Gemma); it is no weight.
        self.register_buffer("embed_scale", None, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The table as float32, `(num_embeddings, embedding_dim)`, for models that use it whole."""
        return self.quantized_weight().dequantize()

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the rows of `ids`; only they are decoded."""
        flat = ids.reshape(-1)
        zeros = None if self.weight_zero_points is None else self.weight_zero_points[flat]
        rows = self._decode(self.weight_codes[flat], self.weight_scales[flat], zeros).dequantize()
        rows = rows if self.embed_scale is None else rows * self.embed_scale
        return rows.reshape(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """Describes the table for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.scheme}"


def schemes_of(model: nn.Module) -> dict[str, Scheme]:
    """Returns module name to scheme for every quantized module of `model`."""
    return {name: module.scheme for name, module in model.named_modules() if isinstance(module, QuantizedModule)}


def install(model: nn.Module, modules: dict[str, Scheme]) -> None:
    """Replaces the named linears and embeddings by empty quantized ones, to be filled by `load_state_dict`.

    Modules that share one weight in `model` (a tied table and head) share their codes where they are coded alike.

    Raises:
        ModelError: `model` has no such module, or it is neither a linear nor an embedding.
    """
    present = dict(model.named_modules())
    for name in modules:
        if name not in present:
            raise ModelError(
                f"{QUANTIZATION_FILE}: names the module '{name}', which the model does not have."
                f"{did_you_mean(name, present)} The files are of different models."
            )
    sources = shared_sources(model, modules)
    made: dict[str, QuantizedModule] = {}
    for name, scheme in sorted(modules.items(), key=lambda item: item[0] in sources):
        made[name] = empty_like(present[name], scheme, name)
        if name in sources:
            made[name].share_weight(made[sources[name]])
        replace_module(model, present[name], made[name])


def shared_sources(model: nn.Module, modules: dict[str, Scheme]) -> dict[str, str]:
    """Returns module name to the name of the earlier one whose weight and way of coding it shares.

    Only those of `modules` are looked at that are still float: codes of others are shared already, or never.
    """
    present = dict(model.named_modules())
    floats = [name for name in modules if not isinstance(present[name], QuantizedModule)]
    owners: dict[int, str] = {}
    sources: dict[str, str] = {}
    for name in sorted(floats, key=lambda name: not isinstance(present[name], nn.Embedding)):
        owner = owners.setdefault(id(getattr(present[name], "weight", name)), name)
        if owner != name and modules[owner].same_codes(modules[name]):
            sources[name] = owner
    return sources


def weight_matrix(module: nn.Module) -> Tensor:
    """Returns the weight of a float linear or embedding as `(out, in)`; transformers' `Conv1D` keeps it transposed."""
    weight = module.get_parameter("weight").detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def empty_like(module: nn.Module, scheme: Scheme, name: str) -> QuantizedModule:
    """Returns an empty quantized module of the shape of `module`; `name` is for the message.

    Raises:
        ModelError: `module` is neither a linear nor an embedding.
    """
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        rows, columns = weight_matrix(module).shape
        return QuantizedLinear(columns, rows, bias=module.bias is not None, scheme=scheme)
    if isinstance(module, nn.Embedding) and is_plain_lookup(module):
        table = QuantizedEmbedding(
            module.num_embeddings, module.embedding_dim, padding_idx=module.padding_idx, scheme=scheme
        )
        scale = getattr(module, "embed_scale", None)
        table.embed_scale = None if scale is None else torch.as_tensor(scale)
        return table
    raise ModelError(f"module '{name}': found {type(module).__name__}, expected a Linear or an Embedding.")


def is_plain_lookup(table: nn.Embedding) -> bool:
    """Returns whether `table` looks rows up and at most multiplies them; some classes count positions first."""
    return type(table).forward is nn.Embedding.forward or hasattr(table, "embed_scale")


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `model` holds `old`, in the same training mode."""
    new.train(old.training)
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if child is old:
                setattr(parent, key, new)


def write_quantization(directory: Path, modules: dict[str, Scheme]) -> None:
    """Writes `quantization.json`, or nothing when no module is quantized."""
    if modules:
        content = {"format": FORMAT, "modules": {name: asdict(modules[name]) for name in sorted(modules)}}
        (directory / QUANTIZATION_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_quantization(directory: Path) -> dict[str, Scheme]:
    """Returns module name to scheme; empty when `directory` holds no `quantization.json`.

    Raises:
        ModelError: the file is unreadable or of another format.
    """
    path = directory / QUANTIZATION_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ModelError(f"{path}: found format {content['format']}, this edgekit reads format {FORMAT}.")
        return {str(name): Scheme(**scheme) for name, scheme in content["modules"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, UnsupportedError) as error:
        raise ModelError(f"{path}: is not a description of quantized modules ({error}).") from error


def _same(left: list[tuple[Tensor, int]], right: list[tuple[Tensor, int]]) -> bool:
    """Returns whether both name the very same tensors, unchanged in between."""
    return len(left) == len(right) and all(
        one is other and version == now for (one, version), (other, now) in zip(left, right, strict=True)
    )


def _has_room(decoded: Tensor) -> bool:
    """Returns whether a decoded weight may be kept; where the free memory is not told, it may."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return True
    return decoded.is_cuda or free > _ROOM_FACTOR * decoded.numel() * decoded.element_size()
