"""The layouts of long-tail research codes, as their training scripts write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError
from ..preprocessing import Preprocessing
from .layouts import Parts, is_state_dict, strip_prefixes

__all__ = ["RESEARCH_LAYOUTS"]

# ImageNet-LT, Places-LT and iNaturalist codes evaluate torchvision's classic way.
_CLASSIC = Preprocessing(
    height_px=224, width_px=224, resize_mode="shorter", resize_px=256, interpolation="bilinear"
)
_CLASSIC_NOTE = (
    "The file does not tell its preprocessing; assumed is what this code uses on ImageNet-LT: "
    "shorter side to 256, 224 cut from the centre, bilinear."
)
_MULTIPLIERS = ("scales", "learned_norm")


def _classifier_balancing(data: Mapping[str, Any]) -> Parts | None:
    """Kang et al. 2020, arXiv 1910.09217: feature model and classifier as two state dicts.

    ``state_dict_best`` in the final file, ``state_dict`` in the latest one; learnable weight
    scaling (§4.4) keeps its ``scales`` beside the classifier's ``fc``.
    """
    for key in ("state_dict_best", "state_dict"):
        value = data.get(key)
        if isinstance(value, Mapping) and {"feat_model", "classifier"} <= set(value):
            parts = _two_part("classifier-balancing", value["feat_model"], value["classifier"])
            parts.notes.append(f"The weights are those under {key!r}.")
            return parts
    return None


def _mislas(data: Mapping[str, Any]) -> Parts | None:
    """MiSLAS (Zhong et al. 2021, arXiv 2104.00466): model, classifier and, in stage 2, LWS."""
    if not {"state_dict_model", "state_dict_classifier"} <= set(data):
        return None
    if "state_dict_block" in data:
        raise CheckpointError(
            "This MiSLAS checkpoint has an extra residual block between the network and its "
            "classifier ('state_dict_block', their Places-LT models), an architecture that none of "
            "the supported families has. Export it to ONNX from its own code and give the .onnx."
        )
    scaling = data.get("state_dict_lws_model")
    parts = _two_part(
        "MiSLAS", data["state_dict_model"], data["state_dict_classifier"], scaling or {}
    )
    if scaling:
        parts.trained_with = "label_aware_smoothing"
    parts.notes.append(
        "MiSLAS re-numbers the labels by class size on some data sets, largest class first: make "
        "sure that the class table is in the order of this file's labels."
    )
    return parts


def _two_part(
    layout: str,
    features: Mapping[str, Any],
    classifier: Mapping[str, Any],
    scaling: Mapping[str, Any] | None = None,
) -> Parts:
    if not is_state_dict(features) or not is_state_dict(classifier):
        raise CheckpointError(
            f"This looks like a {layout} checkpoint, but its feature model or classifier holds no "
            "weights; the run that wrote it did not finish, or the head is missing."
        )
    head = strip_prefixes(classifier)
    head |= strip_prefixes(scaling or {})
    multiplier = next((head.pop(name) for name in _MULTIPLIERS if name in head), None)
    tensors = strip_prefixes(features) | head
    parts = Parts(layout, tensors, dict(tensors))
    if not _is_cifar(tensors):
        parts.preprocessing = _CLASSIC
        parts.notes.append(_CLASSIC_NOTE)
    if multiplier is not None:
        parts.logit_scale = multiplier.detach().double().flatten().numpy()
        parts.trained_with = "lws"
        parts.notes.append(
            "The second stage's learned scale of each class's logit is folded into the head."
        )
    return parts


def _ldam_drw(data: Mapping[str, Any]) -> Parts | None:
    """LDAM-DRW (Cao et al. 2019, arXiv 1906.07413): ``epoch, arch, state_dict, best_acc1``.

    Its cosine head stores ``linear.weight`` as (features, classes), without bias and without the
    scale s, which lives in the loss.
    """
    weights: Any = data.get("state_dict")
    if not {"epoch", "arch", "best_acc1"} <= set(data) or not is_state_dict(weights):
        return None
    tensors = strip_prefixes(weights)
    if not _is_cifar(tensors) or "linear.weight" not in tensors:
        return None
    parts = Parts("LDAM-DRW", tensors, dict(weights), arch=str(data["arch"]), family="cifar")
    if "linear.bias" not in tensors:
        parts.cosine = True
        parts.trained_with = "ldam"
    return parts


def _bbn(data: Mapping[str, Any]) -> Parts | None:
    """BBN (Zhou et al. 2020, arXiv 1912.02413): ``backbone.*`` and ``classifier.*``.

    Two branches show as ``cb_block`` and ``rb_block``; a head without bias is its FCNorm, whose
    rows are classes. BBN's own linear heads have a bias.
    """
    weights: Any = data.get("state_dict")
    if not is_state_dict(weights):
        return None
    outer = {key.removeprefix("module.") for key in weights}
    rest = {key for key in outer if not key.startswith("backbone.")}
    if not rest or rest == outer or not rest <= {"classifier.weight", "classifier.bias"}:
        return None
    tensors = strip_prefixes(weights)
    if "conv1.weight" not in tensors or "layer1.0.conv1.weight" not in tensors:
        return None
    parts = Parts("BBN", tensors, dict(weights))
    two_branches = any(key.startswith("cb_block.") for key in tensors)
    cifar = _is_cifar(tensors)
    if two_branches:
        parts.arch = "bbn:cifar-resnet32" if cifar else "bbn:resnet50"
        parts.trained_with = "bbn"
    elif not cifar:
        parts.arch = "torchvision:resnet50"
    if "classifier.bias" not in tensors:
        parts.cosine = True
        parts.trained_with = parts.trained_with or "ldam"
    if not cifar:
        parts.preprocessing = _CLASSIC
        parts.notes.append(_CLASSIC_NOTE)
    return parts


def _is_cifar(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the CIFAR ResNets: three stages behind a 3×3 convolution to 16 channels."""
    first = tensors.get("conv1.weight")
    return first is not None and tuple(first.shape) == (16, 3, 3, 3)


RESEARCH_LAYOUTS: tuple[Callable[[Mapping[str, Any]], Parts | None], ...] = (
    _classifier_balancing,
    _mislas,
    _ldam_drw,
    _bbn,
)
