"""The picture of bench.curves: one panel for each filter, recall to the right, searches a second upwards."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import Final, Protocol

from bench.kinds_beside import CALLERS
from bench.kinds_shown import axes, svg

BEGIN: Final = "<!-- measured by python -m bench.curves -->\n"
PICTURE: Final = "curves.svg"
_PANEL, _HEIGHT, _LEFT, _TOP, _BOTTOM, _GAP = 300, 400, 56, 34, 96, 20
_LOW, _HIGH = 0.8, 1.0
_COLOURS: Final = ("#1f5fbf", "#d2691e", "#777777")
"""By who it is, in the order of the curves."""


class Rated(Protocol):
    """bench.curves.Point."""

    @property
    def recall(self) -> float: ...
    def rates(self, *, processor: bool) -> Sequence[float]: ...


class Drawn(Protocol):
    """bench.curves.Curve."""

    @property
    def who(self) -> str: ...
    @property
    def share(self) -> float: ...
    @property
    def points(self) -> Sequence[Rated]: ...


def picture(curves: Sequence[Drawn], *, processor: bool) -> str:
    """SVG. processor: rates by processor time. They have a logarithmic axis, the same in all panels. Dashed lines are
    of the first number of callers, full ones of the last."""
    shares = list(dict.fromkeys(curve.share for curve in curves))
    who = list(dict.fromkeys(curve.who for curve in curves))
    rates = [rate for curve in curves for point in curve.points for rate in point.rates(processor=processor)]
    low, high = floor(2 * log10(min(rates))) / 2, ceil(2 * log10(max(rates))) / 2
    parts: list[str] = []
    for at, share in enumerate(shares):
        left = _LEFT + at * (_PANEL + _GAP)
        up = "searches in a second of processor time" if processor else "searches a second"
        parts += _panel(left, share, low, high, up if at == 0 else "")
        for curve in curves:
            if curve.share == share:
                parts += _lines(left, curve, processor, _COLOURS[who.index(curve.who)], low, high)
    return svg(_LEFT + len(shares) * (_PANEL + _GAP), _HEIGHT, [*parts, *_legend(who)])


def _y(rate: float, low: float, high: float) -> float:
    return _HEIGHT - _BOTTOM - (log10(rate) - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)


def _x(left: float, recall: float) -> float:
    return left + (recall - _LOW) / (_HIGH - _LOW) * (_PANEL - 16)


def _panel(left: float, share: float, low: float, high: float, up: str) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    title = "all vectors" if share == 1 else f"a filter that allows {share:.0%}"
    parts = axes(left, _TOP, left + _PANEL - 16, bottom, "recall@10", up)
    parts.append(f'<text x="{left + (_PANEL - 16) / 2:.0f}" y="18" text-anchor="middle">{title}</text>')
    for recall in (0.8, 0.85, 0.9, 0.95, 1.0):
        x = _x(left, recall)
        parts.append(f'<path d="M{x:.0f} {_TOP}V{bottom}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle" font-size="10">{recall:g}</text>')
    marks = [digit * 10.0**power for power in range(floor(low), ceil(high) + 1) for digit in (1, 3)]
    for rate in (rate for rate in marks if low <= log10(rate) <= high):
        y = _y(rate, low, high)
        parts.append(f'<path d="M{left} {y:.0f}H{left + _PANEL - 16}" stroke="#dddddd"/>')
        if up:
            parts.append(f'<text x="{left - 4}" y="{y + 4:.0f}" text-anchor="end" font-size="10">{rate:,.0f}</text>')
    return parts


def _lines(left: float, curve: Drawn, processor: bool, colour: str, low: float, high: float) -> list[str]:
    parts = []
    for at, callers in enumerate(CALLERS):
        rates = [point.rates(processor=processor)[at] for point in curve.points]
        recalls = [point.recall for point in curve.points]
        places = [(_x(left, recall), _y(rate, low, high)) for recall, rate in zip(recalls, rates, strict=True)]
        dashed = ' stroke-dasharray="5 4"' if at == 0 else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed}/>')
        told = f"{escape(curve.who)}, {callers} caller{'s' if callers > 1 else ''}"
        for (x, y), recall, rate in zip(places, recalls, rates, strict=True):
            title = f"<title>{told}: recall {recall:.3f}, {rate:,.0f}/s</title>"
            inside = "white" if at == 0 else colour
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{inside}" stroke="{colour}">{title}</circle>')
    return parts


def _legend(who: list[str]) -> list[str]:
    parts, y = [], _HEIGHT - 20
    for at, name in enumerate(who):
        for line, callers in enumerate(CALLERS):
            x = _LEFT + (at * len(CALLERS) + line) * 158
            dashed = ' stroke-dasharray="5 4"' if line == 0 else ""
            parts.append(f'<path d="M{x} {y - 4}H{x + 26}" stroke="{_COLOURS[at]}" stroke-width="1.5"{dashed}/>')
            text = f"{name}, {callers} caller{'s' if callers > 1 else ''}"
            parts.append(f'<text x="{x + 31}" y="{y}" font-size="11">{escape(text)}</text>')
    return parts
