"""Non-maximum suppression with fixed sizes: matrix products only, the same boxes as the greedy one.

Greedy suppression over boxes sorted by score is the fixed point of

    keep_j = not any(keep_i and IoU_ij > t, i < j)

reached from ``keep = 1`` after as many rounds as its longest chain of boxes that suppress each
other in turn has links (Cluster-NMS, Zheng et al. 2020, arXiv 2005.03572, Proposition 1). Each
round is one matrix product, so the graph has no NonZero, no loop and no axis that depends on what
is in the photograph: TensorRT builds it, and batches need no special case.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ROUNDS", "cluster_nms", "pairwise_iou"]

# Chains this long were never seen on photographs; a longer one leaves a few boxes undecided, which
# comparing the exported graph with the reference shows.
ROUNDS = 12


def pairwise_iou(boxes: Tensor) -> Tensor:
    """Return the intersection over union of all pairs, shape (N, K, 4) to (N, K, K)."""
    # One coordinate at a time: a third of the memory.
    x1, y1, x2, y2 = (side[:, :, None] for side in boxes.unbind(dim=-1))
    u1, v1, u2, v2 = (side[:, None, :] for side in boxes.unbind(dim=-1))
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    shared = width * height
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
    union = area[:, :, None] + area[:, None, :] - shared
    return shared / union.clamp(min=torch.finfo(boxes.dtype).tiny)


def cluster_nms(
    boxes: Tensor,
    usable: Tensor,
    iou: float,
    rounds: int = ROUNDS,
    may_suppress: Tensor | None = None,
) -> Tensor:
    """Return which boxes survive.

    Parameters
    ----------
    boxes : array of shape (N, K, 4), xyxy, best first.
    usable : array of shape (N, K), float, 1 for boxes that take part and 0 for others.
    iou : two boxes that overlap more are the same thing.
    rounds : bound on the length of chains. Where one is longer, an odd number leaves boxes out that
        the greedy way keeps, and an even one keeps boxes that it leaves out.
    may_suppress : array of shape (N, K, K), bool: whether the row's box, which must be the better
        one, may suppress the column's; None: every earlier box every later one.

    Returns
    -------
    array of shape (N, K), float, of 0 and 1.
    """
    same = pairwise_iou(boxes) > iou
    if may_suppress is None:
        suppresses = torch.triu(same.to(boxes.dtype), diagonal=1)
    else:
        suppresses = (same & may_suppress).to(boxes.dtype)
    usable = usable[:, None, :]
    keep = usable
    for _ in range(min(rounds, boxes.shape[1] + rounds % 2)):
        keep = usable * (torch.matmul(keep, suppresses) < 0.5).to(boxes.dtype)
    return keep[:, 0, :]
