"""What was measured of the kinds of index, as the table and the picture of docs/index-selection.md."""

from __future__ import annotations

from html import escape
from math import log10
from pathlib import Path
from typing import Final

from bench.kinds_beside import CALLERS, Rate

END: Final = "<!-- end -->\n"
_WIDTH, _HEIGHT, _MARGIN = 640, 360, 56


def table(columns: list[str], lines: list[list[str]]) -> str:
    """In Markdown."""
    lines = [columns, *lines]
    shown = ["| " + " | ".join(line) + " |\n" for line in lines]
    return "".join([shown[0], "|---" * len(columns) + "|\n", *shown[1:]])


def rated(found: list[Rate]) -> list[str]:
    """Cells: processor time of a search by one caller, and the rate of each number of callers."""
    return [f"{found[0].microseconds:,.0f}", *(f"{rate.per_second:,.0f}" for rate in found)]


RATED: Final = ["us", *(f"{callers} caller{'s' if callers > 1 else ''}, /s" for callers in CALLERS)]


def picture(points: list[tuple[str, float, float, float]]) -> str:
    """SVG of (kind, bytes a vector of what searches read, microseconds, recall): both axes are logarithmic."""
    sizes, costs = [log10(max(1.0, point[1])) for point in points], [log10(point[2]) for point in points]
    low_x, high_x, low_y, high_y = min(sizes) - 0.1, max(sizes) + 0.35, min(costs) - 0.15, max(costs) + 0.15
    across, up = "bytes of a vector that searches read", "processor time of a search, us"
    parts = axes(_MARGIN, 16, _WIDTH - 16, _HEIGHT - _MARGIN, across, up)
    for at, ((kind, size, cost, recall), x_at, y_at) in enumerate(zip(points, sizes, costs, strict=True)):
        x = _MARGIN + (x_at - low_x) / (high_x - low_x) * (_WIDTH - 16 - _MARGIN)
        y = _HEIGHT - _MARGIN - (y_at - low_y) / (high_y - low_y) * (_HEIGHT - 16 - _MARGIN)
        text = escape(f"{kind}: {size:,.0f} B, {cost:,.0f} us, recall {recall:.3f}")
        anchor, beside = ("end", -8) if x > _WIDTH * 0.7 else ("start", 8)
        parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="#1f5fbf"/>')
        above = 18 if at % 2 else -8  # neighbours in the table lie near each other
        parts.append(f'<text x="{x + beside:.0f}" y="{y + above:.0f}" text-anchor="{anchor}">{text}</text>')
    return svg(_WIDTH, _HEIGHT, parts)


def axes(left: float, top: float, right: float, bottom: float, across: str, up: str) -> list[str]:
    """Two lines, and what they are of; up: "" for none."""
    middle = (top + bottom) / 2
    return [
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="black"/>',
        f'<text x="{(left + right) / 2}" y="{bottom + 42}" text-anchor="middle">{across}</text>',
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{up}</text>' if up else "",
    ]


def svg(width: float, height: float, parts: list[str]) -> str:
    """A whole picture on white."""
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
    background = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([begin + 'font-size="12">', background, *filter(None, parts), "</svg>\n"])


def place(rows: int, dimensions: int) -> tuple[str, str]:
    """The mark above the tables of so many vectors, and the name of their picture."""
    return f"<!-- measured by python -m bench.kinds, {rows} x {dimensions} -->\n", f"index-selection-{rows}.svg"


def write(document: Path, text: str, drawn: str, begin: str, picture: str) -> None:
    """Put the table into a document, between its marks, and the picture beside it. Raises ValueError without marks."""
    place_text(document, text, begin)
    document.with_name(picture).write_text(drawn, "utf-8")


def place_text(document: Path, text: str, begin: str) -> None:
    """Put a text into a document between a mark and END. Raises ValueError without them."""
    before, mark, rest = document.read_text("utf-8").partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{document} lacks the lines {begin.strip()} and {END.strip()}")
    document.write_text(before + begin + "\n" + text + "\n" + END + after, "utf-8")
