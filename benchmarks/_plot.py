"""Line charts as SVG, with nothing but the standard library."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


WIDTH, HEIGHT = 470, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 42


@dataclass(frozen=True, slots=True)
class Style:
    """How one system is drawn in every chart."""

    label: str
    colour: str
    dash: str = ""
    width: float = 1.6


@dataclass(frozen=True, slots=True)
class Line:
    """A curve."""

    style: Style
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """
    What an axis shows, logarithmic.

    With *names* for its ticks it is linear: they are at 0, 1, 2, ...
    """

    title: str
    names: Sequence[str] = ()


class Scale:
    """From values to places on the screen, with ticks."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self._forward: Callable[[float], float] = float if axis.names else math.log10
        if axis.names:
            ticks = [float(i) for i in range(len(axis.names))]
        else:
            ticks = _decades(min(values), max(values))
        self.axis, self.ticks = axis, ticks
        a, b = self._forward(ticks[0]), self._forward(ticks[-1])
        self._start, self._factor, self._low = start, (end - start) / ((b - a) or 1), a

    def place(self, value: float) -> float:
        return self._start + (self._forward(value) - self._low) * self._factor

    def label(self, tick: float) -> str:
        return self.axis.names[int(tick)] if self.axis.names else short(tick)


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**e for e in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """1000 as 1k, 1000000 as 1M."""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def chart(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> str:
    """A figure with its title, or nothing where there is nothing to draw."""
    lines = [Line(line.style, _drawable(line.points, x)) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [point[0] for line in lines for point in line.points]
    ys = [point[1] for line in lines for point in line.points]
    across = Scale(x, xs, LEFT, WIDTH - RIGHT)
    up = Scale(y, ys, HEIGHT - BOTTOM, TOP)
    drawn = "".join(_curve(line, across, up) for line in lines)
    said = html.escape(title)
    return (
        f'<figure><figcaption>{said}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{said}">{_grid(across, up)}{drawn}</svg></figure>'
    )


def _drawable(points: Sequence[tuple[float, float]], x: Axis) -> list[tuple[float, float]]:
    # What is not a number is not over 0 either.
    return [(a, b) for a, b in points if (x.names or a > 0) and b > 0]


def _grid(across: Scale, up: Scale) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in up.ticks:
        at = up.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{up.label(tick)}</text>'
        )
    for tick in across.ticks:
        at = across.place(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{bottom}"/>')
        label = html.escape(across.label(tick))
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{label}</text>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{html.escape(across.axis.title)}</text>"
    )
    centre = (TOP + bottom) / 2
    parts.append(
        f'<text class="axis" transform="translate(13 {centre}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(up.axis.title)}</text>"
    )
    return "".join(parts)


def _curve(line: Line, across: Scale, up: Scale) -> str:
    style = line.style
    places = [(across.place(a), up.place(b)) for a, b in line.points]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    look = f'stroke="{style.colour}" stroke-width="{style.width}"'
    dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
    name = f"<title>{html.escape(style.label)}</title>"
    drawn = f'<path class="curve" d="{path}" {look}{dash}>{name}</path>'
    if len(places) <= 12:
        drawn += "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{1 + style.width:.1f}" fill="{style.colour}">'
            f"{name}</circle>"
            for a, b in places
        )
    return drawn


def legend(styles: Sequence[Style]) -> str:
    """What the colours mean."""
    entries = []
    for style in styles:
        dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
        entries.append(
            f'<span><svg width="30" height="10"><path d="M1 5H29" stroke="{style.colour}" '
            f'stroke-width="{style.width}"{dash}/></svg> {html.escape(style.label)}</span>'
        )
    return f'<p class="legend">{"".join(entries)}</p>'
