"""Layers that a student imitates: which ones, what is watched in them, and the losses between two models' layers.

The same for every task. It knows neither batches nor files; positions that count and documents are given as tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgekit.distillation.config import DistillConfig, LayerPair, Precision
from edgekit.distillation.losses import attention_relation_loss, decoder_pairs, hidden_state_loss
from edgekit.distillation.precision import autocast
from edgekit.distillation.projections import PARTS, find_projections, watched
from edgekit.distillation.randomness import derived_seed, preserved_random_states
from edgekit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.generic import ModelOutput

_PROJECTIONS = 3  # keeps the projections' random numbers apart from those of order and dropout
# Relations between pairs of positions that are in memory at once where sequences are packed: 64 MiB a tensor.
_RELATIONS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class View:
    """What to watch in a model."""

    layers: tuple[int, ...] = ()
    """Layers whose outputs are kept."""
    relation_layer: int | None = None
    """Layer whose queries, keys and values are kept."""


@dataclass(frozen=True)
class LayerOutputs:
    """What was watched during a forward pass."""

    hidden_states: dict[int, Tensor] = field(default_factory=dict)
    """Layer to its output, (B, T, H); of the last layer after the model's final norm, where it has one."""
    projections: dict[str, Tensor] = field(default_factory=dict)
    """`query`, `key` and `value` of the relation layer, each (B, T, its size)."""

    @property
    def length(self) -> int:
        """T of the pass."""
        return next(iter([*self.hidden_states.values(), *self.projections.values()])).shape[1]


def run_watched(
    model: PreTrainedModel, part: nn.Module, inputs: dict[str, Tensor | bool], view: View, precision: Precision
) -> tuple[ModelOutput, LayerOutputs]:
    """Runs `part`, which is `model` or the model inside it, and returns its outputs and what `view` asks for.

    Raises:
        UnsupportedError: a layer's output is not as wide as the configuration says.
    """
    projections: dict[str, Tensor] = {}
    # hidden_states[0] is the embeddings' output
    asked = {"output_hidden_states": [layer + 1 for layer in view.layers]} if view.layers else {}
    with ExitStack() as stack:
        if view.relation_layer is not None:
            projections = stack.enter_context(watched(find_projections(model, view.relation_layer)))
        stack.enter_context(autocast(precision, model.device))
        outputs: ModelOutput = part(**inputs, **asked)
    hidden_states = {layer: outputs["hidden_states"][layer + 1] for layer in view.layers}
    for layer, states in hidden_states.items():
        if states.shape[-1] != model.config.hidden_size:  # OPT-350m projects what its last layer gives
            raise UnsupportedError(
                f"model type '{model.config.model_type}': found {states.shape[-1]} channels after layer {layer}, "
                f"expected {model.config.hidden_size}, its hidden size. Leave this layer out of layer_map."
            )
    return outputs, LayerOutputs(hidden_states, projections)


@dataclass(frozen=True)
class Matching:
    """Which layers imitate which, and how much that weighs."""

    hidden_state_weight: float = 0.0
    attention_relation_weight: float = 0.0
    layer_map: tuple[tuple[int, int], ...] = ()
    """Pairs (student layer, teacher layer) whose hidden states are matched."""
    relation_layers: tuple[int, int] = (0, 0)
    """(student layer, teacher layer) whose relations are matched."""
    relation_heads: int = 1

    @property
    def needs_teacher(self) -> bool:
        """True when the teacher runs beside the student."""
        return self.hidden_state_weight > 0 or self.attention_relation_weight > 0

    @property
    def student_view(self) -> View:
        """What to watch in the student."""
        return self._view(0)

    @property
    def teacher_view(self) -> View:
        """What to watch in the teacher."""
        return self._view(1)

    def _view(self, side: int) -> View:
        layers = tuple(pair[side] for pair in self.layer_map) if self.hidden_state_weight > 0 else ()
        return View(layers, self.relation_layers[side] if self.attention_relation_weight > 0 else None)

    def shares(self, positions: int) -> dict[str, float]:
        """Returns what the sums of a step are multiplied by, given the positions that count in it: weight / number."""
        if not self.needs_teacher:
            return {}
        positions = max(positions, 1)
        return {
            "hidden_states": self.hidden_state_weight / (positions * max(len(self.layer_map), 1)),
            "attention_relations": self.attention_relation_weight / positions,
        }


