"""Several fixes in order, each fitted on what the ones before it leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import FixError
from ..models.head import Head
from .affine import AffineMap
from .base import Fix, FixContext
from .logit_map import LogitMap
from .maps import NewHead, compose, steps_of

__all__ = ["context_after", "fit_chain", "require_distinct"]


def fit_chain(fixes: Sequence[Fix], context: FixContext) -> LogitMap:
    """Return the one map of fixes that are fitted and applied in order.

    Raises
    ------
    FixError
        As :meth:`Fix.fit` and :func:`require_distinct`.
    """
    require_distinct([[(type(fix), fix.parameters())] for fix in fixes], force=context.force)
    total: LogitMap = AffineMap.identity(context.class_count())
    for fix in fixes:
        total = compose(total, fix.fit(context_after(context, total)))
    return total


def require_distinct(
    requested: Sequence[Sequence[tuple[type[Fix], Mapping[str, object]]]], *, force: bool
) -> None:
    """Refuse the same correction twice.

    Parameters
    ----------
    requested : one group per fix asked for, with the kind and the parameters of each fix in it; a
        fix file is a group of its own, in which a method may recur.
    force : let two different methods take the training prior off.

    Raises
    ------
    FixError
        If a method is in two groups, or two fixes take the training prior off.
    """
    named: set[str] = set()
    for group in requested:
        own = {kind.method for kind, _ in group}
        if own & named:
            raise FixError(
                f"{min(own & named)} is asked for more than once; one of them is enough. Give the "
                "strength that you want in all, in one place."
            )
        named |= own
    dividing = [
        kind.method
        for group in requested
        for kind, parameters in group
        # At any strength: of a sweep, the one value that does nothing is no reason to try it.
        if kind.takes_prior_off({k: v for k, v in parameters.items() if k != kind.tunable})
    ]
    if len(dividing) > 1 and not force:
        raise FixError(
            f"{' and '.join(dividing)} each take the training prior off the logits; together they "
            "would correct twice. Leave one of them out, or insist with --force (force=True in "
            "Python)."
        )


def context_after(context: FixContext, done: LogitMap) -> FixContext:
    """Return the context as a later fix finds it: logits mapped, the head changed likewise.

    Target logits are dropped where ``done`` looks at features, which they come without.
    """
    if done.is_identity:
        return context
    logits, target = context.logits, context.target_logits
    return replace(
        context,
        logits=None if logits is None else done.apply(logits, context.features),
        target_logits=None if target is None or done.needs_features else done.apply(target),
        head=_head_after(context, done),
    )


def _head_after(context: FixContext, done: LogitMap) -> Head | None:
    head = context.head
    for step in steps_of(done):
        if head is None:
            return None
        if isinstance(step, AffineMap) and head.kind == "linear" and head.foldable:
            weight, bias = step.fold(head.weight, head.bias)
            head = replace(head, weight=weight, bias=bias)
        elif isinstance(step, NewHead) and step.is_linear:
            head = replace(head, kind="linear", weight=step.weight, bias=step.bias, scale=1.0)
        else:
            # The logits are made otherwise from here on: nothing may look at rows any more.
            head = replace(head, foldable=False)
    return head
