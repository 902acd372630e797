"""What all pictures share: colours, the empty figure, and the PNG file."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from utils import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, PALE = "#262626", "#8c8c8c", "#d0d0d0"
RIGHT = "#118833"
RUN, RERANK, BANK = "#2b6cb0", "#dd7711", "#2f8f6b"
PLAIN = {"parse_math": False}  # a dollar sign in a caption or a name is a dollar sign


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write the figure as a PNG, whole or not at all."""
    with atomic(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a caption in another script: boxes will do
        figure.savefig(temporary, format="png")
