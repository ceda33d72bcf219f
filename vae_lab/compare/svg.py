"""Drawing charts as SVG text: a panel with axes at round numbers, and marks in data coordinates.

Colours, fonts and line widths are in `report.css`, which knows light and dark; marks only have classes. Every text is
escaped here.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 380, 262  # of a panel, in units of which one is about a pixel
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 42  # margins around the plot
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
Point = tuple[float, float]


def steps(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) in an interval, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.8)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The same number of digits for all ticks of an axis, a true minus sign, thousands as k."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) or 1.0
    if step >= 1000:
        return [f"{value / 1000:g}k".replace("-", "−") if value else "0" for value in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if len(values) == 1:
        return [f"{values[0]:.4g}".replace("-", "−")]
    return [f"{value:,.{digits}f}".replace("-", "−") if value else "0" for value in values]


def extent(values: Iterable[float], pad: float = 0.06) -> tuple[float, float]:
    """The smallest interval around finite values, and a little more."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    margin = pad * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


class Panel:
    """One chart: a title, two axes, and what is drawn between them.

    Args:
        title: above it.
        x: title of the horizontal axis, with the unit.
        y: title of the vertical axis, with the unit.
        x_range: of the data.
        y_range: of the data.
        x_names: of places 0, 1, 2, ... instead of numbers.
        width: of the panel.
        height: of the panel.
        left: margin, for names of rows.
        y_names: as `x_names`.
        css: further classes.
        right: margin, for notes beside the plot.
    """

    def __init__(
        self,
        title: str,
        x: str,
        y: str,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_names: Sequence[str] = (),
        y_names: Sequence[str] = (),
        width: int = WIDTH,
        height: int = HEIGHT,
        left: int = LEFT,
        css: str = "",
        right: int = RIGHT,
    ):
        self.title, self.x_title, self.y_title = title, x, y
        self.x_range, self.y_range = x_range, y_range
        self.x_names, self.y_names = x_names, y_names
        self.width, self.height, self.css = width, height, css
        longest = 0 if y_names else max(map(len, tick_texts(steps(*y_range))))
        self.left = max(left, 22 + 7 * longest)
        self.right = right
        self.marks: list[str] = []
        self.beside: list[str] = []

    def x(self, value: float) -> float:
        """Where a value lies, from the left."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Where a value lies, from the top."""
        low, high = self.y_range
        return round(self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM), 1)

    def line(self, points: Sequence[Point], css: str, group: int | None = None, tip: str = "") -> None:
        """A line through points; a step in it is the caller's."""
        path = "M" + "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in points)
        self.marks.append(f'<path class="line {css}{of(group)}" d="{path}"{about(group, tip)}/>')

    def band(self, lower: Sequence[Point], upper: Sequence[Point], group: int | None = None) -> None:
        """The area between two lines."""
        path = "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in [*upper, *reversed(lower)])
        self.marks.append(f'<path class="band{of(group)}" d="M{path}Z"{about(group, "")}/>')

    def dot(self, x: float, y: float, css: str, group: int | None = None, tip: str = "", size: float = 4.5) -> None:
        """A mark at a point; each of some groups has a shape of its own."""
        shape = SHAPES[(group or 1) % len(SHAPES) - 1] if "mean" in css else "circle"
        path = outline(shape, self.x(x), self.y(y), size)
        self.marks.append(f'<path class="dot {css}{of(group)}" d="{path}"{about(group, tip)}/>')

    def bar(self, x: Point, y: Point, css: str, group: int | None = None, tip: str = "") -> None:
        """A rectangle from (x0, y0) to (x1, y1)."""
        left, right = sorted(map(self.x, x))
        top, bottom = sorted(map(self.y, y))
        box = f'x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}"'
        self.marks.append(f'<rect class="{css}{of(group)}" {box} rx="2"{about(group, tip)}/>')

    def text(self, x: float, y: float, text: str, css: str = "", shift: Point = (0, 0)) -> None:
        """A text that begins at a point, shifted by pixels."""
        place = f'x="{self.x(x) + shift[0]:g}" y="{self.y(y) + shift[1]:g}"'
        self.marks.append(f'<text class="{css}" {place}>{escape(text)}</text>')

    def note(self, y: float, text: str) -> None:
        """A text beside the plot, on its right."""
        place = f'x="{self.width - self.right + 5}" y="{self.y(y) + 4:g}"'
        self.beside.append(f'<text class="beside" {place}>{escape(text)}</text>')

    def svg(self) -> str:
        """The whole panel."""
        clip = f"c{zlib.crc32(repr((self.title, self.x_title, self.y_title, self.marks)).encode()):x}"
        plot = self.width - self.left - self.right, self.height - TOP - BOTTOM
        area = f'x="{self.left}" y="{TOP}" width="{plot[0]}" height="{plot[1]}"'
        label = escape(f"{self.title}: {self.y_title} against {self.x_title}", quote=True)
        return (
            f'<svg class="panel {self.css}" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{label}">'
            f'<clipPath id="{clip}"><rect {area}/></clipPath>'
            f'<text class="title" x="{self.left}" y="14">{escape(self.title)}</text>'
            f"{self._axes()}<g clip-path='url(#{clip})'>{''.join(self.marks)}</g>{''.join(self.beside)}</svg>"
        )

    def _axes(self) -> str:
        bottom, right = self.height - BOTTOM, self.width - self.right
        middle, centre = (TOP + bottom) / 2, (self.left + right) / 2
        parts = [
            f'<text class="axis" text-anchor="middle" x="{centre:g}" y="{self.height - 6}">'
            f"{escape(self.x_title)}</text>"
        ]
        if self.y_title:
            place = f'transform="translate(12 {middle:g}) rotate(-90)"'
            parts.append(f'<text class="axis" text-anchor="middle" {place}>{escape(self.y_title)}</text>')
        for value, text in self._ticks(self.x_range, self.x_names, max(3, (right - self.left) // 62)):
            x = self.x(value)
            if not self.x_names:
                parts.append(f'<line class="rule" x1="{x:g}" x2="{x:g}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(f'<text class="tick" text-anchor="middle" x="{x:g}" y="{bottom + 15}">{escape(text)}</text>')
        for value, text in self._ticks(self.y_range, self.y_names, 5):
            y = self.y(value)
            if not self.y_names:
                parts.append(f'<line class="rule" x1="{self.left}" x2="{right}" y1="{y:g}" y2="{y:g}"/>')
            parts.append(
                f'<text class="tick" text-anchor="end" x="{self.left - 6}" y="{y + 4:g}">{escape(text)}</text>'
            )
        return "".join(parts)

    def _ticks(self, interval: tuple[float, float], names: Sequence[str], count: int) -> list[tuple[float, str]]:
        if names:
            return list(enumerate(names))
        values = steps(*interval, count)
        return list(zip(values, tick_texts(values), strict=True))


def of(group: int | None) -> str:
    """The class of a mark that belongs to a group."""
    return f" g g{group}" if group is not None else ""


def about(group: int | None, tip: str) -> str:
    """What the report's script must know of a mark."""
    data = f' data-g="{group}"' if group is not None else ""
    return data + (f' data-tip="{escape(tip, quote=True)}"' if tip else "")


def outline(shape: str, x: float, y: float, r: float) -> str:
    """The path of a mark around a point; all shapes have about the same area."""
    if shape == "circle":
        return f"M{x - r:g} {y:g}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0Z"
    s, w = 0.89 * r, 0.35 * r
    corners = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "triangle": [(0, -1.25 * r), (1.15 * r, 0.8 * r), (-1.15 * r, 0.8 * r)],
        "down": [(0, 1.25 * r), (1.15 * r, -0.8 * r), (-1.15 * r, -0.8 * r)],
        "diamond": [(0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)],
        "cross": [(-w, -r * 1.1), (w, -r * 1.1), (w, -w), (r * 1.1, -w), (r * 1.1, w), (w, w), (w, r * 1.1),
                  (-w, r * 1.1), (-w, w), (-r * 1.1, w), (-r * 1.1, -w), (-w, -w)],
    }[shape]  # fmt: skip
    return "M" + "L".join(f"{x + dx:.4g} {y + dy:.4g}" for dx, dy in corners) + "Z"


def cut(text: str, length: int) -> str:
    """A text that is at most so long."""
    return text if len(text) <= length else text[: length - 1] + "…"
