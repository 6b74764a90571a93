"""Decides which modules of a model are quantized, and how: patterns over module names, the first match wins.

It knows nothing of how codes are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import nn

from edgekit.errors import UsageError
from edgekit.models.quantized import Scheme, is_plain_lookup
from edgekit.models.roles import features, is_linear
from edgekit.spelling import did_you_mean

# Smaller embedding tables (token types, relative positions) stay float: they weigh nothing.
MINIMUM_ROWS = 64


@dataclass(frozen=True)
class Rules:
    """What to quantize, and how."""

    linears: Scheme
    """For every linear that no pattern names, but for the output layer."""
    embeddings: Scheme | None
    """For every embedding table of at least `MINIMUM_ROWS` rows that no pattern excludes; None: for none."""
    head: Scheme | None = None
    """For the linear that gives a language model's logits; None: it stays float. A head that shares its weight with the
    embedding table takes the table's codes, and only what it is multiplied with from here."""
    exclude: list[str] = field(default_factory=list)
    """Patterns of modules that stay float."""
    overrides: list[tuple[str, Scheme]] = field(default_factory=list)
    """Patterns of linears with schemes of their own; the first that matches wins."""


def choose_schemes(model: nn.Module, rules: Rules, *, labels: int) -> dict[str, Scheme]:
    """Returns module name to scheme for every module of `model` that `rules` quantize.

    A pattern matches a module when it matches its name or the name of a module around it. The linear that gives a
    classifier's logits, one for each of `labels`, stays float unless an override names it: it is small and decides.

    Raises:
        UsageError: a pattern matches nothing, or nothing is left to quantize.
    """
    linears = {name: module for name, module in model.named_modules() if _is_linear(module)}
    tables = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    _check_patterns(rules, linears, tables, model)
    head = find_head(model)
    classifier = find_classifier(model, labels) if labels else None
    schemes: dict[str, Scheme] = {}
    for name, linear in linears.items():
        scheme = _first_match(name, rules.overrides)
        if scheme is None and linear is head:
            scheme = _head_scheme(model, rules)
        elif scheme is None and linear is not classifier:
            scheme = rules.linears
        if scheme is not None and not _matches_any(name, rules.exclude):
            schemes[name] = scheme
    for name, table in tables.items():
        large = table.num_embeddings >= MINIMUM_ROWS and is_plain_lookup(table)
        if rules.embeddings is not None and large and not _matches_any(name, rules.exclude):
            schemes[name] = rules.embeddings
    if not schemes:
        raise UsageError("quantize: found nothing to quantize; every linear and embedding is excluded.")
    return schemes


def find_head(model: nn.Module) -> nn.Module | None:
    """Returns the linear that gives the logits over a vocabulary; None where a model has none."""
    find = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = find() if find is not None else None
    return head if head is not None and _is_linear(head) else None


def find_classifier(model: nn.Module, labels: int) -> nn.Module | None:
    """Returns the linear that gives a classifier's logits; None where `model` has none for so many `labels`.

    It stands outside the body, and last there: a head may hold a dense linear before it, which may be as wide.
    """
    body = getattr(model, "base_model", model)
    inside = set() if body is model else set(body.modules())
    outside = [module for module in model.modules() if is_linear(module) and module not in inside]
    return next((linear for linear in reversed(outside) if features(linear)[1] == labels), None)


def _head_scheme(model: nn.Module, rules: Rules) -> Scheme | None:
    """Returns the scheme of the head: that of the table whose weight it shares, or its own."""
    head = find_head(model)
    tables = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Embedding)]
    shared = [name for name, table in tables if head is not None and table.weight is head.weight]
    if not shared:
        return rules.head
    if rules.embeddings is None or _matches_any(shared[0], rules.exclude):
        return None
    return rules.embeddings if rules.head is None else replace(rules.embeddings, activations=rules.head.activations)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _check_patterns(rules: Rules, linears: Iterable[str], tables: Iterable[str], model: nn.Module) -> None:
    everything = [*linears, *tables]
    overridden = [pattern for pattern, _ in rules.overrides]
    for key, patterns, names in (("exclude", rules.exclude, everything), ("overrides", overridden, list(linears))):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                wanted = "linear or embedding" if key == "exclude" else "linear"
                known = [name for name, _ in model.named_modules() if name]
                raise UsageError(
                    f"quantize: {key}: '{pattern}' matches no {wanted}.{did_you_mean(pattern, known)} "
                    f"The model's linears begin with: {', '.join(list(linears)[:3])}."
                )


def _first_match(name: str, overrides: Iterable[tuple[str, Scheme]]) -> Scheme | None:
    return next((scheme for pattern, scheme in overrides if matches(name, pattern)), None)


def _matches_any(name: str, patterns: Iterable[str]) -> bool:
    return any(matches(name, pattern) for pattern in patterns)


def matches(name: str, pattern: str) -> bool:
    """Returns whether `pattern` (as in a shell: `*`, `?`, `[...]`) matches `name` or a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
