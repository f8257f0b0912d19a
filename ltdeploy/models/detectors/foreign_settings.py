"""Which settings of another library's config are followed, so that no other is passed over.

A table has the config's own nesting. Under a key stands what is followed: a tuple, the values that
are computed here; :data:`ANY`, where the value is read elsewhere, shows in the weights or matters
in training alone; or a table. A value that is not followed is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from ...errors import CheckpointError
from ...postprocess import KeepRule

__all__ = ["ANY", "WAY_ROUND", "Followed", "kept_otherwise", "require_followed", "share"]

ANY = None
Followed: TypeAlias = "Mapping[str, Followed | tuple[Any, ...] | None]"

WAY_ROUND = "Export it to ONNX with its own library and give the .onnx with --outputs."
_LETTERS = 80
_SCOPE = "_scope_"  # mmengine's: in whose registry a type is looked for


def require_followed(
    settings: Mapping[str, Any],
    followed: Followed,
    where: str,
    *,
    whole: bool,
    path: tuple[str, ...] = (),
) -> None:
    """Raise if a setting has a value that is not computed here.

    Parameters
    ----------
    settings : of a config; None stands for a default.
    followed : the table, as this module says.
    where : what error texts call the config.
    whole : whether keys that the table lacks are errors too.

    Raises
    ------
    CheckpointError
        With the setting's path and value, and what is computed.
    ValueError
        If settings are expected and something else stands there.

    Examples
    --------
    >>> require_followed({"FPN": {"FUSE_TYPE": "sum"}}, {"FPN": {"FUSE_TYPE": ("sum",)}}, "x",
    ...                  whole=True)
    """
    for key, value in settings.items():
        here = (*path, str(key))
        if value is None or key == _SCOPE:
            continue
        if key not in followed:
            if whole:
                raise CheckpointError(
                    f"{where} has {'.'.join(here)} = {_shown(value)}, which is not known here; "
                    f"known are {', '.join(followed)}. {WAY_ROUND}"
                )
            continue
        rule = followed[key]
        if rule is ANY:
            continue
        if isinstance(rule, tuple):
            told = _comparable(key, value)
            if not any(told == one for one in rule):
                computed = " or ".join(map(repr, rule)) or "none"
                raise CheckpointError(
                    f"{where} has {'.'.join(here)} = {_shown(value)}; computed here is {computed}. "
                    f"{WAY_ROUND}"
                )
            continue
        many = value if isinstance(value, list | tuple) else [value]
        for number, one in enumerate(many):
            if not isinstance(one, Mapping):
                raise ValueError(f"{'.'.join(here)} is {_shown(value)}, expected settings by name")
            inside = (*here, str(number)) if many is value else here
            require_followed(one, rule, where, whole=whole, path=inside)


def share(value: Any, name: str) -> float:
    """Return an overlap from 0 to 1.

    Raises
    ------
    ValueError
        For any other number.
    """
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} is {value!r}, expected a number from 0 to 1")
    return number


def kept_otherwise(score: Any, count: Any, names: tuple[str, str]) -> list[str]:
    """Return a note if a config keeps other detections than are kept here: LVIS's, on purpose.

    Parameters
    ----------
    score, count : the config's threshold, and its largest number of detections; None: not told.
    names : of the two settings.
    """
    here = KeepRule()
    told = []
    if score is not None and float(score) != here.score_threshold:
        told.append(f"scores above {float(score):g} ({names[0]})")
    if count is not None and int(count) != here.top_k:
        told.append(f"{int(count)} detections per photograph ({names[1]})")
    if not told:
        return []
    return [
        f"Its config keeps {' and '.join(told)}; kept here are scores above "
        f"{here.score_threshold:g} and {here.top_k} per photograph, as LVIS is evaluated."
    ]


def _comparable(key: str, value: Any) -> Any:
    """Return a value with tuples for lists, and a type without the module that it is from."""
    if key == "type" and isinstance(value, str):
        return value.rpartition(".")[2]
    if isinstance(value, list | tuple):
        return tuple(_comparable("", one) for one in value)
    return value


def _shown(value: Any) -> str:
    """Return a value for an error's text, which must not grow with the file."""
    text = repr(value)
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]} …"
