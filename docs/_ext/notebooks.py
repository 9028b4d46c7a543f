"""Notebooks of ``tutorials/`` as pages, and the gallery of the plots that are stored in one of them."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

#: Plots that a heading of the gallery notebook names, as in "## How training went: `training`".
_NAMED = re.compile(r"^## (?P<title>.*): `(?P<name>\w+)`", re.MULTILINE)
_OTHERS = "%% other notebooks %%"
_PAGE = """# Gallery

Every plot of {{py:mod}}`trvae_sc.pl`. The figures are those stored in the notebook
[gallery](tutorials/gallery.ipynb), which has the code that makes each of them. A figure leads to the reference of
its function.

::::{{grid}} 1 2 2 3
:gutter: 3

{cards}
::::
"""
_CARD = """:::{{grid-item-card}} {title}
:img-top: _static/gallery/{name}.png
:img-alt: {title}
:link: trvae_sc.pl.{name}
:link-type: any

`pl.{name}`
:::
"""


def copy_notebooks(source: Path, target: Path) -> None:
    """Copy notebooks to where Sphinx looks for pages; what was copied before and is gone is removed."""
    target.mkdir(exist_ok=True)
    names = {path.name for path in source.glob("*.ipynb")}
    for path in target.glob("*.ipynb"):
        if path.name not in names:
            path.unlink()
    for name in names:
        text, copy = (source / name).read_text(encoding="utf-8"), target / name
        if (
            not copy.exists() or copy.read_text(encoding="utf-8") != text
        ):  # unchanged: not built again
            shutil.copyfile(source / name, copy)


def list_others(app: Any, name: str, source: list[str]) -> None:
    """Add the notebooks that the page of tutorials does not list to its end."""
    if _OTHERS not in source[0]:
        return
    folder = Path(app.srcdir, name).parent
    others = sorted(p.stem for p in folder.glob("*.ipynb") if f"({p.name})" not in source[0])
    lines = ["```{toctree}", ":maxdepth: 1", "", *others, "```"] if others else []
    source[0] = source[0].replace(_OTHERS, "\n".join(lines))


def write_gallery(notebook: Path, docs: Path) -> None:
    """Write the page of plots, and the first figure of each."""
    folder = docs / "_static" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    cards, heading = [], None
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            heading = _NAMED.search("".join(cell["source"]))
        elif heading and (image := _image(cell)):
            (folder / f"{heading['name']}.png").write_bytes(base64.b64decode(image))
            cards.append(_CARD.format(**heading.groupdict()))
            heading = None
    page = _PAGE.format(cards="\n".join(cards))
    path = docs / "gallery.md"
    if not path.exists() or path.read_text(encoding="utf-8") != page:
        path.write_text(page, encoding="utf-8")


def _image(cell: dict[str, Any]) -> str | None:
    """Return the first figure among the outputs of a cell."""
    found = (output.get("data", {}).get("image/png") for output in cell["outputs"])
    image = next((image for image in found if image), None)
    return "".join(image) if image else None
