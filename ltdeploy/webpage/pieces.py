"""The small pieces of a report: figures as text, marks and interval plots."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = [
    "IntervalScale",
    "breakable",
    "mark",
    "number",
    "sentence",
    "signed",
    "small",
    "tint",
    "whole",
]

_MARKS = {
    "pass": '<path d="M3 8.5 6.5 12 13 4.5"/>',
    "fail": '<path d="m4 4 8 8M12 4l-8 8"/>',
    "inconclusive": '<path d="M5 5.6a3 3 0 1 1 4.3 2.7C8.4 8.8 8 9.4 8 10.3M8 13.4v.1"/>',
    "warned": '<path d="M8 3v6.5M8 13v.1"/>',
    "behind": '<path d="m3.5 5.5 4.5 5 4.5-5"/>',
    "equal": '<path d="M3 6h10M3 10h10"/>',
    "start": '<circle cx="8" cy="8" r="4.5"/>',
}


class IntervalScale:
    """The common scale of a column of interval plots: figures to pixels.

    Parameters
    ----------
    figures : what must find room on the scale; None is passed over.
    line : figure at which a thin vertical stands, and how the head of the column calls it.
    limit : figure below which is shaded, and how the head calls it; None shades nothing, and the
        head has ticks with their figures instead.
    """

    width_px, height_px, pad_px = 200, 30, 12
    _letter_px, _axis_px, _most_ticks = 5.6, 46, 4

    def __init__(
        self,
        figures: Iterable[float | None],
        *,
        line: tuple[float, str],
        limit: tuple[float, str] | None = None,
    ) -> None:
        known = [line[0], *(() if limit is None else (limit[0],))]
        known += [figure for figure in figures if figure is not None]
        self.line, self.limit = line, limit
        self.low, self.high = min(known), max(known)

    def x(self, value: float) -> float:
        """Return the pixel of a figure."""
        span = (self.high - self.low) or 1.0
        inner = self.width_px - 2 * self.pad_px
        return float(round(self.pad_px + (value - self.low) / span * inner, 1))

    def axis(self) -> str:
        """Return the head of the column: where line and limit are, or line and ticks."""
        at, text = self.x(self.line[0]), self.line[1]
        if self.limit is None:
            return self._ticked_axis()
        half = self._letter_px * len(text) / 2
        anchor = "start" if at < half else "end" if at > self.width_px - half else "middle"
        labels = f'<text x="{at}" y="26" text-anchor="{anchor}">{escape(text)}</text>'
        limit, limit_text = self.x(self.limit[0]), self.limit[1]
        wide = self._letter_px * len(limit_text)
        # The limit's label stands left of its line where there is room, else right of it; where
        # the line is too near for both, the line's gives way.
        left = limit >= wide
        side = "end" if left else "start"
        limit_label = f'<text x="{limit}" y="26" text-anchor="{side}">{escape(limit_text)}</text>'
        if not left and at - limit <= wide + half + 6:
            labels = ""
        return self._svg(limit_label + labels, f"scale from {limit_text} to {text}")

    def plot(
        self,
        value: float | None,
        low: float | None,
        high: float | None,
        *,
        label: str,
        tint: int = 3,
    ) -> str:
        """Return one figure with its interval; `label` says the same in words."""
        at, height = self.x(self.line[0]), self.height_px
        shapes = f'<path class="zero" d="M{at} 0V{height}"/>'
        if self.limit is None:
            grid = "".join(f"M{self.x(tick)} 0V{height}" for tick in self.ticks())
            shapes = f'<path class="tick" d="{grid}"/>{shapes}'
        else:
            limit = self.x(self.limit[0])
            shapes = (
                f'<rect class="zone" x="0" y="0" width="{limit}" height="{height}"/>'
                f'<path class="margin" d="M{limit} 0V{height}"/>{shapes}'
            )
        if low is not None and high is not None:
            left, right = self.x(low), self.x(high)
            shapes += f'<path class="range" d="M{left} 15H{right}M{left} 10V20M{right} 10V20"/>'
        if value is not None:
            shapes += f'<circle class="dot" cx="{self.x(value)}" cy="15" r="5"/>'
        return self._svg(shapes, label, f" tint-{tint}")

    def ticks(self) -> list[float]:
        """Return round figures on the scale, few enough for their labels.

        >>> IntervalScale([27.5, 38.7], line=(28.3, "no fix")).ticks()
        [30.0, 35.0]
        """
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        decade = 10.0 ** math.floor(math.log10(span / self._most_ticks))
        step = next(s * decade for s in (1, 2, 5, 10) if span / (s * decade) <= self._most_ticks)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [float(f"{step * place:.9g}") for place in range(first, last + 1)]

    def _ticked_axis(self) -> str:
        """Return the line's name above, and ticks with their figures beneath."""
        ticks, height = [(self.x(tick), tick) for tick in self.ticks()], self._axis_px
        marks = "".join(f"M{at} {height - 5}V{height}" for at, _ in ticks)
        shapes = f'<path class="tick" d="M0 {height - 0.5}H{self.width_px}{marks}"/>'
        shapes += "".join(
            f'<text x="{at}" y="{height - 10}" text-anchor="middle">{number(tick, 3, trim=True)}'
            "</text>"
            for at, tick in ticks
        )
        at, text = self.x(self.line[0]), escape(self.line[1])
        # Always centred, so that it is seen which place is meant.
        shapes += f'<text class="named" x="{at}" y="12" text-anchor="middle">{text}</text>'
        shapes += f'<path class="zero" d="M{at} 17V21M{at} {height - 5}V{height}"/>'
        label = f"scale from {number(self.low, 1)} to {number(self.high, 1)}, {self.line[1]} marked"
        return self._svg(shapes, label, " axis", height)

    def _svg(self, content: str, label: str, extra: str = "", height: int | None = None) -> str:
        return (
            f'<svg class="interval{extra}" '
            f'viewBox="0 0 {self.width_px} {height or self.height_px}" '
            f'role="img" aria-label="{escape(label)}">{content}</svg>'
        )


