from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from vaecli.reports.plots import SVG, svg

HOSTILE = '</svg><script>alert("1")</script>&'


def plot(pixels: np.ndarray | None = None) -> Figure:
    figure = Figure(figsize=(5, 4))
    axis = figure.subplots()
    if pixels is None:
        axis.plot([1, 2], [3, 4], label=HOSTILE)
        axis.legend()
    else:
        axis.imshow(pixels, interpolation="none")
    axis.set_title(HOSTILE)
    return figure


@pytest.mark.parametrize("pixels", [None, np.eye(3)])
def test_the_same_plot_gives_the_same_text_which_says_what_it_shows(pixels):
    text = svg(plot(pixels), f"Two lines {HOSTILE}")
    assert text == svg(plot(pixels), f"Two lines {HOSTILE}")
    root = ET.fromstring(text)
    assert (root.get("role"), root.get("aria-label")) == ("img", f"Two lines {HOSTILE}")
    assert root.get("width") == f"{5 * 72}pt"
    assert not list(root.iter("{*}date"))


def test_what_a_plot_says_stays_text_and_is_nothing_else():
    text = svg(plot(), "Lines")
    root = ET.fromstring(text)
    assert [element.text for element in root.iter(f"{{{SVG}}}text")].count(HOSTILE) == 2  # the title, the legend
    assert "<script" not in text
    assert "<!DOCTYPE" not in text


def test_plots_of_one_page_share_no_names():
    names = [
        {element.get("id") for element in ET.fromstring(svg(plot(), alt)).iter() if element.get("id")}
        for alt in ("One", "Another")
    ]
    assert names[0]
    assert names[0].isdisjoint(names[1])
