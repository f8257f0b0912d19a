"""The config that mmdetection keeps in its checkpoints, a Python text, read without running it.

mmengine writes ``meta["cfg"]`` with ``Config.pretty_text``: assignments of plain values, in which
dictionaries are calls of ``dict``. Those alone are read; any other value is unreadable, which
matters where it is asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "Resized",
    "first_of",
    "model_config",
    "pipeline_of",
    "resized_by",
    "stages_of",
    "within",
]

_RESIZING = ("Resize", "FixScaleResize")
_LOADING = ("LoadImageFromFile", "LoadAnnotations", "PackDetInputs")
_TOO_LONG = 4_000_000  # characters; real ones have some ten thousand


class _Unreadable:
    """Stands where a value is not plain."""

    def __bool__(self) -> bool:
        raise ValueError("a value of the config is not plain, so it cannot be read")

    def __repr__(self) -> str:
        return "what is no plain value"


_UNREADABLE = _Unreadable()


class Resized(NamedTuple):
    """How a config's test pipeline scales photographs: to a width and height, in pixels."""

    width_px: int
    height_px: int
    keeps_aspect: bool


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
    value = _assigned(text, "model")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("the config's model is no dict(…) of plain values")
    return value


def pipeline_of(text: str) -> list[Mapping[str, Any]]:
    """Return the steps that photographs go through before the network; none where nobody tells.

    Raises
    ------
    ValueError
        If the text is no Python.

    Examples
    --------
    >>> pipeline_of("test_pipeline = [dict(type='Resize', scale=(1333, 800), keep_ratio=True)]")
    [{'type': 'Resize', 'scale': (1333, 800), 'keep_ratio': True}]
    """
    loader = _assigned(text, "test_dataloader")
    data = within(loader, "dataset") if isinstance(loader, Mapping) else None
    while isinstance(data, Mapping) and data.get("pipeline") is None and "dataset" in data:
        data = within(data, "dataset")  # one that wraps another
    # The pipeline in the loader is the one that runs; the name is where it usually came from.
    steps = data.get("pipeline") if isinstance(data, Mapping) else None
    steps = _assigned(text, "test_pipeline") if steps is None else steps
    return [one for one in steps if isinstance(one, Mapping)] if isinstance(steps, list) else []


def resized_by(steps: Sequence[Mapping[str, Any]], notes: list[str]) -> Resized | None:
    """Return how a pipeline scales photographs; what else it does to them is said.

    Raises
    ------
    ValueError
        If a size is no two numbers above 0.
    """
    names = [str(step.get("type")).rpartition(".")[2] for step in steps]
    passed_over = [name for name in names if name not in (*_RESIZING, *_LOADING)]
    if passed_over:
        notes.append(
            f"Its test pipeline has steps that are not done here: {', '.join(passed_over)}."
        )
    for name, step in zip(names, steps, strict=True):
        if name in _RESIZING and isinstance(step.get("scale"), list | tuple):
            width, height = (int(side) for side in step["scale"])
            if min(width, height) < 1:
                raise ValueError(f"the test pipeline's scale is {step['scale']!r}")
            return Resized(width, height, bool(within(step, "keep_ratio")))
    return None


def _assigned(text: str, wanted: str) -> Any:
    """Return the value of ``wanted = …``; None where the text has none."""
    if len(text) > _TOO_LONG:
        raise ValueError(f"the config has {len(text):,} characters, more than {_TOO_LONG:,}")
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the config is not read as Python: {error}") from error
    for line in lines:
        names = line.targets if isinstance(line, ast.Assign) else []
        if any(isinstance(name, ast.Name) and name.id == wanted for name in names):
            assert isinstance(line, ast.Assign)
            return _value(line.value)
    return None


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


def stages_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the settings of each stage's box head, as many as the config tells apart.

    Examples
    --------
    >>> stages_of({"roi_head": {"bbox_head": {"num_classes": 3}}})
    [{'num_classes': 3}]
    """
    told = (within(config, "roi_head") or {}).get("bbox_head") or []
    return told if isinstance(told, list) else [told]


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
