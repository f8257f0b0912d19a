"""TensorRT's API as its bindings describe it, and a GPU of memory blocks: no network, all calls.

Every call is checked against the signatures of the real bindings (names, number and kinds of
arguments; which properties can be set; the enumerations' members) and written down. What a method
answers is told by the test, or follows from its return type.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

__all__ = ["Recorder"]

_LINE = r"^(?:\d+\. )?{name}\((.*)\) -> (.+)$"
_PARAMETER = re.compile(r"(\w+): (.+?)(?: = (.+))?$")
_NOT_GIVEN = object()


class Recorder:
    """A stand-in for the module ``tensorrt``.

    Parameters
    ----------
    described : what trt_worker.py says of the bindings.

    Attributes
    ----------
    trt : the module.
    calls : each call as ``("Class.method", arguments)``, in order; what is set as ``"Class.x="``.
    answers : by ``"Class.name"``: a value, or a function of the object and the arguments.
    """

    def __init__(self, described: dict[str, Any]) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self._enums = {
            name: enum.IntEnum(name, members) for name, members in described["enums"].items()
        }
        self._classes = {
            name: self._class(name, members) for name, members in described["classes"].items()
        }
        self._classes["ILogger"].Severity = self._enums["Severity"]  # type: ignore[attr-defined]
        self.trt = SimpleNamespace(__version__=described["version"], **self._enums | self._classes)

    def names(self) -> list[str]:
        """Return the calls' names."""
        return [name for name, _ in self.calls]

    def make(self, kind: str) -> Any:
        """Return an object of a class that only the API itself makes."""
        return self._classes[kind].__new__(self._classes[kind])

    def _class(self, kind: str, members: dict[str, Any]) -> type:
        settable = {name for name, told in members.items() if told.get("settable")}

        def set_checked(this: object, name: str, value: object) -> None:
            if not name.startswith("_") and name not in settable:
                raise AttributeError(f"{kind}.{name} cannot be set in these bindings")
            if not name.startswith("_"):
                self.calls.append((f"{kind}.{name}=", {"value": value}))
            object.__setattr__(this, name if name.startswith("_") else f"_set_{name}", value)

        space: dict[str, Any] = {"__setattr__": set_checked}
        for name, told in members.items():
            if "settable" in told:
                space[name] = property(self._getter(kind, name), _set_as(name))
            else:
                space[name] = self._method(kind, name, told["text"])
        return type(kind, (), space)

    def _getter(self, kind: str, name: str) -> Callable[[Any], Any]:
        def get(this: Any) -> Any:
            value = getattr(this, f"_set_{name}", self.answers.get(f"{kind}.{name}", _NOT_GIVEN))
            assert value is not _NOT_GIVEN, f"the test tells no {kind}.{name}"
            return value(this) if callable(value) else value

        return get

    def _method(self, kind: str, name: str, text: str) -> Callable[..., Any]:
        overloads = re.findall(_LINE.format(name=name), text, re.MULTILINE)

        def call(this: Any, *arguments: Any, **named: Any) -> Any:
            if not overloads:
                raise TypeError(f"{kind} cannot be made by hand")
            for parameters, returns in overloads:
                bound = self._bound(_signature(parameters), this, arguments, named)
                if bound is None:
                    continue
                told = dict(bound.arguments)
                told.pop("self")
                self.calls.append((kind if name == "__init__" else f"{kind}.{name}", told))
                answer = self.answers.get(f"{kind}.{name}", _NOT_GIVEN)
                if answer is _NOT_GIVEN:
                    return self._default(returns)
                return answer(this, *told.values()) if callable(answer) else answer
            raise TypeError(f"{kind}.{name} takes no {arguments} {named}: {text}")

        return call

    def _bound(
        self, signature: inspect.Signature, this: Any, arguments: tuple[Any, ...], named: Any
    ) -> inspect.BoundArguments | None:
        try:
            bound = signature.bind(this, *arguments, **named)
        except TypeError:
            return None
        for name, value in bound.arguments.items():
            if name != "self" and not self._fits(value, signature.parameters[name].annotation):
                return None
        return bound

    def _fits(self, value: Any, kind: str) -> bool:
        """Return whether a value is of the kind that the bindings name."""
        last = kind.rpartition(".")[2]
        if last in self._enums:
            return isinstance(value, self._enums[last])
        if last in ("Dims", "tuple", "list"):
            return isinstance(value, tuple | list) and all(isinstance(one, int) for one in value)
        if last in self._classes:
            return isinstance(value, self._classes[last])
        kinds = {"str": str, "bool": bool, "Buffer": bytes, "SupportsInt": int, "int": int}
        return isinstance(value, kinds[last])

    def _default(self, returns: str) -> Any:
        last = returns.strip().rpartition(".")[2]
        simple = {"bool": True, "None": None, "int": 0, "str": ""}
        if last in simple:
            return simple[last]
        if last in self._classes:
            return self.make(last)
        return []


def _set_as(name: str) -> Callable[[Any, Any], None]:
    def set_it(this: Any, value: Any) -> None:
        raise AssertionError(f"{name} is set through __setattr__")

    return set_it


@cache
def _signature(text: str) -> inspect.Signature:
    """Return the signature of pybind11's ``self: T, x: T = 0``."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(f"{text},"):
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    parameters = []
    for part in filter(None, parts):
        match = _PARAMETER.match(part)
        assert match is not None, part
        name, kind, default = match.groups()
        empty = inspect.Parameter.empty if default is None else default
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=empty, annotation=kind
            )
        )
    return inspect.Signature(parameters)
