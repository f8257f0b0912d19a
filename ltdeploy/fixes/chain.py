"""Several fixes in order, each fitted on what the ones before it leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..models.head import Head
from .affine import AffineMap
from .base import Fix, FixContext
from .logit_map import LogitMap
from .maps import NewHead, compose, steps_of

__all__ = ["context_after", "fit_chain"]


def fit_chain(fixes: Sequence[Fix], context: FixContext) -> LogitMap:
    """Return the one map of fixes that are fitted and applied in order.

    Raises
    ------
    FixError
        As :meth:`Fix.fit`.
    """
    total: LogitMap = AffineMap.identity(context.class_count())
    for fix in fixes:
        total = compose(total, fix.fit(context_after(context, total)))
    return total


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
