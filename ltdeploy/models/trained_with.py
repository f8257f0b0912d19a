"""What a model was trained with, by one name however a file spells it."""

from __future__ import annotations

import re

__all__ = ["BALANCED_LOSSES", "loss_name", "sampler_name"]

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


def loss_name(recorded: object) -> str | None:
    """Return the one name of a recorded loss; an unknown one in lower case, without signs."""
    plain = _plain(recorded, "loss")
    return None if plain is None else _LOSSES.get(plain, plain)


def sampler_name(recorded: object) -> str | None:
    """Return what a recorded sampler or training rule corrects by, or None."""
    return _SAMPLERS.get(_plain(recorded, "sampler") or "")


def _plain(value: object, ending: str) -> str | None:
    """Return a recorded name in lower case, without signs and `ending`; None for no name."""
    if not isinstance(value, str):
        return None
    name = re.sub(r"[^a-z0-9]", "", value.lower())
    return name.removesuffix(ending) or None
