"""A column of interval plots whose scale no single wide interval stretches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from ..webpage.pieces import IntervalScale

__all__ = ["ClippedScale"]

_USUAL_WIDTHS = 3.0  # an interval that reaches further beyond all figures is cut
_ARROW_PX = 9


class ClippedScale(IntervalScale):
    """A scale on which intervals that reach far beyond all figures end in an arrow.

    Parameters
    ----------
    spreads : ``value, low, high`` of each plot.
    line : as of :class:`~ltdeploy.webpage.pieces.IntervalScale`.
    """

    def __init__(self, spreads: Sequence[Mapping[str, float]], *, line: tuple[float, str]) -> None:
        values = [line[0], *(spread["value"] for spread in spreads)]
        usual = median([s["high"] - s["low"] for s in spreads]) if spreads else 0.0
        room = max(max(values) - min(values), _USUAL_WIDTHS * usual)
        least, most = min(values) - room, max(values) + room
        ends = (min(max(s[end], least), most) for s in spreads for end in ("low", "high"))
        super().__init__([*values, *ends], line=line)

    def plot(
        self,
        value: float | None,
        low: float | None,
        high: float | None,
        *,
        label: str,
        tint: int = 3,
    ) -> str:
        """Return one figure with its interval, an arrow where that goes on beyond the scale."""
        if low is None or high is None:
            return super().plot(value, low, high, label=label, tint=tint)
        ends = max(low, self.low), min(high, self.high)
        drawn = super().plot(value, *ends, label=label, tint=tint)
        arrows = ""
        for cut, end, way in ((low < self.low, ends[0], -1), (high > self.high, ends[1], 1)):
            if cut:
                at = self.x(end)
                arrows += f'<path class="dot" d="M{at} 9L{at + way * _ARROW_PX:.1f} 15L{at} 21Z"/>'
        return drawn.removesuffix("</svg>") + arrows + "</svg>"
