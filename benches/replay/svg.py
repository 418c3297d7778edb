"""A line chart as SVG: as much as one figure of the notes needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 920, 460, 60, 40, 260, 50
COLOURS = ("#000000", "#7f7f7f", "#1f77b4", "#17becf", "#9467bd", "#d62728", "#ff7f0e", "#8c564b", "#2ca02c", "#e377c2")
DASHES = ("", "6 3", "2 2")

Points = Sequence[tuple[float, float]]


def chart(title: str, across: str, up: str, lines: Mapping[str, Points]) -> str:
    """One chart: x on a logarithmic axis with a line at each x that occurs, y from 0, the legend on the right."""
    xs = sorted({x for points in lines.values() for x, _ in points})
    top = max(y for points in lines.values() for _, y in points) * 1.05 or 1.0
    low, high = math.log(xs[0]), math.log(xs[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log(x) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 22, title, size=15),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, across, anchor="middle"),
        _text(LEFT, TOP - 4, up),
    ]
    labelled = -math.inf  # where the last label ends
    for x in xs:
        at, bottom = place(x, 0)
        parts.append(f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="#eeeeee"/>')
        label = f"{x:,.0f}" if x >= 1000 else f"{x:g}"
        if at - 4 * len(label) > labelled:
            parts.append(_text(at, bottom + 16, label, anchor="middle"))
            labelled = at + 4 * len(label)
    for y in _ticks(top):
        _, at = place(xs[0], y)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#eeeeee"/>')
        parts.append(_text(LEFT - 6, at + 4, f"{y:g}", anchor="end"))
    for number, (name, points) in enumerate(lines.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in points)
        style = f'fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"'
        parts.append(f'<path d="M{path}" {style}/>')
        level = TOP + 10 + 18 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 14} {level}h24" {style}/>')
        parts.append(_text(WIDTH - RIGHT + 44, level + 4, name))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _ticks(top: float) -> list[float]:
    """Round values up to the top, four to nine of them."""
    power = 10.0 ** math.floor(math.log10(top))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if top / (power * part) < 10)
    return [step * number for number in range(int(top / step) + 1)]
