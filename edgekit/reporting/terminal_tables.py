"""The parts of every table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.reporting import wording

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def make_table(title: str, columns: list[str]) -> Table:
    """Returns an empty table, the first column to the left and the others to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, caption_justify="left")
    table.show_header = any(columns)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def literal(content: str, style: str = "") -> Text:
    """Returns literal text: square brackets in it are no markup."""
    from rich.text import Text

    return Text(wording.printable(content), style=style)
