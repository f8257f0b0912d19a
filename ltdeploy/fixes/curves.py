"""The curves that classes draw over the strengths of a fix, and which of them can be first.

Along a family of strengths τ each class of an image draws a curve: a line ``z_c + τ g_c`` under
logit adjustment, an exponential ``(z_c − b_c) exp(τ h_c)`` under τ-normalisation. Of two curves of
one family the difference (of lines) or the ratio (of exponentials) is monotone in τ, so it is
largest at an end of any interval. Let a be the class that wins at the lowest strength, b the one
that wins at the highest, τ* where they cross. A class below a at both ends of the left part and
below b at both ends of the right part is nowhere first. Three passes over a block of rows that
stays in the cache therefore leave a handful of classes, and only those are evaluated at every
strength, in the arithmetic of the plain loop: the labels are the same, ties included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..errors import FixError
from .affine import AffineMap
from .logit_map import LogitMap

__all__ = ["Curves", "curves_of", "require_finite", "winners"]

Float64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]

_SAME = 1e-12  # how far fitted maps may be off the curves that they are taken for, relative
_SLACK = 16.0  # in units of rounding: what the plain loop's own arithmetic may turn round


@final
@dataclass(frozen=True, eq=False)
class Curves:
    """Maps ``z * scale + shift`` of a family; arrays in the dtype that labels are computed in.

    Parameters
    ----------
    kind : of which family they are.
    scale, shift : arrays of shape (C, S), or None where they change nothing.
    slopes : g or h, array of shape (C,), float64.
    first, last : the columns of the lowest and of the highest strength.
    span : the distance between these two.
    largest_shift : in absolute value.
    """

    kind: Literal["lines", "exponentials"]
    scale: FloatArray | None
    shift: FloatArray | None
    slopes: Float64
    first: int
    last: int
    span: float
    largest_shift: float

    def at(self, logits: FloatArray, column: int) -> FloatArray:
        """Return a block of logits mapped at one strength; never ``logits`` itself."""
        if self.scale is None and self.shift is None:
            return logits.copy()
        if self.scale is None:
            assert self.shift is not None
            return logits + np.ascontiguousarray(self.shift[:, column])
        mapped: FloatArray = logits * np.ascontiguousarray(self.scale[:, column])
        if self.shift is not None:
            mapped += np.ascontiguousarray(self.shift[:, column])
        return mapped

    def advanced(self, low: FloatArray, steps: Float64, out: FloatArray) -> FloatArray:
        """Return curves ``low`` (rows, C), at the lowest strength, moved on by a step per row."""
        np.multiply(steps.astype(low.dtype)[:, None], self.slopes.astype(low.dtype), out=out)
        if self.kind == "lines":
            return np.add(out, low, out=out)
        return np.multiply(np.exp(out, out=out), low, out=out)

    def crossing(self, low_a: Float64, low_b: Float64, slope: Float64) -> Float64:
        """Return how far above the lowest strength a and b cross, given b's slope less a's."""
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = low_a - low_b if self.kind == "lines" else np.log(low_a / low_b)
            steps = gap / slope
        steps[~np.isfinite(steps)] = 0.0  # any strength will do, this one just prunes less
        crossing: Float64 = np.clip(steps, 0.0, self.span)
        return crossing


def curves_of(maps: Sequence[LogitMap], strengths: Float64, dtype: npt.DTypeLike) -> Curves | None:
    """Recognise a family by the numbers of its maps; None where they follow neither.

    Parameters
    ----------
    maps : one per strength.
    strengths : array of shape (S,).
    dtype : what labels are computed in.
    """
    diagonal = [one for one in maps if isinstance(one, AffineMap) and one.is_diagonal]
    if len(diagonal) != len(maps):
        return None
    scale = np.stack([one.scale for one in diagonal])
    shift = np.stack([one.shift for one in diagonal])
    first, last = int(strengths.argmin()), int(strengths.argmax())
    steps = strengths - strengths[first]
    kind: Literal["lines", "exponentials"] = "lines"
    slopes = _slopes(shift, steps) if (scale == scale[0]).all() else None
    if slopes is None and (scale > 0).all():
        offset = shift / scale
        if np.abs(offset - offset[0]).max() <= _SAME * np.abs(offset).max():
            kind, slopes = "exponentials", _slopes(np.log(scale), steps)
    if slopes is None:
        return None
    return Curves(
        kind,
        None if (scale == 1).all() else np.ascontiguousarray(scale.T, dtype=dtype),
        np.ascontiguousarray(shift.T, dtype=dtype) if shift.any() else None,
        slopes,
        first,
        last,
        float(steps[last]),
        float(np.abs(shift).max()),
    )


def _slopes(curves: Float64, steps: Float64) -> Float64 | None:
    """Return the slope per class if ``curves`` (S, C) are lines over ``steps`` (S,), else None."""
    low, high = curves[steps.argmin()], curves[steps.argmax()]
    slopes = (high - low) / steps.max() if steps.any() else np.zeros_like(low)
    off = np.abs(curves - low - steps[:, None] * slopes).max()
    return slopes if off <= _SAME * (1.0 + np.abs(curves).max()) else None


def winners(blocks: Iterable[FloatArray], curves: Curves, start: int, top1: Labels) -> None:
    """Fill ``top1`` (rows, S) with the first class of each row at each strength.

    Parameters
    ----------
    blocks : the rows' logits, a few rows at a time.
    start : number of the first row among all images, for messages.
    """
    rows, parts = 0, []
    for logits in blocks:
        row, label, logit = _candidates(logits, curves, start + rows)
        parts.append((row + rows, label, logit))
        rows += len(logits)
    row, label, logit = (np.concatenate(part) for part in zip(*parts, strict=True))
    _evaluate(row, label, logit, curves, top1)


def _candidates(
    logits: FloatArray, curves: Curves, start: int
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return row, label and logit of whatever may be first, by row and then by label."""
    rows = np.arange(len(logits))
    low, high = curves.at(logits, curves.first), curves.at(logits, curves.last)
    a, b = low.argmax(axis=1), high.argmax(axis=1)
    low_a, low_b = low[rows, a].astype(np.float64), low[rows, b].astype(np.float64)
    high_b = high[rows, b].astype(np.float64)
    require_finite(np.abs(low_a) + np.abs(high_b), start)

    of_a, of_b = curves.slopes[a], curves.slopes[b]
    steps = curves.crossing(low_a, low_b, of_b - of_a)
    if curves.kind == "lines":
        meet = np.minimum(low_a + steps * of_a, low_b + steps * of_b)
    else:
        meet = np.minimum(low_a * np.exp(steps * of_a), low_b * np.exp(steps * of_b))

    limits = _limits(np.stack([low_a, meet, high_b]), curves, logits.dtype)
    kept = low >= limits[0][:, None]
    kept |= high >= limits[2][:, None]
    limits[1][a == b] = np.inf  # both parts end where the two ends have been looked at
    if (a != b).any():
        kept |= curves.advanced(low, steps, out=high) >= limits[1][:, None]
    flat = np.flatnonzero(kept)
    row, label = np.divmod(flat, logits.shape[1])
    return row, label, logits.ravel()[flat]


