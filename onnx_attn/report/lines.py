"""How every report speaks to people: lines with a label in front, findings with reason and way out, tables that fit."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text

from onnx_attn.errors import printable

LABEL = 8
"""Columns of a label; what has none is indented as far."""
GAP = 2
"""Between two columns of a table."""


def escape(text: str) -> str:
    """Text from a model, with neither markup nor control characters."""
    return escape_markup(printable(text))


def say(console: Console, label: str, text: str) -> None:
    """`proof   whole model …`: one line, of which a terminal shows the rest below its text."""
    if console.soft_wrap or len(label) >= LABEL:
        console.print(f"{label:<{LABEL}}{text}" if len(label) < LABEL else f"{label} {text}")
        return
    line = Table.grid()
    line.add_column(width=LABEL, no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row(label, text)
    console.print(line)


def find(console: Console, head: str, reason: str, remedy: str | None = None) -> None:
    """Something to know, why it is so, and the way out. head: in markup; the others as they come."""
    console.print(head)
    say(console, "", escape(reason))
    if remedy:
        say(console, "", f"→ {escape(remedy)}")


def table_of(*columns: str) -> Table:
    """An empty table of these columns; of one called `>name` the cells stand on the right."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        name = column.removeprefix(">")
        table.add_column(name, justify="left" if name == column else "right", no_wrap=number == 0, overflow="fold")
    return table


def show_table(table: Table, console: Console) -> None:
    """A table; where the terminal is too narrow for its words, each row as a line: `heads 12, size 64`."""
    texts = [[Text.from_markup(str(cell)) for cell in (column.header, *column.cells)] for column in table.columns]
    widest = [max(text.cell_len for text in column) for column in texts]
    least = [max((cell_len(word) for text in column for word in text.plain.split()), default=0) for column in texts]
    least[0] = widest[0]
    room = console.width - GAP * (len(texts) - 1)
    if sum(least) > room:
        _show_rows(table, console)
        return
    if sum(widest) > room:
        for column, width in zip(table.columns, _widths(least, widest, room), strict=True):
            column.width = width
    console.print(table)


def _widths(least: list[int], widest: list[int], room: int) -> list[int]:
    """No word is broken, and whose cells are cut the most gets what is left over."""
    widths = [*least]
    for _ in range(room - sum(least)):
        widths[max(range(len(widths)), key=lambda place: widest[place] - widths[place])] += 1
    return widths


def _show_rows(table: Table, console: Console) -> None:
    names = [str(column.header) for column in table.columns]
    for first, *cells in zip(*(column.cells for column in table.columns), strict=True):
        console.print(f"[bold]{first}[/]")
        say(
            console,
            "",
            ", ".join(f"{name} {cell}".strip() for name, cell in zip(names[1:], cells, strict=True) if cell),
        )


def count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def span(names: list[str]) -> str:
    """`site-0 … site-11`, with how many they are where others lie between."""
    if len(names) == 1:
        return names[0]
    first, last = (int(name.rpartition("-")[2]) for name in (names[0], names[-1]))
    between = "" if last - first + 1 == len(names) else f" ({len(names)})"
    return f"{names[0]} … {names[-1]}{between}"


def show_seconds(seconds: dict[str, float], console: Console) -> None:
    phases = ", ".join(f"{phase} {time:.2f}" for phase, time in seconds.items())
    say(console, "seconds", f"{sum(seconds.values()):.2f} ({phases})")
