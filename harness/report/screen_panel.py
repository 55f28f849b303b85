"""A panel of a table on the screen: lines as rich's own table writes them, without its time.

rich lays out every cell by itself: of a report of 5,000 records, a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table as RichTable

HEAD = "bold"


@dataclass(frozen=True)
class ScreenColumn:
    """A column as the screen shows it: lines of its head, texts and their styles ("": plain)."""

    head: tuple[str, ...]
    texts: Sequence[str]
    styles: Sequence[str]
    right: bool  # to which side its texts stand

    @cached_property
    def width(self) -> int:
        """The width of its longest text, in places of a terminal."""
        from rich.cells import cell_len

        return max(map(cell_len, [*self.head, *self.texts]))


@dataclass(frozen=True)
class Panel:
    """Columns side by side, under a line below their heads; a renderable of rich.

    Where the screen is narrower than the names of rows and one figure, rich shortens the texts.
    """

    columns: Sequence[ScreenColumn]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.segment import Segment

        whole = sum(each.width for each in self.columns) + 2 * len(self.columns)
        if whole > options.max_width:
            yield self._shortened()
            return
        empty = " " * whole + "\n"
        yield Segment(empty)
        height = max(len(each.head) for each in self.columns)
        for number in range(height):
            places = [number - height + len(each.head) for each in self.columns]  # heads end low
            texts = [
                each.head[at] if at >= 0 else ""
                for each, at in zip(self.columns, places, strict=True)
            ]
            yield from self._line(console, texts, [HEAD] * len(texts))
        yield Segment(f" {'─' * (whole - 2)} \n")
        rows = zip(*(each.texts for each in self.columns), strict=True)
        looks = zip(*(each.styles for each in self.columns), strict=True)
        for row, styles in zip(rows, looks, strict=True):
            yield from self._line(console, row, styles)
        yield Segment(empty)

    def _line(self, console: Console, texts: Sequence[str], styles: Sequence[str]) -> Iterator[Any]:
        """One line: plain texts are joined, so that most lines are a single segment."""
        from rich.cells import cell_len
        from rich.segment import Segment

        plain = " "
        for place, (column, text, style) in enumerate(
            zip(self.columns, texts, styles, strict=True)
        ):
            room = " " * (column.width - cell_len(text))
            said = room + text if column.right else text + room
            if style:
                yield Segment(plain)
                yield Segment(said, console.get_style(style))
                plain = ""
            else:
                plain += said
            plain += "  " if place < len(self.columns) - 1 else " "
        yield Segment(f"{plain}\n")

    def _shortened(self) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for each in self.columns:
            head = Text("\n".join(each.head))
            table.add_column(head, justify="right" if each.right else "left", no_wrap=True)
        rows = zip(*(each.texts for each in self.columns), strict=True)
        looks = zip(*(each.styles for each in self.columns), strict=True)
        for texts, styles in zip(rows, looks, strict=True):
            table.add_row(*map(Text, texts, styles))
        return table