def breakable(name: str) -> str:
    """Return a method's name as HTML that may break between its words.

    >>> breakable("tau_norm:bias=drop")
    'tau_<wbr>norm:<wbr>bias=<wbr>drop'
    """
    return "<wbr>".join(escape(part) for part in re.split("(?<=[_:+=,])", name) if part)


def mark(style: str, text: str) -> str:
    """Return a sign and a word: colour is never the only difference."""
    return (
        f'<span class="mark {style}"><svg viewBox="0 0 16 16" fill="none" stroke="currentColor" '
        f'stroke-width="2.2" stroke-linecap="round" aria-hidden="true">{_MARKS[style]}</svg>'
        f"{text}</span>"
    )


def number(value: float | None, digits: int, *, trim: bool = False) -> str:
    """Return a figure with a true minus, or a dash where there is none.

    Parameters
    ----------
    trim : drop zeros at the end.

    >>> number(-1.5, 2), number(-0.01, 1), number(30.0, 3, trim=True), number(None, 1)
    ('−1.50', '0.0', '30', '–')
    """
    if value is None:
        return "–"
    text = f"{round(value, digits) or 0.0:.{digits}f}".replace("-", "−")
    return text.rstrip("0").rstrip(".") if trim and digits else text


def sentence(text: str) -> str:
    """Return a sentence as HTML in which no option is broken after its hyphens.

    >>> sentence("give --train")
    'give <span class="whole">--train</span>'
    """
    return re.sub(r"--[\w-]+", r'<span class="whole">\g<0></span>', escape(text))


def signed(value: float | None, digits: int = 2) -> str:
    """Return points with a sign, or a dash where nothing was measured.

    >>> signed(-1.5), signed(0.0), signed(None)
    ('−1.50', '0.00', '–')
    """
    if value is None:
        return "–"
    rounded = round(value, digits)
    return f"{value:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def small(value: float | None) -> str:
    """Return a figure of any size in two digits."""
    return "–" if value is None else f"{value:.2g}".replace("-", "−")


def whole(value: int | None) -> str:
    """Return a count with its thousands parted."""
    return "–" if value is None else f"{value:,}"


def tint(groups: Sequence[str], group: str) -> int:
    """Return the number of a group's colour and shape; 3 is for all classes together."""
    return groups.index(group) % 3 if group in groups else 3
