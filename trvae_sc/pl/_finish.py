"""What every plot does at its end: save and show the figure, as scanpy's plots do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from trvae_sc.errors import InputError
from trvae_sc.files import as_path

Drawn = TypeVar("Drawn", Axes, list[Axes])
Save = bool | str | Path | None
_FORMATS = (".pdf", ".png", ".svg")


def finish(drawn: Drawn, name: str, *, show: bool | None, save: Save) -> Drawn | None:
    """Save and show a figure; return what was drawn on, or None where it was shown.

    `save` is as in scanpy: True, or a text that is appended to the name of the plot, in
    ``scanpy.settings.figdir``; or the file itself, a Path or a text with a folder in it.
    """
    figure = figure_of(drawn[0] if isinstance(drawn, list) else drawn)
    if save is not None and save is not False:
        is_file = isinstance(save, Path) or (isinstance(save, str) and Path(save).name != save)
        if not isinstance(save, bool | str | Path):
            raise InputError(
                f"save is {save!r}; give True, an ending of the file's name, or a Path."
            )
        path = as_path(save, "save") if is_file else _path(name, "" if save is True else str(save))
        known = sorted(figure.canvas.get_supported_filetypes())
        if path.is_dir():
            raise InputError(f"save is '{path}', a folder. Name a file in it.")
        if path.suffix and path.suffix[1:].lower() not in known:
            raise InputError(f"{path} ends in no format of figures; there are {', '.join(known)}.")
        dpi = plt.rcParams["savefig.dpi"]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150 if dpi == "figure" else dpi, bbox_inches="tight")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}.") from error
    if show:
        plt.show()
        return None
    return drawn


def figure_of(ax: Axes) -> Any:
    """Return the whole figure that Axes are in, which may be in a part of it."""
    figure: Any = ax.figure
    while figure.figure not in (None, figure):
        figure = figure.figure
    return figure


def _path(name: str, text: str) -> Path:
    """Return the file that scanpy would write."""
    from scanpy import settings

    has_format = text.endswith(_FORMATS)
    ending = "" if has_format else f"{settings.plot_suffix}.{settings.file_format_figs}"
    return Path(settings.figdir) / f"{name}{text}{ending}"
