"""The small pieces of a report: figures as text, verdict marks and interval plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .result import signed

__all__ = ["IntervalScale", "mark", "number", "small", "tone", "warning", "whole"]

_VERDICTS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Undecided"}
_MARKS = {
    "pass": '<path d="M3 8.5 6.5 12 13 4.5"/>',
    "fail": '<path d="m4 4 8 8M12 4l-8 8"/>',
    "inconclusive": '<path d="M5 5.6a3 3 0 1 1 4.3 2.7C8.4 8.8 8 9.4 8 10.3M8 13.4v.1"/>',
    "warned": '<path d="M8 3v6.5M8 13v.1"/>',
}


class IntervalScale:
    """The common scale of the interval plots: points of accuracy to pixels."""

    width_px, height_px, pad_px = 200, 30, 8

    def __init__(self, figures: Sequence[Mapping[str, Any]], margin: float) -> None:
        ends: list[float | None] = [
            f[key] for f in figures for key in ("ci_low", "ci_high", "difference")
        ]
        known = [end for end in ends if end is not None]
        self.margin = margin
        self.low: float = min([-2 * margin, *known])
        self.high: float = max([margin, *known])

    def x(self, value: float) -> float:
        """Return the pixel of a difference."""
        span = (self.high - self.low) or 1.0
        inner = self.width_px - 2 * self.pad_px
        return round(self.pad_px + (value - self.low) / span * inner, 1)

    def axis(self) -> str:
        """Return the head of the column: where the margin and zero are."""
        margin, zero = self.x(-self.margin), self.x(0)
        text = f"{number(-self.margin, 1)} margin"
        # The label stands left of its line where there is room, else right of it; where zero is
        # too near for both, zero gives way.
        left = margin >= 60
        labels = (
            f'<text x="{margin}" y="26" text-anchor="{"end" if left else "start"}">{text}</text>'
        )
        if left or zero - margin > 85:
            labels += f'<text x="{zero}" y="26" text-anchor="middle">0</text>'
        return self._svg(labels, f"scale from {text} to 0")

    def plot(self, figures: Mapping[str, Any], tint: int) -> str:
        """Return one interval: shaded is what lies beyond the margin."""
        margin, zero, height = self.x(-self.margin), self.x(0), self.height_px
        shapes = (
            f'<rect class="zone" x="0" y="0" width="{margin}" height="{height}"/>'
            f'<path class="margin" d="M{margin} 0V{height}"/>'
            f'<path class="zero" d="M{zero} 0V{height}"/>'
        )
        text = f"difference {signed(figures['difference'])} points"
        if figures["ci_low"] is not None and figures["ci_high"] is not None:
            low, high = self.x(figures["ci_low"]), self.x(figures["ci_high"])
            shapes += f'<path class="range" d="M{low} 15H{high}M{low} 10V20M{high} 10V20"/>'
            text += f", interval {signed(figures['ci_low'])} to {signed(figures['ci_high'])}"
        if figures["difference"] is not None:
            shapes += f'<circle class="dot" cx="{self.x(figures["difference"])}" cy="15" r="5"/>'
        return self._svg(shapes, f"{text}; margin {signed(-self.margin)}", f" tint-{tint}")

    def _svg(self, content: str, label: str, extra: str = "") -> str:
        return (
            f'<svg class="interval{extra}" viewBox="0 0 {self.width_px} {self.height_px}" '
            f'role="img" aria-label="{label}">{content}</svg>'
        )


def tone(verdict: str | None) -> str:
    """Return the style class of a verdict."""
    return verdict if verdict in _VERDICTS else "inconclusive"


def mark(verdict: str | None) -> str:
    """Return a verdict as a sign and a word: colour is never the only difference."""
    if verdict is None:
        return '<span class="quiet">–</span>'
    style = tone(verdict)
    return _sign(style, _VERDICTS[style])


def warning(text: str) -> str:
    """Return what a verdict alone would hide, as a sign and words."""
    return _sign("warned", text)


def _sign(style: str, text: str) -> str:
    return (
        f'<span class="mark {style}"><svg viewBox="0 0 16 16" fill="none" stroke="currentColor" '
        f'stroke-width="2.2" stroke-linecap="round" aria-hidden="true">{_MARKS[style]}</svg>'
        f"{text}</span>"
    )


def number(value: float | None, digits: int) -> str:
    """Return a figure with a true minus, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def small(value: float | None) -> str:
    """Return a figure of any size in two digits."""
    return "–" if value is None else f"{value:.2g}".replace("-", "−")


def whole(value: int | None) -> str:
    """Return a count with its thousands parted."""
    return "–" if value is None else f"{value:,}"
