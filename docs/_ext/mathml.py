"""Equations as MathML, which browsers draw themselves: no script, no fonts, nothing to load."""

from __future__ import annotations

import html
import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

#: Norms of a size of their own, which the converter does not know.
_SIZED_NORM = re.compile(r"\\[bB]ig\\([lr])Vert")

logger = logging.getLogger(__name__)


def _convert(node: nodes.Element, *, block: bool) -> str:
    """Return an equation as MathML; one that cannot be read is shown as it is written, with a warning."""
    tex = _SIZED_NORM.sub(r"\\\1Vert", node.astext())
    try:
        found = convert(tex, display="block" if block else "inline")
        if "\\" in found or "&amp;" in found:
            raise ValueError("a command is not known")
        return found
    except Exception as error:  # noqa: BLE001  (whatever the converter raises, the page says what was written)
        logger.warning("equation cannot be converted: %s (%r)", tex, error, location=node)
        return f"<code>{html.escape(tex)}</code>"


def _inline(self: HTML5Translator, node: nodes.Element) -> None:
    self.body.append(f'<span class="math">{_convert(node, block=False)}</span>')
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.Element) -> None:
    self.body.append(f'<div class="math">{_convert(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
