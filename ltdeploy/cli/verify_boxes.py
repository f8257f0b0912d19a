"""``ltdeploy verify`` of a detector: average precision of both sides, group by group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LtdeployError, UsageError, did_you_mean, numbered
from .options import read_outputs
from .output import Output, encode, write_text
from .runtime import ExitCode

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..verify.boxes import MatchedBy

__all__ = ["verify_boxes"]


def verify_boxes(
    output: Output,
    bundle: Bundle,
    data: str,
    *,
    root: str | None,
    reference: str | None,
    engine: str,
    margin: float,
    html: str | None,
    strict: bool,
    trust_pickle: bool,
    outputs: str | None = None,
    by: str | None = None,
    attached: bool = True,
) -> int:
    """Verify a detector, print the verdict, write JSON and report, and return the exit code.

    Parameters
    ----------
    outputs : file with the mapping of an ONNX reference; None takes the bundle's.
    by : ``boxes`` or ``masks``; None is boxes.
    attached : keep the report in the bundle where ``html`` does not say another place.
    """
    from ..bundle import attach
    from ..datasets import open_boxes
    from ..verify.boxes import box_rows, render_box_report, sentence, verify_detector

    done = verify_detector(
        bundle,
        open_boxes(data, root=root),
        reference=reference,
        engine=engine,
        margin=margin,
        by=_matched_by(by),
        trust_pickle=trust_pickle,
        outputs=read_outputs(outputs),
        track=output.track,
    )
    result = done.result
    output.json({**result.to_dict(), "provenance": done.provenance})
    header, *rows = box_rows(result)
    output.table(header, rows)
    if "Note" in done.provenance:
        output.warn(done.provenance["Note"])
    output.left_out(done.unreadable)
    if result.without_objects:
        names = ", ".join(result.without_objects[:10])
        output.warn(
            f"{numbered(len(result.without_objects), 'class', 'classes')} in no photograph of "
            f"{done.dataset.name}, not tested: {names}"
            f"{' …' if len(result.without_objects) > 10 else ''}"
        )
    table = bundle.classes
    if not len(table.members(table.rule.names[-1])):
        rarest = min(range(len(table)), key=table.counts.__getitem__)
        output.warn(
            f"no class is in the group {table.rule.names[-1]}: the rarest, {table.names[rarest]}, "
            f"has {table.counts[rarest]:,} training images and is in {table.groups[rarest]}. See "
            "each class's own figures in the report."
        )
    output.say(f"Measured {done.provenance['Candidate']}, against {done.provenance['Reference']}")
    output.say(f"{result.verdict.upper()}  {sentence(result)}")
    try:
        if html is not None:
            write_text(Path(html), render_box_report(done, title=bundle.name))
        elif attached:
            page = render_box_report(done, title=bundle.name)
            attach(bundle, {"report.html": encode(page)})
        if html is not None or attached:
            output.say(f"Report   {html or bundle.path / 'report.html'}")
    except LtdeployError as error:
        output.warn(str(error))
    if result.verdict == "fail" or (strict and result.verdict != "pass"):
        return ExitCode.GATE_FAILED
    if result.verdict != "pass":
        return ExitCode.UNDECIDED
    return ExitCode.BAD_INPUT if done.unreadable else ExitCode.OK


def _matched_by(by: str | None) -> MatchedBy:
    if by is None or by == "boxes":
        return "boxes"
    if by == "masks":
        return "masks"
    raise UsageError(
        f"--by is {by!r}; expected boxes or masks.{did_you_mean(by, ('boxes', 'masks'))}"
    )
