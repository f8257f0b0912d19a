"""For a team's own regression tests: assert that a bundle kept the tail."""

from __future__ import annotations

import os

from .bundle import Bundle
from .datasets import Dataset, open_dataset
from .verify import VerifyResult, summarise, verify_bundle

__all__ = ["assert_tail_maintained"]


def assert_tail_maintained(
    bundle: Bundle | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    margin: float = 1.0,
    engine: str = "auto",
    allow_inconclusive: bool = False,
) -> VerifyResult:
    """Fail the test unless no frequency group lost more than ``margin`` points.

    Parameters
    ----------
    bundle : ``NAME.ltd``.
    data : labelled images, as a data set or as what ``--data`` takes.
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
    dataset = data if isinstance(data, Dataset) else open_dataset(os.fspath(data))
    done = verify_bundle(bundle, dataset, reference=reference, margin=margin, engine=engine)
    accepted = {"pass", "inconclusive"} if allow_inconclusive else {"pass"}
    if done.unreadable:
        identifier, reason = done.unreadable[0]
        raise AssertionError(
            f"{len(done.unreadable)} images of {dataset.name} could not be read; the first is "
            f"{identifier}: {reason}"
        )
    if done.result.verdict not in accepted:
        raise AssertionError(summarise(done.result, identifier=dataset.identifier))
    return done.result
