"""Fixes by name: what the command line and fix files say, turned into fixes."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import FixError, did_you_mean
from .base import Fix
from .logit_adjustment import LogitAdjustment
from .tau_norm import TauNorm
from .temperature import Temperature

__all__ = ["AUTO", "FIXES", "FixSpec", "parse_fix", "read_fix_file"]

AUTO = "auto"
FIXES: dict[str, type[Fix]] = {cls.method: cls for cls in (TauNorm, LogitAdjustment, Temperature)}
# The one parameter of each fix that ``auto`` chooses on validation data.
_TUNABLE = {"tau_norm": "tau", "logit_adjustment": "tau", "temperature": "t"}


@dataclass(frozen=True)
class FixSpec:
    """A fix asked for by name, whose tunable parameter may still be ``auto``.

    Parameters
    ----------
    method : key of :data:`FIXES`.
    parameters : values by parameter name; the tunable one may be the text ``"auto"``.
    """

    method: str
    parameters: dict[str, float | str]

    def __post_init__(self) -> None:
        if self.method not in FIXES:
            raise FixError(
                f"Unknown fix {self.method!r}; expected one of {', '.join(FIXES)}."
                f"{did_you_mean(self.method, FIXES)}"
            )
        known = [f.name for f in fields(FIXES[self.method])]  # type: ignore[arg-type]
        for name in self.parameters:
            if name not in known:
                raise FixError(
                    f"{self.method} has no parameter {name!r}; expected {', '.join(known)}."
                    f"{did_you_mean(name, known)}"
                )
        if self.tunable not in self.parameters:
            raise FixError(
                f"{self.method} needs a value for {self.tunable!r}, for example "
                f"{self.method}:{self.tunable}=0.7, or 'auto' together with --val DATA."
            )
        if not self.is_auto:
            self.build(self.parameters[self.tunable])  # values out of range are refused early

    @property
    def tunable(self) -> str:
        """The parameter that ``auto`` may choose."""
        return _TUNABLE[self.method]

    @property
    def is_auto(self) -> bool:
        """Whether validation data must choose the tunable parameter."""
        return self.parameters[self.tunable] == AUTO

    def build(self, value: float | str) -> Fix:
        """Return the fix with its tunable parameter set to ``value``."""
        numeric: dict[str, Any] = {**self.parameters, self.tunable: value}
        if isinstance(value, str):
            raise FixError(
                f"{self.method}: {self.tunable} is {value!r}; expected a number or '{AUTO}'."
            )
        return FIXES[self.method](**numeric)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def parse_fix(text: str) -> list[FixSpec]:
    """Read ``NAME[:k=v,…]`` or the path of a ``fix.json`` file.

    Examples
    --------
    >>> parse_fix("tau_norm:tau=0.7")[0].parameters
    {'tau': 0.7}
    """
    if text.endswith(".json"):
        return read_fix_file(Path(text))
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
    return [FixSpec(method.strip(), parameters)]


def read_fix_file(path: Path) -> list[FixSpec]:
    """Read ``{"schema": 1, "methods": [{"method": …, "parameters": {…}}, …]}``.

    Raises
    ------
    FixError
        If the file is absent, is not JSON, or names an unknown method or parameter.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FixError(f"Cannot read the fix file {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise FixError(f"The fix file {path} is not JSON: {error}.") from error
    try:
        if content["schema"] != 1:
            raise FixError(
                f"The fix file {path} has the schema {content['schema']!r}; this version reads 1."
            )
        return [FixSpec(m["method"], dict(m["parameters"])) for m in content["methods"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FixError(
            f"The fix file {path} lacks {error}; expected "
            '{"schema": 1, "methods": [{"method": "tau_norm", "parameters": {"tau": 0.7}}]}.'
        ) from error
