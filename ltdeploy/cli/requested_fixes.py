"""Fixes as ``export``'s options ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import FixError

if TYPE_CHECKING:
    from ..fixes import FixFile, FixSpec

__all__ = ["requested_fixes"]


def requested_fixes(
    tau: str | None, tau_bias: str, logit_adjust: str | None, fixes: list[str]
) -> list[FixSpec | FixFile]:
    """Return the fixes in the order they are applied: τ, logit adjustment, then ``--fix`` ones."""
    from ..fixes import FixSpec, parse_fix

    specs: list[FixSpec | FixFile] = []
    if tau is not None:
        value = _strength("--tau", tau)
        specs.append(FixSpec("tau_norm", {"tau": value, "bias": tau_bias}))
    if logit_adjust is not None:
        value = _strength("--logit-adjust", logit_adjust)
        specs.append(FixSpec("logit_adjustment", {"tau": value}))
    for text in fixes:
        specs.extend(parse_fix(text))
    return specs


def _strength(option: str, text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise FixError(
            f"{option} is {text!r}; expected a number of at least 0, like 0.7, or 'auto'."
        ) from None
