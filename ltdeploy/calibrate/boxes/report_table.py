"""The cells of a sortable table of methods as HTML; what comes from data is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...webpage.pieces import breakable, number

__all__ = ["cell", "head", "interval", "row", "small", "table"]


def head(text: str, sort: str, beneath: str = "") -> str:
    """Return a column's head.

    Parameters
    ----------
    sort : ``"high"`` or ``"low"``, what of its figures is best; ``"text"`` for words.
    beneath : a second line.
    """
    style = "" if sort == "text" else ' class="num"'
    second = f"<span>{escape(beneath)}</span>" if beneath else ""
    return f'<th scope="col"{style} data-sort="{sort}">{escape(text)}{second}</th>'


def cell(value: float | None, shown: str, style: str = "", *, label: str = "") -> str:
    """Return a figure's cell; `label` names it where a narrow screen shows no heads."""
    data = "" if value is None else f"{value:.6g}"
    told = f'data-label="{escape(label)}" ' if label else ""
    return f'<td class="{f"num {style}".strip()}" {told}data-value="{data}">{shown}</td>'


def row(method: Mapping[str, Any], beneath: Sequence[str], cells: Sequence[str]) -> str:
    """Return a method's row; `beneath` are lines under its name, as text."""
    chosen = method["status"] == "chosen"
    hidden = ' <span class="hidden-text">(chosen)</span>' if chosen else ""
    lines = "".join(f"<small>{escape(line)}</small>" for line in beneath if line)
    style = ' class="chosen"' if chosen else ""
    name = escape(method["name"])
    return (
        f'<tr{style}><th scope="row" data-value="{name}">{breakable(method["name"])}{hidden}{lines}'
        f"</th>{''.join(cells)}</tr>"
    )


def table(label: str, heads: Sequence[str], rows: str, style: str = "pinned") -> str:
    """Return the table in a frame that scrolls sideways."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {label}">'
        f'<table class="plain sortable methods {style}"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def interval(figure: Mapping[str, Any], digits: int, show: Any = number) -> str:
    """Return the ends of a figure's 95 % interval."""
    if figure["low"] is None or figure["high"] is None:
        return "no interval"
    return f"{show(figure['low'], digits)} … {show(figure['high'], digits)}"


def small(text: str) -> str:
    """Return a second line of a cell."""
    return f"<small>{text}</small>"
