"""What `edgekit autotune` chose: for each shape of a linear how it is written, with the times that speak for it.

It is read when a model is exported, and fits every model whose linears have the same shapes and schemes. How it is
measured is known in `tuning/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import Field, ValidationError, model_validator

from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError, UnsupportedError, UsageError
from edgekit.exporters.graph import dimensions
from edgekit.exporters.linear_groups import LinearGroup
from edgekit.exporters.linear_kernels import possible_lowerings
from edgekit.exporters.lowering_names import Lowering
from edgekit.models.codes import Scheme
from edgekit.results import Conditions, Interval, Machine
from edgekit.results.base import Result, SavedResult

CHOICE_FILE = "lowering.json"


class LinearShape(Result):
    """What the time of a linear depends on; query, key and value that become one matmul are one linear."""

    in_features: int
    out_features: int
    scheme: Scheme
    single_token: bool
    """True where it is computed for one token of each row alone: a pooler, a head, the last layer of a classifier."""

    def __str__(self) -> str:
        """Returns it in words: `384 -> 1152, 8 bits by channel, dynamic-int8`."""
        return f"{self.size}, {self.coding}"

    @property
    def size(self) -> str:
        """Returns what it maps to what: `384 -> 1152`, with `, one token` where it is computed for that alone."""
        return f"{self.in_features} -> {self.out_features}{', one token' if self.single_token else ''}"

    @property
    def coding(self) -> str:
        """Returns the scheme in words."""
        scheme = self.scheme
        by = "by channel" if scheme.group_size is None else f"in groups of {scheme.group_size}"
        kind = "" if scheme.symmetric else ", asymmetric"
        return f"{scheme.bits} bits {by}{kind}, {scheme.activations}"


class TriedLowering(Result):
    """One way of writing a linear, and what came of it."""

    lowering: Lowering
    difference: float | None
    """Root mean square of its outputs' difference from torch's, as a share of theirs; None where it was not opened."""
    refused: str | None = None
    """Why it does not come into question; None where it does."""
    p50_ms: float | None = None
    """Median of the time of a call of all `LinearChoice.copies`; None where nothing was measured."""
    p50_interval_ms: Interval | None = None
    samples: int = 0
    ratio_p50: float | None = None
    """Its p50 over that of the first that comes into question, measured in turn; None for that one itself."""
    ratio_interval: Interval | None = None
    """Bootstrap interval that draws whole sets of processes."""


class LinearChoice(Result):
    """How linears of one shape are written."""

    shape: LinearShape
    modules: list[str] = Field(min_length=1)
    """The linears of the model measured that have it; those that become one matmul are joined by `+`."""
    copies: int
    """How many of them were measured together, one after another, so that none finds its weights in the cache."""
    chosen: Lowering
    tried: list[TriedLowering] = Field(min_length=1)
    """The usual one first."""
    conditions: Conditions | None = None
    """What else the machine did meanwhile; None where nothing was measured."""

    @model_validator(mode="after")
    def _was_tried(self) -> Self:
        fit = [each.lowering for each in self.tried if each.refused is None]
        if self.chosen not in fit:
            raise ValueError(f"chosen: found '{self.chosen}', expected one that was tried and not refused: {fit}.")
        return self


class LoweringChoice(SavedResult):
    """How each linear of a model is written, and the measurements that decided it."""

    runtime: str
    runtime_version: str
    threads: int
    batch: int
    """Rows a call."""
    length: int
    """Tokens a row."""
    margin: float
    """A way of writing replaces the usual one where the interval of their ratio lies wholly below 1 / (1 + margin)."""
    load_average: float
    """One-minute load average when the measurement began; -1 where the system has none."""
    machine: Machine
    model_digest: str
    """Digest of the model whose linears were measured."""
    linears: list[LinearChoice]

    @property
    def scenario(self) -> str:
        """Returns on what it was measured: `onnxruntime 1.32.0, 1 thread, 1 x 64 tokens`."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.runtime} {self.runtime_version}, {threads}, {self.batch} x {self.length} tokens"


