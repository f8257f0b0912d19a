"""``ltdeploy bench``: how fast each engine is, next to what it does to the tail."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ..errors import UsageError
from . import options as opt
from .output import Output, write_text
from .runtime import ExitCode, interrupt_is_handled
from .verify import check_report_folder

if TYPE_CHECKING:
    from ..bench import BenchResult
    from ..metrics import Figure

__all__ = ["bench"]

T = TypeVar("T")

_WIDE = 108


def bench(
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLE…", help="Folders NAME.ltd, compared in one run.")
    ],
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="E", help="NAME[:k=v]; repeatable. Default: all that work here."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,…", help="Images per run.")] = "1,8",
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Threads of one run. Default: the engine's threads=N, else one, and all cores.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images, for detectors boxes: adds accuracies. Else golden samples are "
            "timed.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", help="Measured time of each configuration.")
    ] = 3.0,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where a report goes, with the picture.")
    ] = None,
    root: opt.Root = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Measure latency and throughput by batch size and threads, next to the groups' accuracies.

    Ctrl-C prints what is measured by then.

    Example: ltdeploy bench moths.ltd moths.int8.ltd --data val/ --html bench.html
    """
    output = Output(json, quiet)
    check_report_folder(html)
    batches = _whole_numbers("--batch", batch)
    of_threads = None if threads is None else _whole_numbers("--threads", threads)

    from ..bench import BenchOptions, open_bundles, render_report, run_bench
    from ..datasets import open_boxes, open_dataset

    opened = open_bundles(bundles)  # before the data: what they are decides how those are read
    read = open_boxes if any(bundle.is_detector for bundle in opened.values()) else open_dataset
    result = run_bench(  # on Ctrl-C it returns what was measured so far
        opened,
        engines=engine or (),
        dataset=None if data is None else read(data, root=root),
        options=BenchOptions(batches, of_threads, seconds),
        track=_CalmTracker(output),
    )
    if result.interrupted:
        interrupt_is_handled()
    told = result.to_dict()
    output.json(told)
    _show(output, result)
    if html is not None:
        title = ", ".join(dict.fromkeys(Path(bundle).name for bundle in bundles))
        write_text(Path(html), render_report(told, title=title))
        output.say(f"Report   {html}")
    if result.interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.BAD_INPUT if _is_incomplete(result, engine) else ExitCode.OK


class _CalmTracker:
    """The progress bars of the command line, but for the rounds: there a line now and then.

    A bar redraws itself ten times a second, on a core that is being measured.
    """

    def __init__(self, output: Output) -> None:
        self._output = output

    def __call__(self, items: Iterable[T], *, total: int | None, label: str) -> Iterator[T]:
        """Yield the items; see :class:`~ltdeploy.progress.Tracker`."""
        if label != "bench" or not total:
            yield from self._output.track(items, total=total, label=label)
            return
        shown = not self._output.quiet and sys.stderr.isatty()
        began = time.monotonic()
        try:
            for number, item in enumerate(items):
                if shown:
                    left = _time_left(time.monotonic() - began, number, total)
                    print(f"\rbench {number}/{total}{left}", end="", file=sys.stderr, flush=True)
                yield item
        finally:
            if shown:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _time_left(spent_s: float, done: int, total: int) -> str:
    """Return how long what is left takes if it goes on like this; nothing before the first.

    >>> _time_left(30.0, 10, 40), _time_left(0.0, 0, 40)
    (', 1:30 left', '')
    """
    if not done:
        return ""
    minutes, seconds = divmod(round(spent_s / done * (total - done)), 60)
    return f", {minutes}:{seconds:02d} left"


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} is {text!r}; expected whole numbers with commas, like 1,8."
        ) from None


def _is_incomplete(result: BenchResult, asked: list[str] | None) -> bool:
    """Tell whether an engine failed that should not have, or images were left out."""
    return any(
        (one.failure is not None and (asked or one.speeds))
        or (one.accuracy is not None and one.accuracy.unreadable)
        for one in result.contestants
    )


def _show(output: Output, result: BenchResult) -> None:
    """Print machine, speeds, accuracies, what was not measured, warnings and the one sentence."""
    from ..bench import sentence

    for label in ("CPU", "Instruction sets", "GPU", "Versions"):
        if label in result.provenance:
            output.say(f"{label:<17}{result.provenance[label]}")
    output.say(f"{'Timed on':<17}{result.inputs}; one caller, decoding not included")
    _show_speeds(output, result)
    _show_accuracies(output, result)
    for name, reason in result.failures().items():
        output.say(f"Not measured: {name}: {reason}")
    for text in result.warnings:
        output.warn(text)
    output.say(sentence(result))


def _show_speeds(output: Output, result: BenchResult) -> None:
    from ..bench.result import short

    wide = output.console.width >= _WIDE
    rows = []
    for batch, threads in result.cells:
        for label, one in zip(result.labels(), result.contestants, strict=True):
            speed = one.speed_at(batch, threads)
            if speed is None:
                continue
            images, ratio, peak = speed.images_per_s, speed.ratio, speed.peak_bytes
            row = [label, str(batch), str(threads), short(speed.p50_ms.value)]
            row += [short(speed.p95_ms), *([short(speed.p99_ms)] if wide else [])]
            row += [short(images.value)]
            row += ["–" if ratio is None else f"{ratio.value:.2f}"]
            if wide:
                row[-2] += f" ({short(images.low)} … {short(images.high)})"
                row[-1] += "" if ratio is None else f" ({ratio.low:.2f} … {ratio.high:.2f})"
                row += ["–" if peak is None else f"{peak / 2**20:,.0f}"]
            rows.append(row)
    columns = ["engine", "batch", "threads", "p50 ms", "p95", *(["p99"] if wide else [])]
    columns += ["images/s", "× first", *(["peak MiB"] if wide else [])]
    output.table(columns, rows)


def _show_accuracies(output: Output, result: BenchResult) -> None:
    from ..webpage.pieces import signed

    tail = result.groups[-1]
    rows = []
    for label, one in zip(result.labels(), result.contestants, strict=True):
        if one.accuracy is None:
            continue
        names = (*result.groups, "balanced")
        values = {**one.accuracy.groups, "balanced": one.accuracy.balanced}
        change = one.accuracy.change
        moved = {} if change is None else {**change.groups, "balanced": change.balanced}
        figures = [_percent(values.get(name), moved.get(name)) for name in names]
        of_tail = moved.get(tail)
        interval = "–" if of_tail is None else f"{signed(of_tail.low)} … {signed(of_tail.high)}"
        flips = "–" if change is None else f"{change.flips:,}"
        rows.append([label, *figures, interval, flips])
    if rows:
        output.table(["engine", *result.groups, "balanced", f"95 % of {tail}", "flips"], rows)


def _percent(figure: Figure | None, change: Figure | None) -> str:
    """Return an accuracy, and the points won over the first."""
    from ..webpage.pieces import signed

    if figure is None:
        return "–"
    return f"{figure.value:.1f}" + ("" if change is None else f" ({signed(change.value)})")
