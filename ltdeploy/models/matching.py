"""Strict matching of weights to an architecture: nothing is left at random values."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .architectures import LDAM_SCALE, HeadChoice, build
from .layouts import Parts

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Fit", "fit", "guess_head", "load_weights"]

# A number of classes that is no layer's width: where it shows in a shape, there is the head.
_SENTINEL = 1009
# Only training uses these; a network is whole without them.
_TRAINING_ONLY = re.compile(
    r"(^|\.)(criterion|loss|loss_fn|AuxLogits|aux[12]|total_ops|total_params)(\.|$)"
    r"|(^|\.)(relative_position_index|relative_coords_table|attn_mask|position_ids)$"
)
_HEAD_STEMS = {"fc", "linear", "classifier", "head", "heads", "last_linear", "cls", "logits"}
_LISTED = 6


@dataclass
class Fit:
    """How the weights of a file go into an architecture.

    Parameters
    ----------
    arch : the canonical name.
    classes : number of classes of the head.
    head : kind of the last layer.
    bias : whether the head has one.
    weights : the weights under the architecture's keys; a cosine head as (features, classes).
    missing, unexpected : keys that only the architecture or only the file has.
    mismatched : keys whose shapes differ, with both shapes.
    dropped : keys of the file that only training uses.
    matched : number of keys that fit.
    """

    arch: str
    classes: int
    head: HeadChoice = "linear"
    bias: bool = True
    image_size_px: int | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    matched: int = 0
    head_keys: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every weight of the network is in the file and none is left over."""
        return self.classes > 0 and not (self.missing or self.unexpected or self.mismatched)

    def complaint(self) -> str:
        """Return what does not fit, in words."""
        said = [f"{self.matched} weights match"]
        for what, keys in (
            ("missing in the file", self.missing),
            ("not in the architecture", self.unexpected),
            ("of another shape", self.mismatched),
        ):
            if keys:
                more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
                said.append(f"{len(keys)} {what} ({', '.join(keys[:_LISTED])}{more})")
        return "; ".join(said)


def fit(arch: str, parts: Parts, *, image_size_px: int | None = None, cosine: bool = False) -> Fit:
    """Compare the weights of a file with an architecture, without loading anything.

    Parameters
    ----------
    arch : canonical name.
    image_size_px : for architectures whose weights depend on it; None to deduce it.
    cosine : treat a head without bias as a cosine head.
    """
    keys = set(_skeleton(arch, image_size_px))
    # An architecture's own keys may begin like a wrapper's prefix: then the file's are the right.
    named = [parts.tensors, parts.raw_tensors]
    if arch.startswith("hf:"):
        named = [{f"network.{key}": value for key, value in part.items()} for part in named]
    tensors = max(named, key=lambda part: len(keys & set(part)))
    size = image_size_px or _size_of_position_embedding(arch, tensors)
    slots = _skeleton(arch, size)
    return _compare(arch, slots, tensors, size, cosine or parts.cosine, parts.layout)


def _compare(
    arch: str,
    slots: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    size: int | None,
    cosine: bool,
    layout: str,
) -> Fit:
    weights = {k: v for k, v in tensors.items() if not _is_left_out(k, slots)}
    result = Fit(arch, 0, image_size_px=size)
    result.dropped = [key for key in tensors if key not in weights]
    head = [key for key, shape in slots.items() if _SENTINEL in shape]
    result.head_keys = tuple(head)
    weights = _rename_head(weights, slots, head)
    rows = [k for k in head if k.endswith("weight") and k in weights]
    if rows:
        key = rows[-1]
        result.head, class_axis = _head_of(slots, weights, key, cosine, layout)
        result.classes = weights[key].shape[class_axis]
        if result.head == "cosine" and class_axis == 0:
            weights[key] = weights[key].t().contiguous()
        bias_key = key.removesuffix("weight") + "bias"
        result.bias = bias_key in slots and bias_key in weights
    expected = {
        key: tuple(result.classes if side == _SENTINEL else side for side in shape)
        for key, shape in slots.items()
    }
    if rows and len(rows) == 1:
        if result.head == "cosine":
            features = expected[rows[0]][1]
            expected[rows[0]] = (features, result.classes)
        if not result.bias:
            expected.pop(rows[0].removesuffix("weight") + "bias", None)
    result.missing = [k for k in expected if k not in weights and not _is_counter(k)]
    result.unexpected = [k for k in weights if k not in expected]
    for key, shape in expected.items():
        if key in weights:
            found = tuple(weights[key].shape)
            if found == shape:
                result.matched += 1
            else:
                result.mismatched.append(f"{key}: {found} in the file, {shape} expected")
    result.weights = weights
    return result


