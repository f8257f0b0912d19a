"""Finding the architecture of weights where the file does not say it in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..errors import LtdeployError
from .architectures import CIFAR_DEPTHS, known_names
from .layouts import Parts
from .matching import Fit, fit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["find_architecture"]

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
            if parts.arch == arch:
                raise
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
        note = f"The architecture {names[0]} was recognised by its keys and shapes."
        family, _, name = names[0].partition(":")
        if family == "torchvision":
            note += (
                f" A timm model may have the same ones and another resize: if it comes from timm, "
                f"say --arch timm:{name}."
            )
        parts.notes.append(note)
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
