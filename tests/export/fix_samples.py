"""Drawn maps of every kind, and fix files that hold them."""

from __future__ import annotations

import numpy as np

from ltdeploy.fixes import AffineMap, FixFile
from ltdeploy.fixes.encoding import MethodEntry, encode
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import Blend, LogSoftmax, NewHead, compose


def maps_by_kind(classes: int, features: int) -> dict[str, LogitMap]:
    """Return one map of every kind and the chains that fixes make of them."""
    rng = np.random.default_rng(classes)

    def vector() -> np.ndarray:
        return rng.normal(size=classes)

    weight, centre = rng.normal(size=(classes, features)), rng.uniform(size=features)
    diagonal = AffineMap(rng.uniform(0.5, 2, size=classes), vector())
    full = AffineMap(np.eye(classes) + 0.3 * rng.normal(size=(classes, classes)), vector())
    blend = Blend(
        rng.uniform(0.5, 2, size=classes), vector(), rng.normal(size=features) / features, 0.2
    )
    head = NewHead(weight, vector())
    return {
        "diagonal": diagonal,
        "full": full,
        "head": head,
        "head without bias": NewHead(weight, np.zeros(classes)),
        "centred head": NewHead(weight, vector(), centre),
        "l2 head": NewHead(weight, vector(), None, True),
        "centred l2 head": NewHead(weight, vector(), centre, True),
        "log-softmax": LogSoftmax(classes),
        "blend": blend,
        "affine, blend, affine": compose(diagonal, blend, diagonal),
        "Dirichlet": compose(LogSoftmax(classes), full),
        "affine, Dirichlet": compose(diagonal, LogSoftmax(classes), full),
        "head, Dirichlet": compose(head, LogSoftmax(classes), full),
        "l2 head, blend": compose(NewHead(weight, vector(), None, True), blend),
        "blend, log-softmax, affine": compose(blend, LogSoftmax(classes), diagonal),
    }


# What goes into a linear head's weights whole; all else takes nodes.
IN_WEIGHTS = {"diagonal", "full", "head", "head without bias"}
KINDS = tuple(maps_by_kind(2, 2))


def fix_file(fix: LogitMap, method: str = "temperature", **more: object) -> FixFile:
    """Return a file that holds a fitted map, under some method's name."""
    methods = (MethodEntry(method=method, parameters={}),)
    return FixFile.model_validate({"methods": methods, "steps": encode(fix), **more})
