"""What a model was trained with, by one name however a file spells it."""

from __future__ import annotations

import re

from ..errors import UsageError, did_you_mean

__all__ = ["BALANCED_LOSSES", "loss_name", "resolve_trained_with", "sampler_name"]

# Losses, samplers and second stages that correct for the class prior: adjusting such logits again
# corrects twice.
BALANCED_LOSSES = frozenset(
    {
        "balanced_softmax",
        "bbn",
        "class_balanced_sampling",
        "class_balanced_weights",
        "crt",
        "label_aware_smoothing",
        "logit_adjustment",
        "lws",
        "seesaw",
        "vector_scaling",
    }
)

# By what is left of the recorded text in lower case, without signs and without "loss" at the end.
_LOSSES = {name.replace("_", ""): name for name in (*BALANCED_LOSSES, "cross_entropy")} | {
    "ce": "cross_entropy",
    "softmax": "cross_entropy",
    "softmaxcrossentropy": "cross_entropy",
    "bs": "balanced_softmax",
    "bsce": "balanced_softmax",
    "bsl": "balanced_softmax",
    "balsoftmax": "balanced_softmax",
    "balancedsoftmaxcrossentropy": "balanced_softmax",
    "balancedsoftmaxce": "balanced_softmax",
    "la": "logit_adjustment",
    "logitadjust": "logit_adjustment",
    "logitadjusted": "logit_adjustment",
    "logitadjustedcrossentropy": "logit_adjustment",
    "vs": "vector_scaling",
    "las": "label_aware_smoothing",
    "cb": "class_balanced_weights",
    "classbalanced": "class_balanced_weights",
    "learnableweightscaling": "lws",
}
_SAMPLERS = {
    "resample": "class_balanced_sampling",
    "balanced": "class_balanced_sampling",
    "classbalanced": "class_balanced_sampling",
    "classaware": "class_balanced_sampling",
    "weighted": "class_balanced_sampling",
    "weightedrandom": "class_balanced_sampling",
    "reweight": "class_balanced_weights",
    "drw": "class_balanced_weights",
}

# Losses that correct for nothing, and are spelt like some that do.
_OTHERS = frozenset({"binarycrossentropy", "labelsmoothing", "sigmoidcrossentropy"})


def loss_name(recorded: object) -> str | None:
    """Return the one name of a recorded loss; an unknown one in lower case, without signs."""
    plain = _plain(recorded, "loss")
    return None if plain is None else _LOSSES.get(plain, plain)


def sampler_name(recorded: object) -> str | None:
    """Return what a recorded sampler or training rule corrects by, or None."""
    return _SAMPLERS.get(_plain(recorded, "sampler") or "")


def resolve_trained_with(text: str | None, where: str) -> str | None:
    """Return by its one name what a user says a model was trained with: a loss or a sampler.

    Losses that do not correct for the prior are many and pass as they are. A misspelt one that does
    would pass too, and its model be corrected twice: what is nearly a known name is refused.

    Parameters
    ----------
    text : what was said; None and an empty text stay None.
    where : the option or key that it was said by, for the error's text.

    Raises
    ------
    UsageError
        If it is nearly, but not quite, a name that we know.
    """
    loss, sampler = loss_name(text), sampler_name(text)
    known = (*sorted(BALANCED_LOSSES), "cross_entropy")
    if loss in known or text is None:
        return loss
    if sampler is not None or loss in _OTHERS:
        return sampler or loss
    hint = did_you_mean(text.strip().lower().replace("-", "_"), known)
    if hint:
        raise UsageError(
            f"{where} is {text!r}, which is unknown.{hint} Leave it out if it is another loss, "
            "one that does not correct for the training prior."
        )
    return loss


def _plain(value: object, ending: str) -> str | None:
    """Return a recorded name in lower case, without signs and `ending`; None for no name."""
    if not isinstance(value, str):
        return None
    name = re.sub(r"[^a-z0-9]", "", value.lower())
    return name.removesuffix(ending) or None
