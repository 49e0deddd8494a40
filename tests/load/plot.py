"""A bar chart as SVG: groups of bars, each the median of its rounds with their spread as a line."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 76, 60
_COLOURS = ("#2563a8", "#e08a2c", "#4a9a5b", "#b0413e", "#7d5ba6", "#8a8a8a", "#3aa6a6")


def bar_chart(title: str, bars: Mapping[tuple[int, str], Sequence[float]], caption: str) -> str:
    """Draw bars keyed by (group, name); a group is a concurrency, 0 is none.

    Returns:
        The SVG's text.
    """
    groups = list(dict.fromkeys(group for group, _ in bars))
    names = list(dict.fromkeys(name for _, name in bars))
    top = max((max(samples) for samples in bars.values()), default=0) * 1.1 or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 22, title, size=15),
        *_axis(top),
        *_legend(names),
    ]
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    for place, group in enumerate(groups):
        left = _LEFT + place * width
        label = f"concurrency {group}" if group else "requests at random times"
        parts.append(_text(left + width / 2, _HEIGHT - _BOTTOM + 18, label, anchor="middle"))
        bar = width * 0.8 / len(names)
        for index, name in enumerate(names):
            if (group, name) in bars:
                x = left + width * 0.1 + index * bar
                parts += _bar(x, bar * 0.9, bars[group, name], top, _colour(index))
    parts += [_text(_LEFT, _HEIGHT - 14, caption, size=10), "</svg>"]
    return "\n".join(parts) + "\n"


def _bar(x: float, width: float, samples: Sequence[float], top: float, colour: str) -> list[str]:
    median = statistics.median(samples)
    middle = x + width / 2
    return [
        f'<rect x="{x:.1f}" y="{_y(median, top):.1f}" width="{width:.1f}"'
        f' height="{_y(0, top) - _y(median, top):.1f}" fill="{colour}"/>',
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{_y(min(samples), top):.1f}"'
        f' y2="{_y(max(samples), top):.1f}" stroke="black"/>',
        _text(middle, _y(max(samples), top) - 4, f"{median:.3g}", anchor="middle", size=10),
    ]


def _axis(top: float) -> list[str]:
    lines = []
    for step in range(5):
        value = top * step / 4
        y = _y(value, top)
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
                     ' stroke="#dddddd"/>')  # fmt: skip
        lines.append(_text(_LEFT - 6, y + 4, f"{value:.3g}", anchor="end"))
    return lines


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for index, name in enumerate(names):
        x = _LEFT + index * 100
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{_colour(index)}"/>')
        parts.append(_text(x + 16, 46, name))
    return parts


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (value / top) * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