def _head_of(
    slots: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, Tensor],
    key: str,
    cosine: bool,
    layout: str,
) -> tuple[HeadChoice, int]:
    """Return the kind of the head and the axis of its weight along which the classes lie.

    A cosine head without scale and bias looks like a linear one without bias; where it is stored
    as (features, classes), as LDAM does, the shape tells. BBN stores (classes, features).
    """
    shape = tuple(weights[key].shape)
    bias = key.removesuffix("weight") + "bias" in weights
    if bias or len(shape) != 2 or len(slots[key]) != 2:
        return "linear", 0
    features = slots[key][1]
    if shape[0] == features and (shape[1] != features or (cosine and layout != "BBN")):
        return "cosine", 1
    return ("cosine" if cosine else "linear"), 0


def _rename_head(
    weights: dict[str, Tensor], slots: Mapping[str, tuple[int, ...]], head: list[str]
) -> dict[str, Tensor]:
    """Give the head its name in the architecture where the file calls it otherwise.

    Only where exactly one stem is missing, it is the head's, and exactly one is left over.
    """
    left_over = {k.rpartition(".")[0] for k in weights if k not in slots}
    lacking = {k.rpartition(".")[0] for k in slots if k not in weights and not _is_counter(k)}
    stems = {k.rpartition(".")[0] for k in head}
    if len(left_over) != 1 or lacking != stems or len(stems) != 1:
        return weights
    old, new = left_over.pop(), stems.pop()
    return {(f"{new}{k.removeprefix(old)}" if k.startswith(f"{old}.") else k): v
            for k, v in weights.items()}  # fmt: skip


def _is_left_out(key: str, slots: Mapping[str, tuple[int, ...]]) -> bool:
    if key in slots:
        return False
    return _is_counter(key) or _TRAINING_ONLY.search(key) is not None


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _skeleton(arch: str, image_size_px: int | None) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the architecture's weights by key, with a sentinel number of classes."""
    if arch.startswith("hf:"):
        return _shapes(arch, image_size_px)  # a folder may change between two calls
    return _cached_shapes(arch, image_size_px)


def _shapes(arch: str, image_size_px: int | None) -> Mapping[str, tuple[int, ...]]:
    import torch

    try:
        with torch.device("meta"):
            module = build(arch, _SENTINEL, image_size_px=image_size_px)
    except (NotImplementedError, RuntimeError):
        # Some constructors compute with real numbers (RegNet's widths).
        with torch.random.fork_rng(devices=[]):
            module = build(arch, _SENTINEL, image_size_px=image_size_px)
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


_cached_shapes = functools.lru_cache(maxsize=64)(_shapes)


def _size_of_position_embedding(arch: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the image size that a vision transformer's position embedding was made for.

    Extra tokens (class, distillation, registers) stand beside the square of patches.
    """
    for position, patch in (
        ("pos_embed", "patch_embed.proj.weight"),
        ("encoder.pos_embedding", "conv_proj.weight"),
    ):
        if position in tensors and patch in tensors and tensors[position].ndim == 3:
            tokens, side = tensors[position].shape[1], tensors[patch].shape[-1]
            extras = (1,) if arch.startswith("torchvision:") else (1, 0, 2, 5, 4)
            for extra in extras:
                root = math.isqrt(tokens - extra)
                if root * root == tokens - extra:
                    return int(root * side)
    return None


def load_weights(found: Fit, *, scale: float | None) -> nn.Module:
    """Build the network of an exact fit and put the weights in; nothing stays at random values.

    Returns
    -------
    torch.nn.Module in evaluation mode, float32, without gradients.

    Raises
    ------
    CheckpointError
        If the fit is not exact, or a weight is not finite.
    """
    import torch

    if not found.is_exact:
        raise CheckpointError(f"The weights do not fit {found.arch}: {found.complaint()}.")
    bad = [k for k, v in found.weights.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{len(bad)} weights are not finite (NaN or infinity), first {bad[0]!r}: the training "
            "diverged. Use an earlier checkpoint of the run."
        )
    with torch.random.fork_rng(devices=[]):
        module = build(
            found.arch,
            found.classes,
            head=found.head,
            scale=LDAM_SCALE if scale is None else scale,
            image_size_px=found.image_size_px,
        )
    if found.head == "linear" and not found.bias:
        for key in found.head_keys:
            if key.endswith("bias"):
                module.get_submodule(key.removesuffix(".bias")).register_parameter("bias", None)
    own = module.state_dict()
    counters = {k: v for k, v in own.items() if _is_counter(k) and k not in found.weights}
    module.load_state_dict(found.weights | counters, strict=True)
    return module.float().eval().requires_grad_(False)


def guess_head(tensors: Mapping[str, Tensor]) -> tuple[str, tuple[int, ...]] | None:
    """Return name and shape of what is probably the head, when the architecture is not known."""
    named: list[tuple[str, tuple[int, ...]]] = []
    other: list[tuple[str, tuple[int, ...]]] = []
    for key, tensor in tensors.items():
        shape = tuple(tensor.shape)
        flat = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
        if not key.endswith(".weight") or not flat:
            continue
        stem = key.removesuffix(".weight")
        (named if stem.split(".")[0] in _HEAD_STEMS else other).append((stem, shape[:2]))
    matrices = [entry for entry in other if len(tensors[f"{entry[0]}.weight"].shape) == 2]
    found = named or matrices
    return found[-1] if found else None
