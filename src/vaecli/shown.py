"""What a result shows of itself in a notebook, and on a terminal by rich: a table, and a picture if it has one."""

import base64
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

MAX_PICTURE = 1_000_000
"""Bytes of a picture that is put into a page."""

LEFT = 'style="text-align: left"'


@dataclass(frozen=True)
class Summary:
    """Hold what is shown; texts are plain, and escaped where they enter markup."""

    title: str
    rows: Sequence[Sequence[str]]
    columns: Sequence[str] = ()
    """Headings; none where a row is a name and a value."""
    notes: Sequence[str] = ()
    picture: Path | None = None
    """A PNG, left out where it cannot be read."""


class Shown(ABC):
    """Show a summary wherever a notebook or rich displays the object."""

    @abstractmethod
    def summary(self) -> Summary:
        """Return what is shown; it must not fail for what is half written or damaged."""

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        summary = self.summary()
        head = "".join(f"<th {LEFT}>{escape(column)}</th>" for column in summary.columns)
        rows = [
            "<tr>"
            + "".join(f"<{tag} {LEFT}>{escape(cell)}</{tag}>" for tag, cell in zip(_tags(row), row, strict=True))
            + "</tr>"
            for row in summary.rows
        ]
        parts = [f"<p><strong>{escape(summary.title)}</strong></p>", "<table>"]
        parts += [f"<thead><tr>{head}</tr></thead>"] if head else []
        parts += ["<tbody>", *rows, "</tbody></table>"]
        parts += [f"<p>{escape(note)}</p>" for note in summary.notes]
        return "\n".join([*parts, _image(summary.picture)])

    def __rich__(self) -> Any:
        """Return the summary for a terminal."""
        from rich.console import Group  # noqa: PLC0415 (it is slow to import)
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        summary = self.summary()
        table = Table(show_header=bool(summary.columns))
        for column in summary.columns or summary.rows[0]:
            table.add_column(Text(column))
        for row in summary.rows:
            table.add_row(*map(Text, row))
        return Group(Text(summary.title, style="bold"), table, *map(Text, summary.notes))


def _tags(row: Sequence[str]) -> list[str]:
    """Return the tags of a row's cells: its first is its name."""
    return ["th", *("td" for _ in row[1:])]


def _image(path: Path | None) -> str:
    """Return a picture as a part of the page itself."""
    try:
        content = b"" if path is None else path.read_bytes()
    except OSError:
        content = b""
    if not content or len(content) > MAX_PICTURE:
        return ""
    return f'<img alt="samples" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
