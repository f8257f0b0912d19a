"""For a team's own regression tests: assert that a bundle kept the tail."""

from __future__ import annotations

import os

from .bundle import Bundle, open_bundle
from .datasets import Dataset, open_boxes, open_dataset
from .datasets.boxes import BoxDataset
from .errors import DataError
from .verify import VerifyResult, summarise, verify_bundle
from .verify.boxes import BoxVerifyResult, summarise_boxes, verify_detector

__all__ = ["assert_tail_maintained"]


def assert_tail_maintained(
    bundle: Bundle | str | os.PathLike[str],
    data: Dataset | BoxDataset | str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    margin: float = 1.0,
    engine: str = "auto",
    allow_inconclusive: bool = False,
) -> VerifyResult | BoxVerifyResult:
    """Fail the test unless no frequency group lost more than ``margin`` points.

    Points of accuracy, or of a detector's average precision.

    Parameters
    ----------
    bundle : ``NAME.ltd``.
    data : labelled images, as a data set or as what ``--data`` takes; for a detector a COCO or LVIS
        json.
    reference : a checkpoint or another bundle, for example the one in production; None takes the
        file the bundle was exported from.
    allow_inconclusive : also accept that there were too few images to decide.

    Raises
    ------
    AssertionError
        With a short table of groups, worst classes and flips.
        Images that cannot be read fail it too: a test that skips them proves less than it says.

    Examples
    --------
    ::

        from ltdeploy.testing import assert_tail_maintained

        def test_new_model_is_as_good_as_the_old_one():
            assert_tail_maintained("new.ltd", "photos/test", reference="old.ltd")
    """
    __tracebackhide__ = True  # pytest shows the table, not this function
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    accepted = {"pass", "inconclusive"} if allow_inconclusive else {"pass"}
    result: VerifyResult | BoxVerifyResult
    if opened.is_detector:
        boxes = open_boxes(os.fspath(data)) if isinstance(data, str | os.PathLike) else data
        if not isinstance(boxes, BoxDataset):
            raise DataError(f"{opened.path} is a detector; expected a BoxDataset or its json file.")
        found = verify_detector(opened, boxes, reference=reference, margin=margin, engine=engine)
        unreadable, result = found.unreadable, found.result
        name, text = boxes.name, summarise_boxes(found.result)
    else:
        images = open_dataset(os.fspath(data)) if isinstance(data, str | os.PathLike) else data
        if isinstance(images, BoxDataset):
            raise DataError(f"{opened.path} is a classifier; expected a Dataset or its path.")
        done = verify_bundle(opened, images, reference=reference, margin=margin, engine=engine)
        unreadable, result = done.unreadable, done.result
        name, text = images.name, summarise(done.result, identifier=images.identifier)
    if unreadable:
        identifier, reason = unreadable[0]
        raise AssertionError(
            f"{len(unreadable)} images of {name} could not be read; the first is "
            f"{identifier}: {reason}"
        )
    if result.verdict not in accepted:
        raise AssertionError(text)
    return result
