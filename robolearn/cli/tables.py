"""Tables on a terminal or in a file: numbers are never cut, texts wrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_FILE_WIDTH = 120


def new_table(*titles: str, numbers: Sequence[str] = (), wrap: Sequence[str] = ()) -> Table:
    """An empty table. ``numbers`` stand at the right; the columns ``wrap`` give way where space is short."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in titles:
        table.add_column(
            title, justify="right" if title in numbers else "left", no_wrap=title not in wrap, overflow="fold"
        )
    return table


def show_table(table: Table) -> None:
    """Print it as wide as its numbers need."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    for column in table.columns:
        if column.no_wrap:
            cells = (column.header, *column.cells)
            column.min_width = max(cell_len(Text.from_markup(str(cell)).plain) for cell in cells)
    console = Console()
    least = Measurement.get(console, console.options.update(width=10_000), table).minimum
    Console(width=max(console.width if console.is_terminal else _FILE_WIDTH, least)).print(table)


def size_text(count: float) -> str:
    """A number of bytes for people: "3.21 MB"."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