def _limits(tops: Float64, curves: Curves, dtype: np.dtype[np.floating]) -> FloatArray:
    """Return how low a curve may be and still be first by rounding, for ``tops`` (3, rows)."""
    unit = _SLACK * max(float(np.finfo(dtype).eps), _SAME)
    sizes = np.abs(tops)
    absolute = unit * curves.largest_shift + _SLACK * float(np.finfo(dtype).tiny)
    if curves.kind == "lines":
        slack = unit * sizes.max(axis=0) + absolute
    else:  # the ratio is what is monotone, so the slack must be a share of the curve
        share = absolute / np.maximum(sizes.min(axis=0), np.finfo(np.float64).tiny)
        slack = (unit + share) * sizes + absolute
    limits: FloatArray = (tops - slack).astype(dtype)
    return limits


def _evaluate(
    row: IntArray, label: IntArray, logit: FloatArray, curves: Curves, top1: Labels
) -> None:
    """Fill ``top1`` (rows, S) from the candidates: the first of every row, then the second, …"""
    counts = np.bincount(row, minlength=len(top1))
    starts = np.cumsum(counts) - counts
    top1[:] = label[starts][:, None]
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts > 1)]
    best = np.full((len(order), top1.shape[1]), -np.inf, dtype=logit.dtype)
    winner = np.empty(best.shape, dtype=np.int32)
    for rank in range(counts.max() if len(order) else 0):
        at = starts[order[: np.count_nonzero(counts[order] > rank)]] + rank
        value = logit[at, None]
        if curves.scale is not None:
            value = value * curves.scale[label[at]]
        if curves.shift is not None:
            value = value + curves.shift[label[at]]
        better = value > best[: len(at)]  # not where equal: ties go to the lower label
        np.copyto(best[: len(at)], value, where=better)
        np.copyto(winner[: len(at)], label[at, None], where=better, casting="same_kind")
    top1[order] = winner


def require_finite(tops: FloatArray, start: int) -> None:
    """Refuse rows whose highest logit is no number; ``start`` is the number of the first row."""
    if not np.isfinite(tops).all():
        image = start + int(np.flatnonzero(~np.isfinite(tops))[0])
        raise FixError(
            f"The logits of image {image} are not finite, or not so after the fix; expected "
            "numbers. Leave the image out, or check the model's precision."
        )
