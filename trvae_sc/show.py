"""How objects show themselves: a title and rows of what they are, as text and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 8  # names that a row lists


def as_text(title: str, rows: Mapping[str, object]) -> str:
    """Return a title and rows, one a line."""
    width = max(map(len, rows), default=0) + 2
    return "\n".join([title, *(f"  {name:<{width}}{value}" for name, value in rows.items())])


def as_html(title: str, rows: Mapping[str, object]) -> str:
    """Return a title and rows as a table of a notebook."""
    cells = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<div><b>{html.escape(title)}</b><table>{cells}</table></div>"


def some(names: Sequence[Any]) -> str:
    """Return how many names there are, and the first of them."""
    listed = ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({listed})" if listed else "0"
