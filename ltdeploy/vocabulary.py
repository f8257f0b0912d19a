"""Class maps between vocabularies: which class of a main model each class of an expert is.

A COCO or Open Images model knows some of LVIS's classes, under names of its own. Names that are
written the same are the same class. Everything else must be said: names that differ only in how
they are written (``wine glass`` and ``wineglass``, ``bus`` and ``bus_(vehicle)``), and names that
two experts use for different classes, are refused together and with the line to type: a wrong guess
would raise the scores of the wrong class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .arrays import IntArray
from .boxes import Detections
from .errors import DataError, did_you_mean

__all__ = ["Aliases", "class_maps", "translate"]

Aliases = Mapping[str, str | None]  # an expert's name -> the main model's, or None: no such class

_LISTED = 20


def class_maps(
    main: Sequence[str],
    experts: Mapping[str, Sequence[str]],
    aliases: Mapping[str, Aliases] | None = None,
) -> dict[str, IntArray]:
    """Return, for each expert, the main model's label of each of its classes.

    Parameters
    ----------
    main : class names of the main model, in label order.
    experts : class names of each expert, in its own label order, by the expert's name.
    aliases : per expert, its names to the main model's; None says that the main model has no such
        class. Several names of an expert may lead to one class.

    Returns
    -------
    by expert, an array of shape (F_expert,), int64, with −1 where the main model has no such class.

    Raises
    ------
    DataError
        If an alias names nothing that exists, if names disagree, or if an expert shares no class.

    Examples
    --------
    >>> class_maps(["cat", "tv_set"], {"coco": ["tv", "cat"]}, {"coco": {"tv": "tv_set"}})
    {'coco': array([1, 0])}
    """
    aliases = aliases or {}
    for expert in aliases:
        if expert not in experts:
            raise DataError(
                f"Aliases are given for {expert!r}, which is no expert; known are "
                f"{', '.join(experts)}.{did_you_mean(expert, experts)}"
            )
    label_of = {name: label for label, name in enumerate(main)}
    alike = _Alike(main)
    maps: dict[str, IntArray] = {}
    quarrels: list[str] = []
    for expert, names in experts.items():
        said = aliases.get(expert, {})
        _check_aliases(expert, names, said, label_of)
        labels = np.full(len(names), -1, dtype=np.int64)
        for place, name in enumerate(names):
            target = said.get(name, name)
            if target in label_of:
                labels[place] = label_of[target]
            elif name not in said:
                close = alike.to(name)
                if close:
                    quarrels.append(
                        f"{expert}: {name!r} is written like the main model's "
                        f"{' and '.join(map(repr, close))}; say {{{name!r}: {close[0]!r}}}, or "
                        f"{{{name!r}: None}} if it is another class"
                    )
        maps[expert] = labels
    quarrels += _disagreements(main, experts, aliases, maps)
    if quarrels:
        more = len(quarrels) - _LISTED
        raise DataError(
            f"The vocabularies disagree in {len(quarrels)} names:\n  "
            + "\n  ".join(quarrels[:_LISTED])
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nGive these as aliases of the expert."
        )
    for expert, labels in maps.items():
        if not (labels >= 0).any():
            raise DataError(
                f"The expert {expert!r} shares no class with the main model: its classes are "
                f"{_some(experts[expert])}, the main model's {_some(main)}. Give aliases, or leave "
                "the expert out."
            )
    return maps


def translate(detections: Detections, labels: IntArray) -> Detections:
    """Return an expert's detections under the main model's labels, without its other classes.

    Parameters
    ----------
    labels : the expert's map from :func:`class_maps`.

    Raises
    ------
    DataError
        If a detection's label is none of the expert's.
    """
    strange = (detections.labels < 0) | (detections.labels >= len(labels))
    if strange.any():
        raise DataError(
            f"An expert of {len(labels)} classes found the label {detections.labels[strange][0]}; "
            "expected its own labels, from 0."
        )
    translated = labels[detections.labels]
    shared = translated >= 0
    return Detections(detections.boxes[shared], detections.scores[shared], translated[shared])


def _check_aliases(
    expert: str, names: Sequence[str], aliases: Aliases, main: Mapping[str, int]
) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"The class name {twice!r} stands twice in the vocabulary of {expert!r}; names must be "
            "distinct."
        )
    for name, target in aliases.items():
        if name not in names:
            raise DataError(
                f"An alias of {expert!r} begins at {name!r}, which is none of its classes."
                f"{did_you_mean(name, names)}"
            )
        if target is not None and target not in main:
            raise DataError(
                f"An alias of {expert!r} leads from {name!r} to {target!r}, which is no class of "
                f"the main model.{did_you_mean(target, main)}"
            )


def _disagreements(
    main: Sequence[str],
    experts: Mapping[str, Sequence[str]],
    aliases: Mapping[str, Aliases],
    maps: Mapping[str, IntArray],
) -> list[str]:
    """Return the names that one expert's alias leads elsewhere than another's silence does."""
    found = []
    for expert, said in aliases.items():
        for name, target in said.items():
            for other, names in experts.items():
                if other == expert or name not in names or name in aliases.get(other, {}):
                    continue
                label = int(maps[other][names.index(name)])
                theirs = main[label] if label >= 0 else None
                if theirs != target:
                    found.append(
                        f"{name!r} is {_class(target)} for {expert} and {_class(theirs)} for "
                        f"{other}; say for {other} too which it is: {{{name!r}: {target!r}}}"
                    )
    return found


def _class(name: str | None) -> str:
    return "no class" if name is None else f"the class {name!r}"


class _Alike:
    """The main model's names by their letters and digits, with and without their parentheses.

    ``Wine-Glass`` is like ``wineglass``, and ``bus`` like ``bus_(vehicle)``; but two names that
    both say in parentheses which they are, differently, are not alike.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._whole: dict[str, list[str]] = {}
        self._bare: dict[str, list[str]] = {}
        for name in names:
            self._whole.setdefault(_folded(name), []).append(name)
            self._bare.setdefault(_folded(_without_parentheses(name)), []).append(name)

    def to(self, name: str) -> list[str]:
        """Return the names that are written like this one."""
        folded, bare = _folded(name), _folded(_without_parentheses(name))
        found = {*self._whole.get(folded, ()), *self._bare.get(folded, ())}
        return sorted(found | {*self._whole.get(bare, ())})


def _folded(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _without_parentheses(name: str) -> str:
    return name.partition("(")[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
