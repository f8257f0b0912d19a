"""Several detectors as one: experts that know some of the classes, other sizes, and mirror images.

A bundle's graph has one size. To look at a photograph at several, export the checkpoint once per
size (``export --canvas``) and put the bundles together here: test-time augmentation is an ensemble
of a model with itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .boxes import Detections
from .detector import DetectionPredictor, DetectionResult
from .errors import UsageError, did_you_mean
from .fusion import FusionRule, fuse, known_classes
from .images import ImageSource, load_image
from .raising import GroupRaise
from .vocabulary import Aliases, class_maps, translate

__all__ = ["DetectorEnsemble"]


class DetectorEnsemble:
    """Finds boxes with several bundles and fuses what they find.

    A class counts the models that know it, so that what a single expert knows is not lowered by the
    others' silence. The caller closes the bundles.

    Parameters
    ----------
    main : the model whose classes the answers have.
    others : by name, the main model at other sizes, or experts that know some of its classes.
    mirrored : whether each also sees the photograph flipped left to right, at twice the time.
    rule : how detections of one object become one.
    weights : by name, of the others, above 0; the main model has 1, and so has who is not named.
    aliases : per expert, its names to the main model's: :func:`ltdeploy.vocabulary.class_maps`.
    raised : the raise of rare groups before the best K are cut, of :func:`fit_group_raise`.

    Raises
    ------
    DataError
        If the vocabularies disagree.
    UsageError
        For weights that do not fit, or an ensemble of one model that is not mirrored.

    Examples
    --------
    ::

        sizes = [ltdeploy.load_detector(f"cells-{side}.ltd") for side in (480, 608)]
        both = DetectorEnsemble(sizes[0], {"608": sizes[1]}, mirrored=True)
        print(both.predict("smear.jpg").found)
    """

    def __init__(
        self,
        main: DetectionPredictor,
        others: Mapping[str, DetectionPredictor] | None = None,
        *,
        mirrored: bool = False,
        rule: FusionRule | None = None,
        weights: Mapping[str, float] | None = None,
        aliases: Mapping[str, Aliases] | None = None,
        raised: GroupRaise | None = None,
    ) -> None:
        others = others or {}
        if not others and not mirrored:
            raise UsageError(
                "An ensemble of one model needs mirrored=True; there is nothing to fuse otherwise."
            )
        self.main, self.classes = main, main.classes
        self.rule, self.raised = rule or FusionRule(), raised
        maps = class_maps(
            main.classes.names, {name: one.classes.names for name, one in others.items()}, aliases
        )
        self._members = [(main, None), *((one, maps[name]) for name, one in others.items())]
        self._flips = (False, True) if mirrored else (False,)
        self._weights = np.repeat(_in_order(weights or {}, others), len(self._flips)).tolist()
        known = known_classes([labels for _, labels in self._members], len(main.classes))
        self._knows = known.repeat(len(self._flips), axis=0)

    def fused(self, image: ImageSource) -> Detections:
        """Return all that was found in one photograph, fused, best first, neither raised nor cut.

        Raises
        ------
        ImageError
            If the image cannot be used.
        """
        pixels = load_image(image)
        found = []
        for model, labels in self._members:
            for mirrored in self._flips:
                canvas, placement = model.canvas.prepare(pixels, mirrored=mirrored)
                (one,) = model.detect(canvas[None], [placement])
                found.append(one if labels is None else translate(one, labels))
        return fuse(found, self.rule, self._knows, self._weights)

    def detect(self, image: ImageSource) -> Detections:
        """Return the best K of one photograph, K as of the main model, raised where one was fitted.

        Raises
        ------
        ImageError
            If the image cannot be used.
        """
        found = self.fused(image)
        if self.raised is not None:
            found = self.raised.apply(found, self.classes)
        return found[: self.main.keep_rule.top_k]

    def predict(self, image: ImageSource, *, min_score: float = 0.05) -> DetectionResult:
        """Return the best K of one photograph with names and groups, as a single model's.

        Raises
        ------
        ImageError
            If the image cannot be used.
        """
        return self.main.named("#0", self.detect(image), min_score)


def _in_order(weights: Mapping[str, float], others: Mapping[str, object]) -> list[float]:
    for name in weights:
        if name not in others:
            raise UsageError(
                f"A weight is given for {name!r}, which is none of the others: "
                f"{', '.join(others) or 'there are none'}.{did_you_mean(name, others)}"
            )
    return [1.0, *(float(weights.get(name, 1.0)) for name in others)]
