"""The tables of a detector's methods as HTML; what comes from data is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...webpage.pieces import IntervalScale, mark, number, signed, whole
from ...webpage.sections import group_sizes, terms
from ..report_methods import steps
from .report_table import cell, head, interval, row, small, table

__all__ = ["OBJECTIVES", "applied", "measured_groups", "precisions", "ranking"]

OBJECTIVES = {
    "balanced": ("Mean AP", "average precision averaged over classes, each counting the same"),
    "few": ("AP of the rarest group", "average precision averaged over the classes of that group"),
}
_STANDINGS = {
    "chosen": ("pass", "Chosen"),
    "candidate": ("equal", "As good"),
    "too costly for the head": ("fail", "Too costly"),
    "behind": ("behind", "Behind"),
}
_MOST_CLASSES_SHOWN = 8
_AP = (
    "AP, AP50",
    "The share of right boxes among those found, averaged over how many are to be found. A box is "
    "right where it overlaps the truth enough: AP averages over ten degrees of enough, AP50 asks "
    "for half (IoU 0.5).",
)


def measured_groups(result: Mapping[str, Any]) -> list[str]:
    """Return the groups that have objects, the most frequent first."""
    return list(result["methods"][0]["figures"]["groups"])


def applied(
    result: Mapping[str, Any], methods: Sequence[Mapping[str, Any]], unnamed: str = ""
) -> str:
    """Return a fix with its parameters as text; numbers that are one per group with the groups.

    Parameters
    ----------
    unnamed : a fix of this name is told by its parameters alone.
    """
    there = {one["group"] for one in result["classes"]}

    def told(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(result["groups"]):
            return value
        pairs = zip(result["groups"], value, strict=True)
        return ", ".join(f"{group} × {factor:g}" for group, factor in pairs if group in there)

    return steps(
        [
            {**one, "parameters": {key: told(value) for key, value in one["parameters"].items()}}
            for one in methods
        ],
        unnamed,
    )


def ranking(result: Mapping[str, Any]) -> str:
    """Return the table that the choice was made from, its intervals drawn against no fix."""
    methods, groups = result["methods"], measured_groups(result)
    name, limit = OBJECTIVES[result["objective"]][0], result["max_head_loss"]
    # With all classes in one group, what the head pays is the gain again.
    protected = groups[0] if len(groups) > 1 or limit is not None else ""
    gains = [one["gain"][end] for one in methods for end in ("value", "low", "high")]
    scale = IntervalScale(gains, line=(0.0, "no fix"))
    best = "Against the best" if limit is None else "Against the best allowed"
    heads = [
        head("Method", "text"),
        head("Standing", "text"),
        head(name, "high", "AP50 beneath" if result["objective"] == "balanced" else "%"),
        f'<th scope="col" class="plot">{scale.axis()}</th>',
        head("Gain", "high", "95 % interval"),
        head(best, "high", "± standard error"),
    ]
    if protected:
        bound = "95 % interval" if limit is None else f"at least {number(-limit, 1)}"
        heads.append(head(f"Change of {protected}", "high", bound))
    heads.append(head("Learns", "low", "numbers"))
    rows = "".join(_ranking_row(one, result, scale, best, protected) for one in methods)
    return f"""<section aria-labelledby="methods"><h2 id="methods">Which method</h2>
<p class="lead">Every method was fitted on all folds of the photographs but one and then answered
that one, in turn: each figure comes from photographs that had no part in what they measure. The
thin vertical is the detector without a fix; a bar is the interval in which the true gain plausibly
lies. Each fold is ranked by itself, so that figures differ a little from those of
<code>verify</code>.</p>
{table("Methods", heads, rows, "cards box-methods")}
{terms(_ranking_terms(result, best, protected))}</section>"""


def precisions(result: Mapping[str, Any]) -> str:
    """Return the table of every method's average precisions: overall, by group, and by few classes.

    Many classes stand in the table of classes, of the chosen method alone.
    """
    groups, classes = measured_groups(result), result["classes"]
    listed = classes if len(classes) <= _MOST_CLASSES_SHOWN else []
    shown = groups if len(groups) > 1 else []
    if not listed and not shown:
        return ""  # the table above says it all
    heads = [head("Method", "text"), head("All classes", "high", "AP50 beneath")]
    heads += [head(name, "high", "AP50 beneath") for name in shown]
    heads += [head(one["name"], "high", f"{whole(one['objects'])} objects") for one in listed]
    rows = ""
    for method in result["methods"]:
        figures = method["figures"]
        pairs = [(figures["ap"], figures["ap50"])]
        pairs += [
            (figures["groups"][name]["ap"], figures["groups"][name]["ap50"]) for name in shown
        ]
        of = figures["classes"]
        pairs += [(of["ap"][one["label"]], of["ap50"][one["label"]]) for one in listed]
        rows += row(method, [], [cell(ap, _pair(ap, ap50)) for ap, ap50 in pairs])
    what = "each group and class" if shown and listed else "each class" if listed else "each group"
    return f"""<section aria-labelledby="precisions">
