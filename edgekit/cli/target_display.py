"""How targets are shown: all of them by kind, a line each, or one with everything that its file says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgekit.reporting.wording import printable
from edgekit.target import RuntimeOnTarget, Target

_KINDS = {
    "phone": "Phones",
    "tablet": "Tablets",
    "single-board": "Single-board computers",
    "laptop": "Laptops",
    "desktop": "Desktops",
    "server": "Servers",
    "browser": "Browsers",
}
"""Form factors in the order in which they are listed."""


def show_targets(console: Console, targets: Sequence[Target]) -> None:
    """Prints the targets below the names of their kinds; long descriptions are wrapped, names never."""
    table = Table(box=SIMPLE_HEAD, title="Targets", title_justify="left", pad_edge=False, collapse_padding=True)
    table.add_column("target", no_wrap=True, min_width=max(len(target.name) for target in targets))
    table.add_column("device", overflow="fold")
    for title in ("memory", "GB/s"):
        table.add_column(title, justify="right", no_wrap=True, min_width=len("512 MiB"))
    for kind, title in _KINDS.items():
        found = [target for target in targets if target.form_factor == kind]
        if found:
            table.add_row(Text(title, "bold"))
        for target in found:
            table.add_row(*map(_literal, _summary(target)), end_section=target is found[-1])
    console.print(table)
    console.print(_literal("edgekit targets NAME shows one, with the source of every figure."))


def show_target(console: Console, target: Target) -> None:
    """Prints what a target's file says; below each figure stands its source."""
    console.print(_literal(f"{target.name}: {target.description}"), style="bold")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, value in _facts(target):
        table.add_row(title, _literal(value))
    for title, figure, unit in (
        ("memory bandwidth", target.memory_bandwidth_bytes_per_s, "GB/s"),
        ("int8 peak, one core", target.peak_int8_operations_per_s, "Gop/s"),
        ("float32 peak, one core", target.peak_float32_operations_per_s, "Gop/s"),
    ):
        sourced = _literal(f"{figure.value / 1e9:,.1f} {unit}\n")
        table.add_row(title, sourced.append(printable(figure.source), style="dim italic"))
    for runtime in target.runtimes:
        table.add_row(_literal(f"{runtime.name} {runtime.version}"), _literal(_ceilings(runtime)))
    for key, limit in target.budget.model_dump(exclude_none=True).items():
        table.add_row(f"budget {key}", f"{limit:,}")
    console.print(table)


def _summary(target: Target) -> tuple[str, ...]:
    bandwidth = target.memory_bandwidth_bytes_per_s.value
    return target.name, target.description, _size(target.memory_bytes), f"{bandwidth / 1e9:,.1f}"


def _facts(target: Target) -> Iterator[tuple[str, str]]:
    """Yields what has no source of its own."""
    yield "kind", ", ".join(filter(None, (target.form_factor, target.operating_system)))
    yield "cpu", f"{target.cpu} ({target.architecture})"
    if target.cpu_features:
        yield "vector extensions", ", ".join(target.cpu_features)
    yield "memory", _size(target.memory_bytes)
    if target.bundle_bytes is not None:
        yield "largest bundle", f"{target.bundle_bytes:,} bytes"
    named = "" if target.host_pattern is None else f" that calls itself {target.host_pattern}"
    extended = " with these extensions" if target.cpu_features else ""
    yield "measured on", f"any {target.architecture} machine{extended}{named}"


def _ceilings(runtime: RuntimeOnTarget) -> str:
    found = [] if runtime.opset is None else [f"operator set {runtime.opset}"]
    found += [] if runtime.ir_version is None else [f"IR {runtime.ir_version}"]
    found.append("1 thread" if runtime.threads == 1 else f"{runtime.threads} threads")
    return ", ".join(found)


def _literal(content: str) -> Text:
    """Returns text that is shown as it is: square brackets in it are no markup."""
    return Text(printable(content))


def _size(count: int) -> str:
    return f"{count / 2**30:g} GiB" if count >= 2**30 else f"{count / 2**20:g} MiB"
