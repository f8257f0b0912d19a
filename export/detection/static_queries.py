"""transformers' query detectors as graphs: DETR, RT-DETR v2 and D-FINE, with a dynamic batch.

They have a fixed number of queries by design. Two things in their code keep them from tracing:
``len(tensor)`` freezes the batch unless ``torch.export`` reads the code itself (``strict=True``;
the default runs it, and Python's ``len`` must answer with a number), and their checks of constant
shapes become nodes that no translation to ONNX knows (``drop_checks`` of the exporter).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ltdeploy.models.detectors.reference_queries import canvas_boxes

__all__ = ["StaticDetr", "StaticQueries"]


class StaticQueries(nn.Module):
    """RT-DETR v2 (Lv et al. 2024, arXiv 2407.17140) or D-FINE (Peng et al. 2024, arXiv 2410.13842).

    Parameters
    ----------
    module : of transformers, in evaluation mode.
    height_px, width_px : the canvas, multiples of the largest stride.
    """

    def __init__(self, module: nn.Module, height_px: int, width_px: int) -> None:
        super().__init__()
        self.module = module
        self.size = (height_px, width_px)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, Q, 4) in pixels of the canvas and logits (N, Q, C).

        Parameters
        ----------
        images : array of shape (N, 3, H, W), float32, normalised.
        """
        told = self.module(pixel_values=images)
        return canvas_boxes(told.pred_boxes, *self.size), told.logits


class StaticDetr(nn.Module):
    """DETR (Carion et al. 2020, arXiv 2005.12872).

    transformers makes a mask of ones for the whole batch, which stays in the graph as cumulative
    sums and as a mask in all attentions. Of a canvas every pixel counts: the positions are
    constants, and the attentions take no mask.

    Parameters
    ----------
    module : of transformers, in evaluation mode.
    height_px, width_px : the canvas.
    """

    positions: Tensor

    def __init__(self, module: Any, height_px: int, width_px: int) -> None:
        super().__init__()
        self.module = module
        self.size = (height_px, width_px)
        detr = module.model
        with torch.no_grad():
            canvas = torch.zeros((1, 3, height_px, width_px))
            feature, mask = detr.backbone(canvas, canvas[:, 0] + 1)[-1]
            positions = detr.position_embedding(
                shape=feature.shape, device=feature.device, dtype=feature.dtype, mask=mask
            )
        flat = positions.flatten(2).transpose(1, 2).contiguous()
        self.register_buffer("positions", flat, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, Q, 4) in pixels of the canvas and logits (N, Q, F + 1).

        Parameters
        ----------
        images : array of shape (N, 3, H, W), float32, normalised.
        """
        module: Any = self.module
        detr = module.model
        levels = detr.backbone.model(images)  # a list if timm made it
        feature = getattr(levels, "feature_maps", levels)[-1]
        encoded = detr.encoder(
            inputs_embeds=detr.input_projection(feature).flatten(2).transpose(1, 2),
            attention_mask=None,
            spatial_position_embeddings=self.positions,
        ).last_hidden_state
        queries = detr.query_position_embeddings.weight.expand(images.shape[0], -1, -1)
        decoded = detr.decoder(
            inputs_embeds=torch.zeros_like(queries),
            attention_mask=None,
            spatial_position_embeddings=self.positions,
            object_queries_position_embeddings=queries,
            encoder_hidden_states=encoded,
            encoder_attention_mask=None,
        ).last_hidden_state
        boxes = module.bbox_predictor(decoded).sigmoid()
        return canvas_boxes(boxes, *self.size), module.class_labels_classifier(decoded)
