"""The config that mmdetection keeps in its checkpoints, a Python text, read without running it.

mmengine writes ``meta["cfg"]`` with ``Config.pretty_text``: assignments of plain values, in which
dictionaries are calls of ``dict``. Those alone are read; any other value is unreadable, which
matters where it is asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

__all__ = ["first_of", "model_config", "within"]

_TOO_LONG = 4_000_000  # characters; real ones have some ten thousand


class _Unreadable:
    """Stands where a value is not plain."""

    def __bool__(self) -> bool:
        raise ValueError("a value of the config is not plain, so it cannot be read")


_UNREADABLE = _Unreadable()


def model_config(text: str) -> dict[str, Any]:
    """Return the value of ``model = …``; empty where the text has none.

    Raises
    ------
    ValueError
        If the text is no Python or its model no dictionary of plain values.

    Examples
    --------
    >>> model_config("model = dict(type='FasterRCNN', neck=dict(num_outs=5))")
    {'type': 'FasterRCNN', 'neck': {'num_outs': 5}}
    """
    if len(text) > _TOO_LONG:
        raise ValueError(f"the config has {len(text):,} characters, more than {_TOO_LONG:,}")
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the config is not read as Python: {error}") from error
    for line in lines:
        names = line.targets if isinstance(line, ast.Assign) else []
        if any(isinstance(name, ast.Name) and name.id == "model" for name in names):
            assert isinstance(line, ast.Assign)
            value = _value(line.value)
            if not isinstance(value, dict):
                raise ValueError("the config's model is no dict(…) of plain values")
            return value
    return {}


def within(config: Mapping[str, Any], *path: str) -> Any:
    """Return what stands under a path of keys, of lists their first; None where there is nothing.

    Raises
    ------
    ValueError
        If what stands there is not plain.

    Examples
    --------
    >>> within({"head": [{"type": "A"}, {"type": "B"}]}, "head", "type")
    'A'
    """
    value: Any = config
    for key in path:
        value = first_of(value)
        value = value.get(key) if isinstance(value, Mapping) else None
        if value is _UNREADABLE:
            raise ValueError(f"{key}, of {'.'.join(path)}, is not a plain value")
    return value


def first_of(value: Any) -> Any:
    """Return the first of a list of dictionaries, as cascades have them, or the value itself."""
    many = isinstance(value, list) and value and isinstance(value[0], Mapping)
    return value[0] if many else value


def _value(node: ast.expr) -> Any:
    try:
        return _plain(node)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return _UNREADABLE


def _plain(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if not (isinstance(node.func, ast.Name) and node.func.id == "dict") or node.args:
            raise ValueError("only calls of dict are values")
        return {one.arg: _value(one.value) for one in node.keywords if one.arg is not None}
    if isinstance(node, ast.Dict):
        keys = [None if key is None else ast.literal_eval(key) for key in node.keys]
        return {k: _value(v) for k, v in zip(keys, node.values, strict=True)}
    if isinstance(node, ast.List):
        return [_value(one) for one in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(one) for one in node.elts)
    return ast.literal_eval(node)