class Matcher(nn.Module):
    """The losses between two models' layers and, where hidden sizes differ, the learned projections."""

    def __init__(self, matching: Matching, student_size: int, teacher_size: int) -> None:
        """Takes both hidden sizes. Projections are drawn from torch's generator: see `drawing_projections`."""
        super().__init__()
        self.matching = matching
        self.projections = nn.ModuleDict()
        if matching.hidden_state_weight > 0 and student_size != teacher_size:
            for student_layer, _ in matching.layer_map:
                self.projections[str(student_layer)] = nn.Linear(student_size, teacher_size)

    def forward(
        self, own: LayerOutputs, teacher: LayerOutputs, counted: Tensor, documents: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns `hidden_states` and `attention_relations`, those that weigh, to their sums, scalars float32.

        Args:
            own: what was watched in the student.
            teacher: what was watched in the teacher; of another length where it pads otherwise.
            counted: (B, T), True at the positions that count.
            documents: (B, T), int64: the document of each position of a decoder, whose relations are then only with
                earlier positions of the same document; none: relations are with all positions that count.
        """
        width = min(counted.shape[1], teacher.length)
        counted, sums = counted[:, :width], {}
        if self.matching.hidden_state_weight > 0:
            sums["hidden_states"] = self._hidden_states(own, teacher, counted)
        if self.matching.attention_relation_weight > 0:
            sums["attention_relations"] = self._relations(own, teacher, counted, documents)
        return sums

    def _hidden_states(self, own: LayerOutputs, teacher: LayerOutputs, counted: Tensor) -> Tensor:
        width, total = counted.shape[1], torch.zeros((), device=counted.device)
        for student_layer, teacher_layer in self.matching.layer_map:
            states = own.hidden_states[student_layer][:, :width].float()
            if str(student_layer) in self.projections:
                states = self.projections[str(student_layer)](states)
            aim = teacher.hidden_states[teacher_layer][:, :width]
            total = total + hidden_state_loss(states, aim, counted, reduction="sum")
        return total

    def _relations(self, own: LayerOutputs, teacher: LayerOutputs, counted: Tensor, documents: Tensor | None) -> Tensor:
        width, total = counted.shape[1], torch.zeros((), device=counted.device)
        for part in PARTS:
            vectors, aim = own.projections[part][:, :width], teacher.projections[part][:, :width]
            # keys and values that heads share in groups are narrower: they are regrouped into fewer heads
            heads = math.gcd(self.matching.relation_heads, vectors.shape[-1], aim.shape[-1])
            if documents is None:
                found = attention_relation_loss(vectors, aim, counted, relation_heads=heads, reduction="sum")
            else:
                found = _decoder_relations(vectors, aim, counted, documents[:, :width], heads)
            total = total + found
        return total


def _decoder_relations(own: Tensor, teacher: Tensor, counted: Tensor, documents: Tensor, heads: int) -> Tensor:
    """Returns `attention_relation_loss` of packed documents, a scalar.

    A few heads of one sequence at a time, computed again in the backward pass: a relation is (T, T) for each head.
    """
    at_once = max(1, _RELATIONS_AT_ONCE // own.shape[1] ** 2)
    total = torch.zeros((), device=own.device)
    rows = zip(own.split(1), teacher.split(1), counted.split(1), documents.split(1), strict=True)
    for own_row, teacher_row, counted_row, documents_row in rows:
        related = decoder_pairs(documents_row, counted_row)  # (1, T, T)
        groups = zip(
            own_row.split(at_once * own.shape[-1] // heads, dim=-1),
            teacher_row.split(at_once * teacher.shape[-1] // heads, dim=-1),
            strict=True,
        )
        for index, (vectors, aim) in enumerate(groups):
            number = min(at_once, heads - index * at_once)
            found: Tensor = checkpoint(
                attention_relation_loss,
                vectors,
                aim,
                related,
                relation_heads=number,
                reduction="sum",
                use_reentrant=False,
                preserve_rng_state=False,
            )
            total = total + found * (number / heads)
    return total


def matching_of(config: DistillConfig, student: PreTrainedModel, teacher: PreTrainedModel) -> Matching:
    """Returns what `config` says of layers, with the map, the relation layers and heads filled in and checked.

    Raises:
        UsageError: a layer that student or teacher does not have.
        UnsupportedError: the relation heads do not divide both models' queries, or a model's cannot be found.
    """
    counts = (student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    chosen = config.layer_map
    pairs = spaced_layers(*counts) if chosen is None else tuple((pair.student, pair.teacher) for pair in chosen)
    last = LayerPair(student=counts[0] - 1, teacher=counts[1] - 1)
    relation = config.relation_layers or last
    for pair in (*pairs, (relation.student, relation.teacher)):
        for role, layer, count in zip(("student", "teacher"), pair, counts, strict=True):
            if layer >= count:
                raise UsageError(
                    f"distill: found {role} layer {layer}, expected 0 to {count - 1}: it has {count} layers."
                )
    heads = 1
    if config.attention_relation_weight > 0:
        found = (find_projections(student, relation.student), find_projections(teacher, relation.teacher))
        heads = _relation_heads(config, teacher, (found[0].sizes[0], found[1].sizes[0]))
    return Matching(
        hidden_state_weight=config.hidden_state_weight,
        attention_relation_weight=config.attention_relation_weight,
        layer_map=pairs,
        relation_layers=(relation.student, relation.teacher),
        relation_heads=heads,
    )


def _relation_heads(config: DistillConfig, teacher: PreTrainedModel, sizes: tuple[int, int]) -> int:
    """Returns how many heads queries of these sizes, the student's and the teacher's, are regrouped into."""
    if config.relation_heads is None:
        return math.gcd(teacher.config.num_attention_heads, *sizes)
    if any(size % config.relation_heads for size in sizes):
        raise UnsupportedError(
            f"relation_heads: found {config.relation_heads}, expected a number that divides the channels of both "
            f"models' queries, {sizes[0]} (student) and {sizes[1]} (teacher)."
        )
    return config.relation_heads


def spaced_layers(student_layers: int, teacher_layers: int) -> tuple[tuple[int, int], ...]:
    """Returns every student layer paired with teacher layers evenly spaced to the last: 3 of 6 gives 1, 3, 5."""
    return tuple(
        (layer, math.ceil((layer + 1) * teacher_layers / student_layers) - 1) for layer in range(student_layers)
    )


@contextmanager
def drawing_projections(seed: int) -> Iterator[None]:
    """Makes what is drawn in the `with` block depend on a run's seed alone; the global generators stay as they were."""
    from accelerate.utils import set_seed

    with preserved_random_states():
        set_seed(derived_seed(seed, _PROJECTIONS))
        yield
