"""Pictures that say what they should: names in any alphabet, axes where differences are."""

import warnings

import matplotlib
import numpy as np
import pytest

from pose.reports import plots
from pose.reports.fonts import drawable


def test_names_that_no_font_has_become_code_points():
    (name, plain, arabic), families = drawable(["a \U00040123", "Plank", "قطة"])
    assert name == "a U+40123"
    assert (plain, arabic) == ("Plank", "قطة"), "what a font has stays as it is"
    assert families[0] == "DejaVu Sans"


@pytest.mark.parametrize("name", ["狗", "🐕", "कुत्ता", "$x$", "<script>", "\U00040123", "long " * 9])
def test_a_class_in_any_alphabet_is_drawn_without_a_warning(tmp_path, name):
    path = tmp_path / "confusion.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion = np.array([[3, 1], [0, 2]])
        plots.write_figure(lambda: plots.plot_confusion(confusion, (name, "b"), "title"), path)
    assert path.stat().st_size > 1000


def rows(values):
    return [
        {"epoch": epoch, "val_f1": f1, "val_loss": 1 - f1}
        for epoch, f1 in enumerate(values, start=1)
    ]


def test_the_axes_of_the_seeds_show_where_they_differ():
    rise = [0.2, 0.5, 0.8, 0.9, 0.93, 0.931, 0.932]
    histories = {7: rows([*rise, 0.932]), 8: rows([*rise, 0.935])}
    with matplotlib.rc_context():
        f1_axes, loss_axes, best_axes = plots.plot_seeds(histories, "title").axes
    low, high = f1_axes.get_ylim()
    assert 0.92 < low < 0.93 and 0.935 < high < 0.94
    low, high = loss_axes.get_ylim()
    assert 0.06 < low < 0.065 and 0.07 < high < 0.08
    assert best_axes.lines[0].get_ydata().tolist() == [0.932, 0.935]


@pytest.mark.parametrize("curves", [[[0.5]], [[0.5, 0.4, 0.3]], [[0.1, 0.1], [0.1, 0.1]]])
def test_axes_of_short_falling_and_level_curves_hold_them(curves):
    low, high = plots.later_half(curves)
    late = [value for curve in curves for value in curve[len(curve) // 2 :]]
    assert low < min(late) <= max(late) < high
