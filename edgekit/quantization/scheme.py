"""Decides which modules of a model are quantized, and how: patterns over module names, the first match wins.

It knows nothing of how codes are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from edgekit.errors import UsageError
from edgekit.models.quantized import Scheme
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
    exclude: list[str] = field(default_factory=list)
    """Patterns of modules that stay float."""
    overrides: list[tuple[str, Scheme]] = field(default_factory=list)
    """Patterns of linears with schemes of their own; the first that matches wins."""


def choose_schemes(model: nn.Module, rules: Rules, *, outputs: int) -> dict[str, Scheme]:
    """Returns module name to scheme for every module of `model` that `rules` quantize.

    A pattern matches a module when it matches its name or the name of a module around it. Linears with `outputs`
    features, which give the logits, stay float unless an override names them: they are small and decide.

    Raises:
        UsageError: a pattern matches nothing, or nothing is left to quantize.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    tables = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    _check_patterns(rules, linears, tables, model)
    schemes: dict[str, Scheme] = {}
    for name, linear in linears.items():
        scheme = _first_match(name, rules.overrides)
        if scheme is None and linear.out_features != outputs:
            scheme = rules.linears
        if scheme is not None and not _matches_any(name, rules.exclude):
            schemes[name] = scheme
    for name, table in tables.items():
        large = table.num_embeddings >= MINIMUM_ROWS
        if rules.embeddings is not None and large and not _matches_any(name, rules.exclude):
            schemes[name] = rules.embeddings
    if not schemes:
        raise UsageError("quantize: found nothing to quantize; every linear and embedding is excluded.")
    return schemes


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
