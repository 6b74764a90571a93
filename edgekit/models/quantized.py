"""Weights as integer codes, and the torch modules that compute with them what the deployed kernels compute.

It knows how codes are kept, saved and multiplied; which codes stand for a weight is decided in `quantization/`,
and how a file format stores them in `exporters/`.

Layout: a code matrix is `(out, in)`, one scale (and zero point) for each output channel or for each group of
`group_size` neighbours along `in` (the last group is short when `group_size` does not divide `in`).
A weight is `(code - zero_point) * scale`; a symmetric code is signed and has no zero point.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import ModelError, UnsupportedError
from edgekit.spelling import did_you_mean

QUANTIZATION_FILE = "quantization.json"
FORMAT = 1

# A product of two codes is at most 255 * 255, so this many of them add up exactly in float32 (24 bits).
_EXACT_TERMS = 256

Activations = Literal["float", "dynamic-int8"]


@dataclass(frozen=True)
class Scheme:
    """How one weight matrix is coded and with what its kernel multiplies it.

    `activations="dynamic-int8"` rounds the input to 8 bits when it arrives: with one scale and zero point for the
    whole tensor where the weight is coded per channel (ONNX DynamicQuantizeLinear), with one scale for each
    `group_size` neighbours where it is coded group-wise (MatMulNBits at accuracy level 4).

    Raises:
        UnsupportedError: a value that no kernel has.
    """

    bits: int = 8
    """Bits a code: 8 or 4."""
    group_size: int | None = None
    """Input channels that share a scale; None: one scale for each output channel."""
    symmetric: bool = True
    """True: signed codes around zero. False: unsigned codes with a zero point."""
    activations: Activations = "dynamic-int8"
    """What the weight is multiplied with."""
    reduce_range: bool = False
    """Keep neighbouring codes small enough together that x86 processors without VNNI do not saturate."""

    def __post_init__(self) -> None:
        """Refuses values that no kernel has."""
        if self.bits not in (8, 4):
            raise UnsupportedError(f"bits: found {self.bits}, expected 8 or 4.")
        if self.group_size is not None and self.group_size < 1:
            raise UnsupportedError(f"group_size: found {self.group_size}, expected at least 1, or none.")
        if self.activations not in ("float", "dynamic-int8"):
            raise UnsupportedError(f"activations: found '{self.activations}', expected 'float' or 'dynamic-int8'.")
        if self.reduce_range and (self.bits != 8 or not self.symmetric or self.group_size is not None):
            raise UnsupportedError("reduce_range: needs symmetric 8-bit codes with one scale for each output channel.")

    @property
    def code_min(self) -> int:
        """The lowest code in use; -128 and -8 are not, so that the range is symmetric."""
        return -self.code_max if self.symmetric else 0

    @property
    def code_max(self) -> int:
        """The highest code in use."""
        return (1 << (self.bits - self.symmetric)) - 1

    def groups(self, columns: int) -> int:
        """Returns the number of scales in a row of `columns` weights."""
        return 1 if self.group_size is None else -(-columns // self.group_size)


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight matrix as codes: exactly what is deployed."""

    codes: Tensor
    """`(out, in)`, int8 when symmetric and uint8 otherwise, one code a byte whatever the bits."""
    scales: Tensor
    """`(out, groups)`, float16."""
    zero_points: Tensor | None
    """`(out, groups)`, uint8; None when symmetric."""
    scheme: Scheme

    def centered(self) -> Tensor:
        """Returns `code - zero_point` as `(out, in)` float32 integers."""
        codes = self.codes.float()
        return codes if self.zero_points is None else codes - self._spread(self.zero_points.float())

    def dequantize(self) -> Tensor:
        """Returns the weights, `(out, in)` float32; exact, for a code times a float16 fits into 24 bits."""
        return self.centered() * self._spread(self.scales.float())

    def _spread(self, values: Tensor) -> Tensor:
        """Repeats `(out, groups)` so that it broadcasts over `(out, in)`."""
        if self.scheme.group_size is None:
            return values
        return values.repeat_interleave(self.scheme.group_size, dim=1)[:, : self.codes.shape[1]]


