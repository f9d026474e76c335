"""Progress for people: one line on stderr that names stage and site, from the second second on, and gone at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onnx_attn.errors import printable

PATIENCE = 1.0
"""Seconds after which a line is shown."""
BAR = 20


class Watch:
    """Listens to the work: adds up the time of each stage, and knows the line that tells what is being done."""

    def __init__(self, console: Console):
        self.seconds: dict[str, float] = {}
        self.console = console
        self._start = self._since = time.perf_counter()
        self._stage, self._shown = "", "begin"
        self._step = (0, 0, "")

    def stage(self, name: str) -> None:
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._shown, self._since = name, name or self._shown, now
        self._step = (0, 0, "")

    def step(self, number: int, total: int, label: str) -> None:
        self._step = (number, total, label)

    def line(self) -> Table:
        """Stage, bar, `3 of 12`, the end of the site's name as far as there is room, the time since the start."""
        number, total, label = self._step
        passed = int(time.perf_counter() - self._start)
        parts: list[Text | ProgressBar] = [Text(printable(self._shown), style="bold")]
        if total > 1:
            bar = [ProgressBar(total, number - 1, width=BAR)] if self.console.width >= 3 * BAR else []
            parts += [*bar, Text(f"{number} of {total}")]
        end = Text(f"{passed // 60}:{passed % 60:02}")
        taken = sum(len(part) if isinstance(part, Text) else BAR for part in (*parts, end)) + len(parts) + 1
        parts += [Text(_end(printable(label), self.console.width - taken - 1)), end]
        line = Table.grid(padding=(0, 1))
        for _ in parts:
            line.add_column(no_wrap=True)
        line.add_row(*parts)
        return line


def _end(text: str, room: int) -> str:
    """What tells layers apart stands at the end of a name."""
    if len(text) <= room:
        return text
    return f"…{text[len(text) - room + 1 :]}" if room > 1 else ""


@contextmanager
def shown(watch: Watch) -> Iterator[None]:
    """The watch's line while this lasts, if it lasts, and stderr is a terminal on which a line can be taken back."""
    if not sys.stderr.isatty() or watch.console.is_dumb_terminal:
        yield
        return
    live = Live(
        console=watch.console,
        get_renderable=watch.line,
        transient=True,
        refresh_per_second=8,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    lock, over = Lock(), False

    def begin() -> None:
        with lock:
            if not over:
                live.start(refresh=True)
                watch.console.show_cursor(True)  # Who is killed leaves the terminal as it was.

    timer = Timer(PATIENCE, begin)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
            live.stop()