<h2 id="precisions">Average precision of every method</h2>
<p class="lead">In per cent, on photographs the method has not learnt from, of {what}; beneath each
AP its AP50. A dash is a class without an object to find. Click a heading to sort.</p>
{table("Average precision of every method", heads, rows)}
{"" if shown else terms([group_sizes(result["groups"], classes)])}</section>"""


def _ranking_row(
    method: Mapping[str, Any],
    result: Mapping[str, Any],
    scale: IntervalScale,
    best: str,
    protected: str,
) -> str:
    figures, gain, behind = method["figures"], method["gain"], method["behind"]
    limit, unfixed = result["max_head_loss"], method is result["methods"][0]
    style, standing = _STANDINGS.get(method["status"], ("equal", escape(method["status"])))
    if unfixed and method["status"] != "chosen":
        style, standing = "start", "No fix"
    name = OBJECTIVES[result["objective"]][0]
    beneath = small(number(figures["ap50"], 1)) if result["objective"] == "balanced" else ""
    label = f"gain {signed(gain['value'])} points, interval {interval(gain, 2, signed)}"
    plot = scale.plot(gain["value"], gain["low"], gain["high"], label=label)
    gap = signed(behind["value"])
    if behind["value"] == 0 and method["status"] in ("chosen", "candidate"):
        gap = "best"
    elif behind["standard_error"]:
        gap += small(f"± {number(behind['standard_error'], 2)}")
    cells = [
        f'<td class="standing" data-value="{standing}">{mark(style, standing)}</td>',
        cell(method["objective"], number(method["objective"], 2) + beneath, label=name),
        f'<td class="plot">{plot}</td>',
        _change(gain, unfixed, label="Gain"),
        cell(behind["value"], gap, label=best),
    ]
    if protected:
        change = method["head_change"]
        costly = limit is not None and change["low"] < -limit - 1e-9
        style = "past" if costly else ""
        cells.append(_change(change, unfixed, style, label=f"Change of {protected}"))
    cells.append(cell(method["freedom"], whole(method["freedom"]), label="Learns"))
    values = applied(result, method["methods"], method["name"].partition(":")[0])
    lines = [values, _folds(method), _why_not(method, result)]
    return row(method, lines, cells)


def _why_not(method: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return why a method was not chosen, or nothing for the one that was."""
    chosen = next(one for one in result["methods"] if one["status"] == "chosen")
    if method["status"] == "too costly for the head":
        lost, limit = (-method["head_change"]["low"], result["max_head_loss"])
        return (
            f"may cost {measured_groups(result)[0]} {number(lost, 1)} points, "
            f"{number(limit, 1)} are allowed"
        )
    if method["status"] == "behind":
        return "behind the best by more than one standard error"
    if method["status"] == "candidate":
        learnt, other = whole(method["freedom"]), whole(chosen["freedom"])
        rest = (
            f"learns {learnt} {'number' if learnt == '1' else 'numbers'}, the chosen one {other}"
            if method["freedom"] > chosen["freedom"]
            else "as simple as the chosen one, and lower"
        )
        return f"within one standard error of the best; {rest}"
    return ""


def _folds(method: Mapping[str, Any]) -> str:
    """Return between which values the folds' own choices lie, where they differ."""
    texts = []
    for key in method["per_fold"][0] if method["per_fold"] else ():
        values = [one[key] for one in method["per_fold"]]
        if all(value == values[0] for value in values):
            continue
        known = [value for value in values if isinstance(value, int | float)]
        if len(known) < len(values):
            texts.append(f"other {key}")
        else:
            texts.append(f"{key} {min(known):.4g} to {max(known):.4g}")
    return f"folds chose {', '.join(texts)}" if texts else ""


def _change(figure: Mapping[str, Any], unfixed: bool, style: str = "", *, label: str) -> str:
    if unfixed:
        return cell(None, "–", label=label)
    shown = signed(figure["value"]) + small(interval(figure, 2, signed))
    return cell(figure["value"], shown, style, label=label)


def _pair(ap: float | None, ap50: float | None) -> str:
    return "–" if ap is None else number(ap, 1) + small(number(ap50, 1))


def _ranking_terms(result: Mapping[str, Any], best: str, protected: str) -> list[tuple[str, str]]:
    name, meaning = OBJECTIVES[result["objective"]]
    limit = result["max_head_loss"]
    found = [
        _AP,
        (name, f"What the choice maximises: {meaning}."),
        (
            "Gain",
            "Points over the detector without a fix; the interval is that of the difference over "
            "photographs drawn anew, both sides together.",
        ),
        (
            "Standing",
            "Chosen is the method that learns the fewest numbers of those within one standard "
            "error of the best; the others there are as good, and only more complicated. All "
            "others are behind, or too costly.",
        ),
        (
            best,
            "Difference to the best method that is not too costly, in points on the same "
            "photographs; the standard error says by how much it would vary with others.",
        ),
        (
            "Learns",
            "How many numbers a method takes from data: the more, the more photographs it needs "
            "to get them right.",
        ),
    ]
    if protected:
        lost = (
            "any loss was allowed here"
            if limit is None
            else f"methods that may cost it more than {number(limit, 1)} points, by the lower end "
            "of the interval, are too costly"
        )
        told = f"Points of AP that the most frequent group gains or pays; {lost}."
        found.insert(-1, (f"Change of {protected}", told))
    if len(measured_groups(result)) > 1:
        found.insert(0, group_sizes(result["groups"], result["classes"]))
    return found
