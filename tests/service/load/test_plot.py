from xml.etree import ElementTree as ET

import pytest

from service.load.plot import Bar, bar_chart

SVG = "{http://www.w3.org/2000/svg}"


def bars_of(svg: str) -> list[float]:
    """The heights of the coloured rectangles, the legend's left out."""
    rectangles = ET.fromstring(svg).findall(f"{SVG}rect")
    return [float(each.attrib["height"]) for each in rectangles if "x" in each.attrib]


def test_bars_are_as_high_as_their_values_say():
    chart = bar_chart(
        "t",
        "seconds",
        {(1, "a"): Bar(1, 1, 1), (8, "a"): Bar(2, 2, 4), (32, "a"): Bar(4, 4, 4)},
        "",
    )

    _legend, one, two, four = bars_of(chart)
    assert (two / one, four / one) == (pytest.approx(2, 0.01), pytest.approx(4, 0.01))


@pytest.mark.parametrize("highest", [0.0, 0.00034, 0.97, 1.0, 9.99, 130.0, 2047.0])
def test_nothing_reaches_beyond_the_axis(highest):
    chart = ET.fromstring(bar_chart("t", "s", {(1, "a"): Bar(highest, 0, highest)}, ""))

    tops = [float(each.attrib["y"]) for each in chart.findall(f"{SVG}rect") if "y" in each.attrib]
    assert min(tops) >= 42


def test_names_from_elsewhere_are_shown_as_they_are():
    chart = bar_chart("<&", "s", {(0, "<a>"): Bar(1, 1, 1)}, '"&"')

    texts = [each.text for each in ET.fromstring(chart).findall(f"{SVG}text")]
    assert {"<&", "<a>", '"&"', "requests at random times"} <= set(texts)
