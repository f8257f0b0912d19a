"""How an engine is asked for: ``NAME`` or ``NAME:key=value,key=value``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..errors import EngineError, did_you_mean
from .base import check_threads

__all__ = ["ENGINES", "EngineSpec", "parse_engine"]

_SWITCHES = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
_HINTS = ("latency", "throughput")


@dataclass(frozen=True)
class EngineSpec:
    """An engine by name, and what was asked of it.

    Attributes
    ----------
    name : one of :data:`ENGINES`.
    options : values by key, as :data:`ENGINES` lists them; those of ``tensorrt`` are texts still.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def threads(self) -> int | None:
        """The CPU threads that were asked for, of an engine that can be asked."""
        threads = self.options.get("threads") if ENGINES[self.name] else None
        return None if threads is None else int(threads)


def _threads(text: str) -> int:
    threads = _number(text)
    check_threads(threads)
    return threads


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError("a number.")
    return int(text)


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCHES:
        raise ValueError("on or off.")
    return _SWITCHES[text.lower()]


def _hint(text: str) -> str:
    if text not in _HINTS:
        raise ValueError(f"{' or '.join(_HINTS)}.{did_you_mean(text, _HINTS)}")
    return text


# What each engine can be asked for; None: its own module reads the texts.
ENGINES: Mapping[str, Mapping[str, Callable[[str], Any]] | None] = MappingProxyType(
    {
        "auto": {"threads": _threads},
        "onnxruntime": {"threads": _threads},
        "openvino": {"hint": _hint, "threads": _threads},
        "onnxruntime-cuda": {"device": _number, "graphs": _switch},
        "onnxruntime-tensorrt": {"device": _number, "cache": _switch},
        "tensorrt": None,
    }
)


def parse_engine(text: str) -> EngineSpec:
    """Read an engine's name and options.

    Raises
    ------
    EngineError
        If the name or a key is unknown, a key is given twice, or a value is not of its kind.

    Examples
    --------
    >>> parse_engine("openvino:hint=throughput,threads=4")
    EngineSpec(name='openvino', options={'hint': 'throughput', 'threads': 4})
    """
    name, colon, rest = text.partition(":")
    if name not in ENGINES:
        raise EngineError(
            f"Unknown engine {name!r}; expected one of {', '.join(ENGINES)}."
            f"{did_you_mean(name, ENGINES)} 'ltdeploy doctor' lists what works here."
        )
    readers = ENGINES[name]
    options: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise EngineError(
                f"The engine {text!r} has {part!r} where key=value was expected, as in "
                "openvino:hint=throughput,threads=4."
            )
        if key in options:
            raise EngineError(f"The engine {text!r} gives {key} twice; give it once.")
        options[key] = value if readers is None else _read(name, readers, key, value)
    return EngineSpec(name, options)


def _read(name: str, readers: Mapping[str, Callable[[str], Any]], key: str, value: str) -> Any:
    if key not in readers:
        raise EngineError(
            f"The engine {name} has no option {key!r}; expected one of {', '.join(readers)}."
            f"{did_you_mean(key, readers)}"
        )
    try:
        return readers[key](value)
    except ValueError as error:
        raise EngineError(f"{name}:{key} is {value!r}; expected {error}") from None
