"""How the kit's figures look: Korean text that renders on a machine without Korean fonts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FONT = Path(__file__).parent / "fonts" / "NanumGothic-subset.ttf"
FAMILY = "Kormed Gothic"
COLORS = ("#2f6f9f", "#e39c37", "#6a9f58", "#b5545c", "#7a6aa8")

_STYLE: dict[Any, Any] = {
    # DejaVu Sans comes with matplotlib and has the signs that the subset lacks.
    "font.family": [FAMILY, "DejaVu Sans"],
    "axes.unicode_minus": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
}


@contextmanager
def korean_figure_style() -> Iterator[None]:
    """Draw and save figures inside this; matplotlib's settings are as before afterwards."""
    import matplotlib
    from matplotlib import font_manager

    manager = font_manager.fontManager
    if not any(font.name == FAMILY for font in manager.ttflist):
        manager.addfont(FONT)
    with matplotlib.rc_context(_STYLE):
        yield
