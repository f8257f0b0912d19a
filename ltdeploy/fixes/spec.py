"""Fixes by name and parameters, before they are fitted."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from ..errors import FixError, did_you_mean
from .base import Fix
from .disalign import DisAlign
from .group_odds import GroupOdds
from .label_shift import LabelShift
from .logit_adjustment import LogitAdjustment
from .logn import LogN
from .matrix import Dirichlet, MatrixScaling
from .multipliers import GroupBoost, ScoreMultiplier
from .nearest_class_mean import NearestClassMean
from .norcal import NorCal
from .odds import Odds
from .platt import Platt
from .retraining import ClassifierRetraining
from .scaling import BiasCorrectedTemperature, LearnableWeightScaling, VectorScaling
from .target_prior import TargetPrior
from .tau_norm import TauNorm
from .temperature import Temperature

__all__ = ["AUTO", "FIXES", "FixSpec", "parse_spec"]

AUTO = "auto"
FIXES: dict[str, type[Fix]] = {
    cls.method: cls
    for cls in (
        TauNorm,
        LogitAdjustment,
        TargetPrior,
        LabelShift,
        ScoreMultiplier,
        GroupBoost,
        LearnableWeightScaling,
        Temperature,
        BiasCorrectedTemperature,
        VectorScaling,
        MatrixScaling,
        Dirichlet,
        Platt,
        NearestClassMean,
        ClassifierRetraining,
        DisAlign,
        NorCal,
        Odds,
        LogN,
        GroupOdds,
    )
}


@dataclass(frozen=True)
class FixSpec:
    """A fix asked for by name, whose tunable parameter may still be ``auto``.

    Parameters
    ----------
    method : key of :data:`FIXES`.
    parameters : values by parameter name; the tunable one may be the text ``"auto"``.
    """

    method: str
    parameters: dict[str, Any]

    def __post_init__(self) -> None:
        if self.method not in FIXES:
            raise FixError(
                f"Unknown fix {self.method!r}; expected one of {', '.join(FIXES)}."
                f"{did_you_mean(self.method, FIXES)}"
            )
        known = {f.name: f for f in fields(FIXES[self.method])}  # type: ignore[arg-type]
        for name in self.parameters:
            if name not in known:
                raise FixError(
                    f"{self.method} has no parameter {name!r}; expected "
                    f"{', '.join(known) or 'none at all'}."
                    f"{did_you_mean(name, known)}"
                )
        for name, field in known.items():
            if name not in self.parameters and field.default is MISSING:
                if "tuple" in str(field.type):
                    FIXES[self.method](**{**self.parameters, name: None})  # says what is lacking
                automatic = ", or 'auto' together with --val DATA" if name == self.tunable else ""
                raise FixError(
                    f"{self.method} needs a value for {name!r}, for example "
                    f"{self.method}:{name}=0.7{automatic}."
                )
        if not self.is_auto:
            self.fixed()  # values out of range are refused early

    @property
    def tunable(self) -> str | None:
        """The parameter that ``auto`` may choose."""
        return FIXES[self.method].tunable

    @property
    def is_auto(self) -> bool:
        """Whether validation data must choose the tunable parameter."""
        return self.tunable is not None and self.parameters.get(self.tunable) == AUTO

    @property
    def needs_validation(self) -> bool:
        """Whether validation images are looked at, to choose a parameter or to fit the fix."""
        return self.is_auto or not FIXES[self.method].needs.isdisjoint(("validation", "logits"))

    def fixed(self) -> Fix:
        """Return the fix with the parameters as they are."""
        return FIXES[self.method](**self.parameters)

    def build(self, value: float) -> Fix:
        """Return the fix with its tunable parameter set to ``value``."""
        assert self.tunable is not None
        changed: dict[str, Any] = {**self.parameters, self.tunable: value}
        return FIXES[self.method](**changed)


def parse_spec(text: str) -> FixSpec:
    """Read ``NAME[:k=v,…]``.

    Raises
    ------
    FixError
        If it names an unknown method or parameter, or is not of that form.

    Examples
    --------
    >>> parse_spec("tau_norm:tau=0.7")
    FixSpec(method='tau_norm', parameters={'tau': 0.7})
    """
    method, _, listed = text.partition(":")
    parameters: dict[str, float | str] = {}
    for pair in filter(None, listed.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise FixError(
                f"Cannot read {pair!r} in the fix {text!r}; expected NAME:key=value,key=value, "
                "for example tau_norm:tau=0.7,bias=scale."
            )
        parameters[key.strip()] = _value(value.strip())
    return FixSpec(method.strip(), parameters)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
