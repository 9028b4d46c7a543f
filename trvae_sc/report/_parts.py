"""Parts of the page: tables, files in it and images."""

from __future__ import annotations

import base64
import gzip
import io
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from trvae_sc.pl._style import number as rounded


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    value: str = ""  #: what the column is sorted by, where that is not the text
    is_number: bool = False


class Table(NamedTuple):
    """A table as the template draws it."""

    columns: list[Cell]
    rows: list[list[Cell]]


def table_of(frame: pd.DataFrame, *, small: Collection[str] = ()) -> Table:
    """Return a frame, without its index, as a table: numbers with two digits, what is missing empty.

    Small numbers tell in the columns `small`, too: q-values.
    """
    head, columns = [], []
    for name, column in frame.items():
        is_number = pd.api.types.is_numeric_dtype(column) and column.dtype != bool
        head.append(Cell(str(name), "", is_number))
        columns.append([_cell(value, is_number, name in small) for value in column.tolist()])
    return Table(head, [list(row) for row in zip(*columns, strict=True)])


def _cell(value: Any, is_number: bool, is_small: bool) -> Cell:  # noqa: FBT001
    """Return a value as a cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("", "", is_number)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if not is_number:
        return Cell(str(value))
    text = f"{value:.1g}" if is_small and 0 < abs(value) < 0.005 else number(value)
    return Cell(text, f"{value:.6g}", is_number=True)


def number(value: float) -> str:
    """Return a number as text, whole ones without digits; empty if it is missing."""
    if isinstance(value, int):
        return f"{value:,}"
    return "" if math.isnan(value) else rounded(value)


def csv_link(frame: pd.DataFrame) -> str:
    """Return a frame as a link to a CSV file that is in the link itself."""
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def packed_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV, compressed, in base64: the same each time."""
    text = frame.to_csv(index=False, float_format="%.4g", lineterminator="\n")
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


_COLORS = 256  # of an image: lines, dots and letters need no more


def image(figure: Any, text: str) -> Markup:
    """Return a figure as an image in the page, with the text to read where it is not seen, and close it."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(150)
    canvas.draw()  # savefig would lay it out and draw it twice, and compress it once more
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    small = io.BytesIO()
    pixels.quantize(_COLORS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    data = base64.b64encode(small.getvalue()).decode()
    # the text is escaped; the rest is numbers and base64
    tag = '<img alt="{}" width="{}" height="{}" src="data:image/png;base64,{}">'
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    return Markup(tag).format(text, width, height, data)
