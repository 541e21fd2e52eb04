import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from kormed_edge.figures import FAMILY, FONT, korean_figure_style
from kormed_edge.records import KOREAN


def test_the_font_is_used_inside_and_the_settings_return():
    before = dict(matplotlib.rcParams)
    with korean_figure_style():
        assert font_manager.findfont(font_manager.FontProperties()) == str(FONT)
    assert dict(matplotlib.rcParams) == before


def test_the_font_is_registered_once():
    for _ in range(2):
        with korean_figure_style():
            pass
    assert [font.name for font in font_manager.fontManager.ttflist].count(FAMILY) == 1


def test_the_font_is_small_and_has_the_letters_that_figures_need():
    assert FONT.stat().st_size < 1_000_000
    letters = set("".join(KOREAN.values())) | set("가힝①%·~→↑αβ≤≥")
    assert letters <= set(map(chr, FT2Font(FONT).get_charmap()))


def test_the_subset_keeps_clear_of_the_reserved_font_name():
    # Condition 3 of the Open Font License, whose text lies beside the font.
    assert FT2Font(FONT).family_name == FAMILY
    assert "Reserved Font Name" in (FONT.parent / "OFL.txt").read_text(encoding="utf-8")
