"""``ltdeploy verify`` and what it shares with ``compare``: the verdict, printed and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LtdeployError, UsageError, numbered
from . import options as opt
from .output import Output, encode, require_writable, write_text
from .runtime import ExitCode

if TYPE_CHECKING:
    from ..verify import Verification

__all__ = ["Data", "Html", "Margin", "Strict", "check_report_folder", "conclude", "verify"]

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Folder of class folders, .parquet, .txt list, CIFAR pickles, species; of a detector "
        "COCO or LVIS .json.",
    ),
]
Margin = Annotated[
    float, typer.Option(metavar="POINTS", help="Accuracy, of a detector AP, that a group may lose.")
]
Html = Annotated[str | None, typer.Option(metavar="FILE", help="Where the report goes.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 where nothing can be decided.")]


def verify(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder NAME.ltd.")],
    data: Data,
    reference: Annotated[
        str | None,
        typer.Option(metavar="CKPT|BUNDLE", help="Default: the file that it was exported from."),
    ] = None,
    engine: opt.Engine = "auto",
    margin: Margin = 1.0,
    html: Html = None,
    strict: Strict = False,
    root: opt.Root = None,
    trust_pickle: opt.TrustPickle = False,
    outputs: opt.Outputs = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="boxes|masks", help="What a detector's AP is of; boxes.", show_default=False
        ),
    ] = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Prove class by class that the tail survived the export, or say where it did not.

    Exit code 0: it survived; 1: it did not; 3: too little data to say.
    """
    output = Output(json, quiet)
    check_report_folder(html)

    from ..bundle import attach, open_bundle
    from ..datasets import open_dataset
    from ..verify import baseline_json, report_html, verify_bundle

    opened = open_bundle(bundle)
    if opened.is_detector:
        from .verify_boxes import verify_boxes

        return verify_boxes(
            output,
            opened,
            data,
            root=root,
            reference=reference,
            engine=engine,
            margin=margin,
            html=html,
            strict=strict,
            trust_pickle=trust_pickle,
            outputs=outputs,
            by=by,
        )
    for option, given in {"--outputs": outputs, "--by": by}.items():
        if given is not None:
            raise UsageError(
                f"{option} is for detectors, and {bundle} is a classifier; leave it out."
            )
    dataset = open_dataset(data, root=root)
    done = verify_bundle(
        opened,
        dataset,
        reference=reference,
        engine=engine,
        margin=margin,
        trust_pickle=trust_pickle,
        track=output.track,
    )

    def write_report() -> str:
        page = report_html(done, title=opened.name, kind="verification")
        if html is not None:
            write_text(Path(html), page)
            return html
        attach(opened, {"report.html": encode(page), "baseline.json": encode(baseline_json(done))})
        return str(opened.path / "report.html")

    return conclude(output, done, strict, write_report)


def check_report_folder(html: str | None) -> None:
    """Refuse a ``--html`` that cannot be written, before the work instead of after it."""
    if html is not None and not Path(html).parent.is_dir():
        raise UsageError(
            f"--html is {html!r} and the folder {Path(html).parent} does not exist; make it first."
        )
    if html is not None:
        require_writable(Path(html))


def conclude(
    output: Output, done: Verification, strict: bool, write_report: Callable[[], str] | None
) -> int:
    """Print the verdict, write JSON and report, and return the exit code.

    The verdict comes first: a report that cannot be written does not change it.
    """
    from ..verify import WORST_CLASSES, group_rows, sentence, worst_classes
    from ..verify.result import name_some

    result = done.result
    output.json({**result.to_dict(), "provenance": done.provenance})
    output.say(f"Measured {done.provenance['Candidate']}, against {done.provenance['Reference']}")
    header, *rows = group_rows(result)
    output.table(header, rows)
    worst = worst_classes(result)
    if worst:
        output.say(WORST_CLASSES)
        output.table(
            ("class", "images", "reference", "candidate", "lost", "won", "q"),
            [
                (
                    c.name,
                    str(c.images),
                    f"{c.reference:.1f}",
                    f"{c.candidate:.1f}",
                    str(c.flips_lost),
                    str(c.flips_won),
                    f"{c.q_value:.2g}",
                )
                for c in worst
            ],
        )
    for note in result.notes:
        output.warn(note)
    output.left_out(done.unreadable)
    without = result.without_images
    if without:
        output.warn(
            f"{numbered(len(without), 'class', 'classes')} without an image in "
            f"{done.dataset.name}, and so not tested: {name_some(without)}"
        )
    output.say(f"{result.verdict.upper()}  {sentence(result)}")
    if write_report is not None:
        try:
            output.say(f"Report   {write_report()}")
        except LtdeployError as error:
            output.warn(str(error))
    if result.verdict == "fail" or (strict and result.verdict != "pass"):
        return ExitCode.GATE_FAILED
    if result.verdict != "pass":
        return ExitCode.UNDECIDED
    return ExitCode.BAD_INPUT if done.unreadable else ExitCode.OK
