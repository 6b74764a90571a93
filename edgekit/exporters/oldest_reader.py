"""Which onnxruntime is the oldest that reads a graph. The operator set does not tell: most operators here are its own.

Found by opening pico exports in 1.20.1, 1.21.1, 1.22.0, 1.22.1, 1.23.0, 1.23.2, 1.24.1 and 1.26.0, and comparing their
logits with those of 1.32.0. What no rule names was read by 1.20.1, as far as a classifier has it. A file of the format
`ort` holds what the onnxruntime that wrote it (1.32.0) puts on operators; those were opened in 1.23.0 to 1.31.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.target import version_numbers

if TYPE_CHECKING:  # recipes are checked without it
    import onnx_ir as ir

_MICROSOFT = "com.microsoft"
_OLD_ATTENTION_INPUTS = 9


@dataclass(frozen=True)
class Need:
    """What a graph holds that older versions do not read."""

    version: str
    """The oldest onnxruntime that was seen to read it."""
    what: str
    remedy: str
    """What else a person can do than ask for that version."""


MASKED_ATTENTION = Need(
    "1.22.0", "GroupQueryAttention with positions and a mask, as every language model has it", "export gguf"
)
CODED_TABLE = Need(
    "1.23.0",
    "GatherBlockQuantized with `bits`, which reads an embedding table of codes in groups",
    "leave out embeddings_group_size",
)
EIGHT_BITS = Need("1.22.0", "MatMulNBits of 8 bits", "leave out the group size of 8-bit codes")
TWO_BITS = Need("1.24.1", "MatMulNBits of 2 bits", "use 3 bits or more")
PREPACKED = Need(
    "1.28.0", "MatMulNBits in onnxruntime's own format, which says how its weights are packed", "export onnx"
)

_Rules = tuple[tuple[Need, Callable[["ir.Node"], bool]], ...]

_RULES: _Rules = (
    (
        MASKED_ATTENTION,
        lambda node: node.op_type == "GroupQueryAttention" and len(node.inputs) > _OLD_ATTENTION_INPUTS,
    ),
    (CODED_TABLE, lambda node: node.op_type == "GatherBlockQuantized" and "bits" in node.attributes),
    (EIGHT_BITS, lambda node: node.op_type == "MatMulNBits" and _integer(node, "bits") == 8),
    (TWO_BITS, lambda node: node.op_type == "MatMulNBits" and _integer(node, "bits") == 2),
)
_ORT_RULES: _Rules = ((PREPACKED, lambda node: node.op_type == "MatMulNBits"),)


def oldest_reader(graph: ir.Graph, *, in_own_format: bool = False) -> Need | None:
    """Returns what in `graph` asks for the newest onnxruntime; None where nothing asks for more than 1.20.1.

    Args:
        graph: what is exported.
        in_own_format: True where a file of the format `ort` is made of it.
    """
    own = [node for node in graph if node.domain == _MICROSOFT]
    rules = _RULES + _ORT_RULES if in_own_format else _RULES
    found = [need for need, holds in rules if any(map(holds, own))]
    return max(found, key=lambda need: version_numbers(need.version), default=None)


def _integer(node: ir.Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.as_int()