def read_choice(artifact: Artifact) -> LoweringChoice:
    """Returns the choice in a `lowering` artifact.

    Raises:
        ArtifactError: the artifact is of another kind, or another version of edgekit wrote it.
        UnsupportedError: it names a lowering that its scheme does not allow.
    """
    if artifact.kind != "lowering":
        raise ArtifactError(
            f"{artifact.path}: found an artifact of kind '{artifact.kind}', expected 'lowering', as `edgekit autotune` "
            "writes it."
        )
    file = artifact.path / CHOICE_FILE
    try:
        choice = LoweringChoice.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnsupportedError) as error:
        raise ArtifactError(
            f"{file}: found {_first_problem(error)}, expected a choice that this edgekit wrote. "
            "Make it again with `edgekit autotune`."
        ) from error
    for linear in choice.linears:
        possible = possible_lowerings(linear.shape.scheme, linear.modules[0])
        if linear.chosen not in possible:
            raise UnsupportedError(
                f"{file}: found '{linear.chosen}' for {linear.shape}, expected {' or '.join(possible)}: another one "
                "rounds what the scheme does not. Make it again with `edgekit autotune`."
            )
    return choice


def shape_of(group: LinearGroup, single_token_linears: Sequence[str]) -> LinearShape:
    """Returns the shape of linears on codes that become one matmul."""
    sizes = dimensions(group.nodes[0].inputs[0])  # a pooler reads (B, in), other linears (B, T, in)
    return LinearShape(
        in_features=group.coded[0].in_features,
        out_features=sum(linear.out_features for linear in group.coded),
        scheme=group.coded[0].scheme,
        single_token=group.names[0] in single_token_linears or (sizes is not None and len(sizes) == 2),
    )


def choose_lowerings(
    groups: Iterable[LinearGroup], single_token_linears: Sequence[str], choice: LoweringChoice
) -> dict[str, Lowering]:
    """Returns how each linear on codes is written, by the name of its module.

    Raises:
        UsageError: the choice is not of such linears: one that they have is missing, or one that it names.
    """
    chosen = {linear.shape: linear.chosen for linear in choice.linears}
    found: dict[str, Lowering] = {}
    seen: set[LinearShape] = set()
    for group in groups:
        if not group.coded:
            continue
        shape = shape_of(group, single_token_linears)
        if shape not in chosen:
            raise UsageError(
                f"lowering: found a choice without '{group.name}' ({shape}); it has: {_listed(chosen)}. It was made "
                "for another model or another scheme: run `edgekit autotune` on this one."
            )
        seen.add(shape)
        found.update(dict.fromkeys(group.names, chosen[shape]))
    if set(chosen) - seen:
        raise UsageError(
            f"lowering: found a choice for {_listed(set(chosen) - seen)}, which this model does not have. It was made "
            "for another model or another scheme: run `edgekit autotune` on this one."
        )
    return found


def describe_choice(choice: LoweringChoice) -> list[str]:
    """Returns what a person should know of an export that follows `choice`, one sentence for each thing."""
    notes = [
        f"How its linears are written was measured: {choice.scenario}, {choice.machine.cpu}.",
    ]
    for linear in choice.linears:
        if linear.chosen == linear.tried[0].lowering:
            continue
        usual, taken = linear.tried[0], next(each for each in linear.tried if each.lowering == linear.chosen)
        if usual.refused is not None:
            notes.append(f"{linear.shape}: {linear.chosen} instead of {usual.lowering}: {usual.refused}")
        elif taken.ratio_p50 is not None:
            notes.append(
                f"{linear.shape}: {linear.chosen}, which takes {taken.ratio_p50:.2f} of the time of {usual.lowering}."
            )
    return notes


def _listed(shapes: Iterable[LinearShape]) -> str:
    return "; ".join(sorted(map(str, shapes)))


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False)[0]
        return f"'{'.'.join(map(str, problem['loc']))}': {problem['msg']}"
    return str(error)