class QuantizedModule(nn.Module):
    """A module with a weight matrix of codes, kept in plain buffers (4-bit codes two a byte, the first one low)."""

    weight_codes: Tensor
    weight_scales: Tensor
    weight_zero_points: Tensor | None

    def __init__(self, rows: int, columns: int, scheme: Scheme) -> None:
        """Makes room for `(rows, columns)` codes; `set_weight` or `load_state_dict` fills it."""
        super().__init__()
        self.scheme = scheme
        self._columns = columns
        packed = scheme.bits == 4
        codes = torch.zeros(
            rows, -(-columns // 2) if packed else columns, dtype=torch.uint8 if packed else _code_dtype(scheme)
        )
        scales = torch.ones(rows, scheme.groups(columns), dtype=torch.float16)
        self.register_buffer("weight_codes", codes)
        self.register_buffer("weight_scales", scales)
        self.register_buffer("weight_zero_points", None if scheme.symmetric else scales.to(torch.uint8))

    def set_weight(self, weight: QuantizedTensor) -> None:
        """Takes the codes of `weight`, whose scheme and shape must be this module's."""
        self.weight_codes = _pack(weight.codes) if self.scheme.bits == 4 else weight.codes
        self.weight_scales = weight.scales
        self.weight_zero_points = weight.zero_points

    def quantized_weight(self) -> QuantizedTensor:
        """Returns the weight as codes, `(rows, columns)`."""
        codes = self.weight_codes
        if self.scheme.bits == 4:
            codes = _unpack(codes, self._columns).to(torch.int16)
            codes = (codes - 8 if self.scheme.symmetric else codes).to(_code_dtype(self.scheme))
        # `model.float()` widens the scales; they are float16 values still.
        return QuantizedTensor(codes, self.weight_scales.to(torch.float16), self.weight_zero_points, self.scheme)


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
        weight = self.weight
        if self.scheme.activations == "float":
            return F.linear(inputs, weight.dequantize(), self.bias)
        if self.scheme.group_size is not None:
            rounded = round_blocks(inputs.float(), self.scheme.group_size)
            return F.linear(rounded, weight.dequantize(), self.bias).to(inputs.dtype)
        codes, scale, zero_point = quantize_dynamically(inputs.float())
        total = _multiply_exactly(codes - zero_point, weight.centered())
        outputs = total * (scale * weight.scales.float()[:, 0])
        return (outputs if self.bias is None else outputs + self.bias).to(inputs.dtype)

    def extra_repr(self) -> str:
        """Describes the layer for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, scheme={self.scheme}"


class QuantizedEmbedding(QuantizedModule):
    """An embedding table on codes, one scale a row: `(...) int64 -> (..., embedding_dim) float32`."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, padding_idx: int | None, scheme: Scheme) -> None:
        """Makes an empty table; `set_weight` or `load_state_dict` fills it.

        Raises:
            UnsupportedError: a scheme other than symmetric 8 bits a row.
        """
        if scheme.bits != 8 or scheme.group_size is not None or not scheme.symmetric:
            raise UnsupportedError(f"embedding: found {scheme}, expected symmetric 8-bit codes with one scale a row.")
        super().__init__(num_embeddings, embedding_dim, scheme)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx

    @property
    def weight(self) -> Tensor:
        """The table as float32, `(num_embeddings, embedding_dim)`, for models that use it whole."""
        return self.quantized_weight().dequantize()

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the rows of `ids`."""
        return F.embedding(ids, self.weight_codes).float() * F.embedding(ids, self.weight_scales).float()

    def extra_repr(self) -> str:
        """Describes the table for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.scheme}"


def quantize_dynamically(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns codes (float32 integers, 0 to 255), scale and zero point, as ONNX DynamicQuantizeLinear defines them.

    The range covers the whole tensor and zero, so every row of a batch shares it, padding included.
    """
    low, high = inputs.amin().clamp(max=0), inputs.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round((-low / scale).clamp(0, 255))
    codes = (torch.round(inputs / scale) + zero_point).clamp(0, 255)
    return codes, scale, zero_point


def round_blocks(inputs: Tensor, block_size: int) -> Tensor:
    """Returns `inputs` rounded to 8 bits, one scale for each `block_size` neighbours: `code * (absmax / 127)`."""
    columns = inputs.shape[-1]
    blocks = F.pad(inputs, (0, -columns % block_size)).unflatten(-1, (-1, block_size))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    rounded: Tensor = (torch.round(blocks * inverse) * scale).flatten(-2)[..., :columns]
    return rounded


def schemes_of(model: nn.Module) -> dict[str, Scheme]:
    """Returns module name to scheme for every quantized module of `model`."""
    return {name: module.scheme for name, module in model.named_modules() if isinstance(module, QuantizedModule)}


def install(model: nn.Module, modules: dict[str, Scheme]) -> None:
    """Replaces the named linears and embeddings by empty quantized ones, to be filled by `load_state_dict`.

    Raises:
        ModelError: `model` has no such module, or it is neither a linear nor an embedding.
    """
    present = dict(model.named_modules())
    for name, scheme in modules.items():
        if name not in present:
            raise ModelError(
                f"{QUANTIZATION_FILE}: names the module '{name}', which the model does not have."
                f"{did_you_mean(name, present)} The files are of different models."
            )
        replace_module(model, present[name], empty_like(present[name], scheme, name))


def empty_like(module: nn.Module, scheme: Scheme, name: str) -> QuantizedModule:
    """Returns an empty quantized module of the shape of `module`; `name` is for the message.

    Raises:
        ModelError: `module` is neither a linear nor an embedding.
    """
    if isinstance(module, nn.Linear):
        return QuantizedLinear(module.in_features, module.out_features, bias=module.bias is not None, scheme=scheme)
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(
            module.num_embeddings, module.embedding_dim, padding_idx=module.padding_idx, scheme=scheme
        )
    raise ModelError(f"module '{name}': found {type(module).__name__}, expected a Linear or an Embedding.")


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


def _code_dtype(scheme: Scheme) -> torch.dtype:
    return torch.int8 if scheme.symmetric else torch.uint8


def _pack(codes: Tensor) -> Tensor:
    """Packs 4-bit codes `(out, in)` into `(out, ceil(in / 2))` bytes, the first of each pair in the low half."""
    unsigned = (codes.to(torch.int16) + (8 if codes.dtype == torch.int8 else 0)).to(torch.uint8)
    pairs = F.pad(unsigned, (0, unsigned.shape[1] % 2)).unflatten(1, (-1, 2))
    packed: Tensor = pairs[..., 0] | (pairs[..., 1] << 4)
    return packed


def _unpack(packed: Tensor, columns: int) -> Tensor:
    """Returns the unsigned 4-bit codes `(out, columns)` of `_pack`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :columns]


def _multiply_exactly(codes: Tensor, weights: Tensor) -> Tensor:
    """Returns `codes @ weights.T` for float32 integers of at most 8 bits and a sign, rounded to float32 only once.

    Every partial sum of `_EXACT_TERMS` products is an integer below 2**24: float32 holds it, in any order.
    """
    parts = zip(codes.split(_EXACT_TERMS, dim=-1), weights.split(_EXACT_TERMS, dim=-1), strict=True)
    total = torch.zeros((), dtype=torch.float64, device=codes.device)
    for left, right in parts:
        total = total + F.linear(left, right)
    return total.float()
