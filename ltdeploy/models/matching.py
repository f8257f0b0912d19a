"""Strict matching of weights to an architecture, and finding the architecture where it is clear."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import CheckpointError, LtdeployError
from .architectures import CIFAR_DEPTHS, HeadChoice, build, known_names
from .cosine_head import LDAM_SCALE
from .layouts import Parts

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Fit", "find_architecture", "fit", "guess_head", "load_weights"]

# A number of classes that is no layer's width: where it shows in a shape, there is the head.
_SENTINEL = 1009
# Only training uses these; a network is whole without them.
_TRAINING_ONLY = re.compile(
    r"(^|\.)(criterion|loss|loss_fn|AuxLogits|aux[12]|total_ops|total_params)(\.|$)"
    r"|(^|\.)(relative_position_index|relative_coords_table|attn_mask|position_ids)$"
)
_HEAD_STEMS = {"fc", "linear", "classifier", "head", "heads", "last_linear", "cls", "logits"}
# A key that torchvision's models of these names have: only they are worth trying.
_TORCHVISION_MARKS = {
    "layer4.0.conv1.weight": ("resnet", "resnext", "wide_resnet"),
    "features.0.weight": ("alexnet", "squeezenet", "vgg"),
    "features.0.0.weight": ("convnext", "efficientnet", "mobilenet", "swin"),
    "features.denseblock1.denselayer1.conv1.weight": ("densenet",),
    "encoder.pos_embedding": ("vit_",),
    "Mixed_5b.branch1x1.conv.weight": ("inception_v3",),
    "inception3a.branch1.conv.weight": ("googlenet",),
    "stage2.0.branch1.0.weight": ("shufflenet",),
    "stem.0.0.weight": ("maxvit",),
    "layers.0.weight": ("mnasnet",),
}
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
    tensors = parts.tensors
    if keys & set(parts.raw_tensors) and len(keys & set(parts.raw_tensors)) > len(
        keys & set(tensors)
    ):
        tensors = parts.raw_tensors  # the architecture's own keys begin like a wrapper's prefix
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


@functools.lru_cache(maxsize=64)
def _skeleton(arch: str, image_size_px: int | None) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the architecture's weights by key, with a sentinel number of classes."""
    import torch

    try:
        with torch.device("meta"):
            module = build(arch, _SENTINEL, image_size_px=image_size_px)
    except (NotImplementedError, RuntimeError):
        # Some constructors compute with real numbers (RegNet's widths).
        with torch.random.fork_rng(devices=[]):
            module = build(arch, _SENTINEL, image_size_px=image_size_px)
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


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


def find_architecture(
    parts: Parts, *, image_size_px: int | None = None, cosine: bool = False
) -> tuple[Fit | None, list[str]]:
    """Return the architecture that the weights fit exactly, and what was tried, for the message.

    A recorded name is tried in every family that has it. Without one, the CIFAR ResNets and
    torchvision's models are tried by their keys and shapes. torchvision and timm share the keys of
    some networks; then the family of the training code that wrote the file is taken, torchvision
    where it is unknown, and a note says so, as the preprocessing differs.
    """
    tried: list[str] = []
    exact: list[Fit] = []
    for arch in _candidates(parts):
        try:
            found = fit(arch, parts, image_size_px=image_size_px, cosine=cosine)
        except LtdeployError:
            continue
        tried.append(f"{arch}: {found.complaint()}")
        if found.is_exact:
            exact.append(found)
    if not exact:
        return None, tried
    names = [found.arch for found in exact]
    if parts.arch is None and len(names) > 1:
        return None, [f"the weights fit {', '.join(names)} alike"]
    if parts.arch is None:
        parts.notes.append(f"The architecture {names[0]} was recognised by its keys and shapes.")
    elif len(names) > 1:
        parts.notes.append(
            f"The file records {parts.arch!r}, which {' and '.join(names)} fit alike; {names[0]} "
            "is taken. Their preprocessing differs: say --arch to choose."
        )
    return exact[0], tried


def _candidates(parts: Parts) -> Iterator[str]:
    recorded = parts.arch
    if recorded is not None and ":" in recorded:
        yield recorded
        return
    cifar = _cifar_depth(parts.tensors)
    if cifar is not None:
        yield f"cifar:resnet{cifar}"
        return
    if recorded is not None:
        name = recorded.strip().lower().replace("-", "_")
        for family in sorted(("torchvision", "timm"), key=lambda f: f != parts.family):
            plain = name.partition(".")[0] if family == "timm" else name
            if plain in known_names(family):
                yield f"{family}:{name}"
        return
    for key, beginnings in _TORCHVISION_MARKS.items():
        if key in parts.tensors:
            for name in known_names("torchvision"):
                if name.startswith(beginnings):
                    yield f"torchvision:{name}"


def _cifar_depth(tensors: Mapping[str, Tensor]) -> int | None:
    """Return 6n + 2 for the CIFAR ResNets, by their three stages of n blocks; else None."""
    first = tensors.get("conv1.weight")
    if first is None or tuple(first.shape) != (16, 3, 3, 3):
        return None
    blocks = {key.split(".")[1] for key in tensors if key.startswith("layer1.")}
    depth = 6 * len(blocks) + 2
    return depth if depth in CIFAR_DEPTHS else None


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
