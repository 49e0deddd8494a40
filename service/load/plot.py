"""A bar chart as SVG: groups of bars with whiskers, readable on light and on dark pages."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 16, 84, 72
_COLOURS = ("#2f81d6", "#e08a2c", "#4a9a5b", "#c2504c", "#8d6bb8", "#8a8a8a", "#3aa6a6")
_LETTER_WIDTH = 6.6  # of the legend's letters, on average
_MOST_LABELLED_BARS = 24  # more, and the figures over them would meet
_STYLE = """\
<style>
.paper { fill: #ffffff } .ink { fill: #1f2328 } .whisker { stroke: #1f2328 }
.grid { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117 } .ink { fill: #e6edf3 } .whisker { stroke: #e6edf3 }
.grid { stroke: #3d444d }
}
</style>"""


class Bar(NamedTuple):
    """A bar's height, and from where to where its whisker goes."""

    height: float
    low: float
    high: float


def bar_chart(title: str, unit: str, bars: Mapping[tuple[int, str], Bar], caption: str) -> str:
    """Draw bars keyed by (group, name); a group is a number of clients, 0 is none.

    unit: what the vertical axis counts.

    Returns:
        The SVG's text.
    """
    groups = list(dict.fromkeys(group for group, _ in bars))
    names = list(dict.fromkeys(name for _, name in bars))
    top = _round_up(max((bar.high for bar in bars.values()), default=0))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        ' font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        _STYLE,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" class="paper"/>',
        _text(16, 24, title, size=15),
        *_legend(names),
        *_axis(top, unit),
        *_groups(groups, names, bars, top),
        _text(middle, _HEIGHT - 34, "clients at a time", anchor="middle") if any(groups) else "",
        _text(16, _HEIGHT - 10, caption, size=10),
        "</svg>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _groups(
    groups: Sequence[int], names: Sequence[str], bars: Mapping[tuple[int, str], Bar], top: float
) -> list[str]:
    parts: list[str] = []
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    bar_width = min(width * 0.8 / max(len(names), 1), 90)
    for place, group in enumerate(groups):
        middle = _LEFT + (place + 0.5) * width
        label = str(group) if group else "requests at random times"
        parts.append(_text(middle, _HEIGHT - _BOTTOM + 18, label, anchor="middle"))
        left = middle - bar_width * len(names) / 2
        for index, name in enumerate(names):
            if (group, name) in bars:
                x = left + index * bar_width
                is_labelled = len(bars) <= _MOST_LABELLED_BARS
                bar = bars[group, name]
                parts += _bar(x, bar_width * 0.9, bar, top, _colour(index))
                if is_labelled:
                    y = _y(bar.high, top) - 5
                    figure = f"{bar.height:.3g}"
                    parts.append(_text(x + bar_width * 0.45, y, figure, anchor="middle", size=10))
    return parts


def _bar(x: float, width: float, bar: Bar, top: float, colour: str) -> list[str]:
    middle = x + width / 2
    return [
        f'<rect x="{x:.1f}" y="{_y(bar.height, top):.1f}" width="{width:.1f}"'
        f' height="{_y(0, top) - _y(bar.height, top):.1f}" fill="{colour}"/>',
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{_y(bar.low, top):.1f}"'
        f' y2="{_y(bar.high, top):.1f}" class="whisker"/>',
    ]


def _axis(top: float, unit: str) -> list[str]:
    lines: list[str] = []
    for step in range(5):
        value = top * step / 4
        y = _y(value, top)
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
                     ' class="grid"/>')  # fmt: skip
        lines.append(_text(_LEFT - 6, y + 4, f"{value:.3g}", anchor="end"))
    middle = _y(top / 2, top)
    lines.append(
        f'<text class="ink" text-anchor="middle" transform="translate(18 {middle:.1f})'
        f' rotate(-90)">{escape(unit)}</text>'
    )
    return lines


def _legend(names: Sequence[str]) -> list[str]:
    parts: list[str] = []
    x = float(_LEFT)
    for index, name in enumerate(names):
        parts.append(f'<rect x="{x:.1f}" y="42" width="12" height="12" fill="{_colour(index)}"/>')
        parts.append(_text(x + 17, 52, name))
        x += 40 + _LETTER_WIDTH * len(name)
    return parts


def _round_up(value: float) -> float:
    """Find the next number that quarters of an axis are readable at."""
    if value <= 0:
        return 1.0
    step = 10.0 ** (len(str(int(value))) - 1)
    while step > value:
        step /= 10
    return next(
        step * factor for factor in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if step * factor >= value
    )


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (value / top) * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text class="ink" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
