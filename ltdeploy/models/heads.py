"""Finding the head of a network by watching it run, and changing its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .cosine_head import CosineHead
from .head import Head

__all__ = ["find_head", "fold_batch_norm", "scale_head"]

_Layer = nn.Linear | nn.Conv2d | CosineHead | nn.BatchNorm1d
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class _Call:
    path: str
    layer: nn.Module
    given: Tensor
    result: Tensor


def find_head(module: nn.Module, height_px: int, width_px: int) -> tuple[Head, str]:
    """Return the head and its dotted path, proven on a probe batch.

    A layer is the head if its output *is* the output of the network; its weights are then checked
    to reproduce that output. Two heads whose mean is the output (distilled transformers) come as
    one head on the concatenated features; that one, and a head behind which something not affine
    follows, is marked as not foldable.

    Parameters
    ----------
    module : in evaluation mode.
    height_px, width_px : size of the probe images.

    Raises
    ------
    CheckpointError
        If the network does not run on that size, does not return (N, C) logits, or no layer's
        output can be related to them.
    """
    calls, logits = _probe(module, height_px, width_px)
    final = [c for c in calls if _same(c.result, logits)]
    if final:
        return _head_of(final[-1], logits), final[-1].path
    classes = logits.shape[1]
    wide = [c for c in calls if isinstance(c.layer, nn.Linear) and c.result.shape == logits.shape]
    if len(wide) == 2 and _close((wide[0].result + wide[1].result) / 2, logits):
        weights = [_weight(c.layer) / 2 for c in wide]
        bias = _mean([_bias(c.layer) for c in wide], classes)
        joint = Head("linear", np.concatenate(weights, axis=1), bias, foldable=False)
        return joint, wide[-1].path
    last = [c for c in calls if _weight(c.layer).shape[0] == classes and _is_map(c.layer)]
    if last:
        layer = last[-1].layer
        return Head("linear", _weight(layer), _bias(layer), foldable=False), last[-1].path
    raise CheckpointError(
        f"The network's {classes} outputs come from no linear layer that could be found (the last "
        f"layers seen: {', '.join(c.path for c in calls[-3:]) or 'none'}); a head is needed to fix "
        "the tail."
    )


def _probe(module: nn.Module, height_px: int, width_px: int) -> tuple[list[_Call], Tensor]:
    calls: list[_Call] = []

    def watch(path: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Any, ...], result: Any) -> None:
            if given and isinstance(given[0], Tensor) and isinstance(result, Tensor):
                calls.append(_Call(path, layer, given[0], result))

        return hook

    handles = [
        layer.register_forward_hook(watch(path))
        for path, layer in module.named_modules()
        if isinstance(layer, _Layer)
    ]
    images = torch.randn(2, 3, height_px, width_px, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            logits = module(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The network does not run on images of {height_px}×{width_px} pixels: {reason}. Give "
            "the size it was made for with --image-size."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CheckpointError(
            f"The network returns {got} for two images; expected logits of shape (2, classes). "
            "Only classifiers with one output are supported."
        )
    return calls, logits


def _head_of(call: _Call, logits: Tensor) -> Head:
    layer = call.layer
    if isinstance(layer, nn.BatchNorm1d):
        raise CheckpointError(
            f"A batch normalisation {call.path!r} follows the last linear layer and could not be "
            "folded into it; export the model to ONNX from its own code and give the .onnx."
        )
    if isinstance(layer, CosineHead):
        weight = layer.weight.detach().double().numpy().T.copy()
        return Head("cosine", weight, scale=float(layer.scale))
    weight, bias = _weight(layer), _bias(layer)
    given = call.given.double()
    if given.ndim == 4:
        given = given.flatten(1)
    again = given.numpy() @ weight.T if given.shape[1] == weight.shape[1] else None
    if again is None:
        # Not the last axis of a pooled vector: the layer works on a map and is pooled later.
        return Head("linear", weight, bias, foldable=False)
    again = again if bias is None else again + bias
    if not _close(torch.from_numpy(again), logits):
        raise CheckpointError(
            f"The layer {call.path!r} gives the network's output, but not as W x + b of its own "
            f"weights ({type(layer).__name__}); such a head is not supported."
        )
    return Head("linear", weight, bias)


def fold_batch_norm(module: nn.Module, height_px: int, width_px: int) -> str | None:
    """Fold a batch normalisation that follows the last linear layer into it, in place.

    ``W' = diag(γ/σ) W``, ``b' = γ (b − μ)/σ + β``, in float64. Row norms mean nothing before that.

    Returns
    -------
    the path of the normalisation that was folded, or None when there is none.
    """
    if not any(isinstance(layer, nn.BatchNorm1d) for layer in module.modules()):
        return None
    calls, logits = _probe(module, height_px, width_px)
    final = [c for c in calls if _same(c.result, logits)]
    if not final or not isinstance(final[-1].layer, nn.BatchNorm1d):
        return None
    norm = final[-1]
    before = [c for c in calls if isinstance(c.layer, nn.Linear) and _same(c.result, norm.given)]
    layer = norm.layer
    if not before or not isinstance(layer, nn.BatchNorm1d) or layer.running_var is None:
        return None
    mean = layer.running_mean if layer.running_mean is not None else torch.zeros(1)
    sigma = (layer.running_var.double() + layer.eps).sqrt()
    gain = (1.0 if layer.weight is None else layer.weight.double()) / sigma
    shift = (0.0 if layer.bias is None else layer.bias.double()) - gain * mean.double()
    linear = before[-1].layer
    weight = _weight(linear) * gain.detach().numpy()[:, None]
    bias = _bias(linear)
    moved = shift if bias is None else shift + gain * torch.from_numpy(bias)
    _assign(linear, weight, moved.detach().numpy())
    module.set_submodule(norm.path, nn.Identity())
    return norm.path


def scale_head(module: nn.Module, path: str, factors: npt.NDArray[np.float64]) -> None:
    """Multiply each class's logit by a factor, in place: rows and bias of the linear head.

    Raises
    ------
    CheckpointError
        If there is not one factor per class, or the head is not linear.
    """
    layer = module.get_submodule(path)
    weight, bias = _weight(layer), _bias(layer)
    if isinstance(layer, CosineHead) or factors.shape != weight.shape[:1]:
        raise CheckpointError(
            f"The file scales {factors.shape[0]} logits, but the head {path!r} has "
            f"{weight.shape[0]} classes and is {type(layer).__name__}; they do not belong together."
        )
    _assign(layer, weight * factors[:, None], None if bias is None else bias * factors)


def _assign(
    layer: nn.Module, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64] | None
) -> None:
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise CheckpointError(
            f"The head is a {type(layer).__name__}; only linear heads can be given other weights."
        )
    new = torch.from_numpy(weight).to(layer.weight.dtype).reshape(-1, *layer.weight.shape[1:])
    layer.weight = nn.Parameter(new, requires_grad=False)
    if bias is None:
        layer.register_parameter("bias", None)
    else:
        shift = torch.from_numpy(np.ascontiguousarray(bias)).to(layer.weight.dtype)
        layer.bias = nn.Parameter(shift, requires_grad=False)


def _is_map(layer: nn.Module) -> bool:
    """Whether the layer is a plain linear map of its input vector, or of each pixel's."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def _weight(layer: nn.Module) -> npt.NDArray[np.float64]:
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return np.empty((0, 0))
    weight: npt.NDArray[np.float64] = layer.weight.detach().double().flatten(1).numpy()
    return weight


def _bias(layer: nn.Module) -> npt.NDArray[np.float64] | None:
    bias = getattr(layer, "bias", None)
    return bias.detach().double().numpy() if isinstance(bias, Tensor) else None


def _mean(
    biases: list[npt.NDArray[np.float64] | None], classes: int
) -> npt.NDArray[np.float64] | None:
    if all(bias is None for bias in biases):
        return None
    total = np.zeros(classes)
    for bias in biases:
        total += 0.0 if bias is None else bias / len(biases)
    return total


def _same(result: Tensor, logits: Tensor) -> bool:
    flat = result.flatten(1) if result.ndim == 4 else result
    return flat.shape == logits.shape and torch.equal(flat, logits)


def _close(result: Tensor, logits: Tensor) -> bool:
    difference = (result.double() - logits.double()).abs().max()
    return bool(difference <= _TOLERANCE * max(1.0, float(logits.abs().max())))
