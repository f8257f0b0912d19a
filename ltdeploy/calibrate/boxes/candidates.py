"""What ``calibrate`` tries on a detector: each method with the values of its parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import FixError, did_you_mean
from ...fixes import Fix, FixContext, NorCal, Odds, foreground_columns, parse_spec
from ...fixes.affine import AffineMap
from ...fixes.group_odds import FACTORS, GroupOdds
from ...models.head import Head
from ..candidates import parse_candidate

__all__ = ["AUTO", "BETAS", "BoxCandidate", "box_candidates", "largest_rise", "unsuited"]

BETAS = (0.0, 0.9, 0.99, 0.999, 0.9999)
"""β of the effective number of images; 0 changes nothing, 1 would count images in full."""

_BALANCED = "beta=auto"
# Simplest first; what does not suit the head is left out with the reason.
AUTO = (
    "norcal",
    f"norcal:gamma=1,{_BALANCED}",
    "odds",
    f"odds:gamma=1,{_BALANCED}",
    "logit_adjustment",
    "group_odds",
    "logn",
)
_KNOWN = ("norcal", "odds", "logit_adjustment", "group_odds", "logn", "tau_norm")
_MOST_VALUES = 21  # each is an evaluation of all boxes


@dataclass(frozen=True)
class BoxCandidate:
    """A method at each value of its parameter, or one that is searched or fitted.

    Parameters
    ----------
    name : as the user would type it.
    fixes : one per value, mildest first; a single one where there is nothing to choose, none where
        a search makes it.
    parameter : name of what is chosen, None where there is nothing.
    values : as many as fixes; empty where there is nothing to choose.
    """

    name: str
    fixes: tuple[Fix, ...]
    parameter: str | None = None
    values: tuple[float, ...] = ()

    @property
    def is_searched(self) -> bool:
        """Whether a search of its own finds its numbers: group_odds."""
        return not self.fixes

    @property
    def looks_at_all_boxes(self) -> bool:
        """Whether fitting looks at the logits of all candidate boxes: logn."""
        return any(fix.learns_from_validation for fix in self.fixes)


def box_candidates(names: Sequence[str] | None) -> tuple[BoxCandidate, ...]:
    """Return what is to be tried.

    Parameters
    ----------
    names : ``NAME[:k=v,…]``; a tunable parameter without a value is chosen, and so is ``beta=auto``
        of norcal and odds. None takes all of :data:`AUTO`.

    Raises
    ------
    FixError
        For unknown names or parameters, and methods that are no detector's.
    """
    return tuple(_parse(name) for name in dict.fromkeys(AUTO if names is None else names))


def _parse(name: str) -> BoxCandidate:
    method, _, listed = name.partition(":")
    if method not in _KNOWN:
        raise FixError(
            f"{method!r} is not chosen for detectors; expected one of {', '.join(_KNOWN)}."
            f"{did_you_mean(method, _KNOWN)}"
        )
    if method == GroupOdds.method:
        if listed:
            raise FixError(f"{name!r}: the factors of group_odds are found by a search; name it.")
        return BoxCandidate(name, ())
    given = [part.strip() for part in listed.split(",")]
    if _BALANCED in given and method in (NorCal.method, Odds.method):
        given.remove(_BALANCED)
        spec = parse_spec(f"{method}:{','.join(given)}")
        made = [{**spec.parameters, "beta": beta} for beta in BETAS]
        kind = NorCal if method == NorCal.method else Odds
        return BoxCandidate(name, tuple(kind(**one) for one in made), "beta", BETAS)
    parsed = parse_candidate(name)
    fixes = tuple(chain[0] for chain in parsed.chains)
    step = -(-len(fixes) // _MOST_VALUES)
    return BoxCandidate(name, fixes[::step], parsed.parameter, parsed.values[::step])


def unsuited(candidate: BoxCandidate, head: Head) -> str | None:
    """Return why a method is not meant for a head, None where it is."""
    method = candidate.name.partition(":")[0]
    softmax = head.activation in ("softmax", "seesaw")
    if softmax and method == Odds.method:
        return "is for heads whose classes have independent scores; this one's share a softmax"
    if not softmax and method in (NorCal.method, "logit_adjustment"):
        return f"is for softmax heads; this one's activation is {head.activation}"
    return None


def largest_rise(
    candidates: Sequence[BoxCandidate], context: FixContext
) -> npt.NDArray[np.float64] | None:
    """Return how much any candidate adds to each class's logit at most, shape (F,), at least 0.

    None where that is not known before fitting, or a fix does more than add. What cannot be fitted
    adds nothing.
    """
    assert context.head is not None
    columns = foreground_columns(context.head)
    rise = np.zeros(len(columns))
    for candidate in candidates:
        if candidate.looks_at_all_boxes:
            return None
        if candidate.is_searched:
            rise = np.maximum(rise, np.log(max(FACTORS)))
            continue
        for fix in candidate.fixes:
            try:
                made = fix.fit(context)
            except FixError:
                continue
            if not isinstance(made, AffineMap) or not np.array_equal(
                made.scale, np.ones(made.classes)
            ):
                return None
            rise = np.maximum(rise, made.shift[columns])
    return rise
