"""Figures as images in the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

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
