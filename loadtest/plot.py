"""A line plot as SVG: a few curves with their spread, axes with round numbers, no dependency.

Made for figures of a bench: few points, a horizontal axis that grows by powers of ten or evenly, a vertical axis that starts
at zero so that a small change looks small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 150, 44, 56
_COLOURS = ("#1f5fa8", "#c2571a", "#2f7d4f", "#7d4a9e", "#66666e")


@dataclass(frozen=True, slots=True)
class Curve:
    """Points from left to right; `spread` holds the lowest and highest of each where there are several."""

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float]] = ()


def draw(title: str, across: str, up: str, curves: Sequence[Curve], *, logarithmic: bool = False) -> str:
    """The whole picture; a logarithmic axis puts 0 one step before the smallest number."""
    every = [point for curve in curves for point in curve.points]
    highest = max((value for _, value in every), default=1.0)
    highest = max([highest, *(high for curve in curves for _, high in curve.spread)])
    ticks = _choose_ticks(highest)
    place = _Axis([x for x, _ in every], logarithmic)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + place.share(x) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y / ticks[-1] * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in ticks:
        _, y = at(place.first, tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_write(tick)}</text>')
    for mark in place.marks:
        x, y = at(mark, 0)
        parts.append(f'<path d="M{x:.1f} {y:.1f}v5" stroke="#333333"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 19:.1f}" text-anchor="middle">{_write(mark)}</text>')
    base = _HEIGHT - _BOTTOM
    parts.append(f'<path d="M{_LEFT} {_TOP}V{base}H{_WIDTH - _RIGHT}" fill="none" stroke="#333333"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 14}" text-anchor="middle">{escape(across)}</text>')
    parts.append(
        f'<text transform="translate(18 {(_TOP + base) / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    for number, curve in enumerate(curves):
        parts += _draw_curve(curve, _COLOURS[number % len(_COLOURS)], at)
        y = _TOP + 14 + 20 * number
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<path d="M{_WIDTH - _RIGHT + 14} {y}h18" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 38}" y="{y + 4}">{escape(curve.name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


# --- private -------------------------------------------------------------------------------------------------------


class _Axis:
    """The horizontal axis: where a number lies between 0 and 1."""

    def __init__(self, numbers: Sequence[float], logarithmic: bool) -> None:
        ordered = sorted(set(numbers)) or [0.0]
        self.first = ordered[0]
        self.marks = ordered if logarithmic or len(ordered) <= 8 else _choose_ticks(ordered[-1])
        self._logarithmic = logarithmic
        smallest = next((number for number in ordered if number > 0), 1.0)
        self._zero = math.log10(smallest) - 1
        self._low, self._high = self._position(ordered[0]), self._position(ordered[-1])
        if not logarithmic and len(ordered) > 8:
            self._low, self._high = 0.0, self.marks[-1]

    def share(self, number: float) -> float:
        """0 at the left end, 1 at the right end."""
        width = self._high - self._low
        return 0.5 if width == 0 else (self._position(number) - self._low) / width

    def _position(self, number: float) -> float:
        if not self._logarithmic:
            return number
        return self._zero if number <= 0 else math.log10(number)


def _draw_curve(curve: Curve, colour: str, at: object) -> list[str]:
    assert callable(at)
    places = [at(x, y) for x, y in curve.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>']
    if len(places) <= 30:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
    for (x, _), (low, high) in zip(curve.points, curve.spread, strict=False):
        (left, bottom), (_, top) = at(x, low), at(x, high)
        parts.append(f'<path d="M{left:.1f} {bottom:.1f}V{top:.1f}" stroke="{colour}" stroke-width="1"/>')
    return parts


def _choose_ticks(highest: float) -> list[float]:
    """Round numbers from 0 to at least the highest, four to eight of them."""
    step = 10.0 ** math.floor(math.log10(highest or 1.0))
    for part in (0.2, 0.25, 0.5, 1.0, 2.0):
        if highest / (step * part) <= 6:
            step *= part
            break
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _write(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:g} M"
    return f"{number:,g}"
