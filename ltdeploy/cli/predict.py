"""``ltdeploy predict``: photographs → classes."""

from __future__ import annotations

import contextlib
import json as json_module
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ..errors import UsageError, numbered
from ..files import replacing
from . import options as opt
from .output import Output, program, quoted
from .runtime import ExitCode

if TYPE_CHECKING:
    from ..bulk import Inputs
    from ..loading import Answer

__all__ = ["predict"]


def predict(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder NAME.ltd.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT…", help="Images, folders of images, .txt lists of paths, .parquet files."
        ),
    ],
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", help="Classes per image, 5; of a detector boxes, 100."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="One row per image, .jsonl or .parquet; the same command again goes on where a "
            "killed one stopped.",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop what a killed run left of --out.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="ray[:k=v,…]", help="Ray actors: workers=2,cpus=1,gpus=0,address=auto."
        ),
    ] = None,
    root: opt.Root = None,
    engine: opt.Engine = "auto",
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Classify images, or find boxes in them.

    One that cannot be read is named, and the exit code is then 2.
    """
    output = Output(json, quiet)
    if top_k is not None and top_k < 1:
        raise UsageError(f"--top-k is {top_k}; expected 1 or more.")
    if Path(bundle).is_file():
        raise UsageError(
            f"{bundle} is a file; expected a bundle, a folder NAME.ltd. If it is a checkpoint, "
            f"make one of it with: {program()} export {quoted(bundle)}"
        )
    if out is not None and json is not None:
        raise UsageError("--out and --json write the same lines; give one of them.")
    if out is None and (restart or on is not None):
        given = "--restart" if restart else f"--on {on}"
        raise UsageError(f"{given} needs --out FILE.jsonl or FILE.parquet, which says where to.")

    from ..bulk import open_inputs

    images = open_inputs(inputs, root=root)
    if out is not None:
        failed = _into_file(output, bundle, images, out, top_k, engine, on, restart)
    else:
        failed = _shown(output, bundle, images, top_k, engine)
    return ExitCode.BAD_INPUT if failed else ExitCode.OK


def _into_file(
    output: Output,
    bundle: str,
    images: Inputs,
    out: str,
    top_k: int | None,
    engine: str,
    on: str | None,
    restart: bool,
) -> int:
    """Write every row to a file; return how many are errors."""
    from ..bulk import parse_ray, predict_to_file

    try:
        done = predict_to_file(
            bundle,
            images,
            out,
            top_k=top_k,
            engine=engine,
            ray=None if on is None else parse_ray(on),
            restart=restart,
            track=output.track,
            warn=output.warn,
        )
    except KeyboardInterrupt:
        again = shlex.join([program(), *(a for a in sys.argv[1:] if a != "--restart")])
        if Path(f"{out}.partial").exists():  # else there was no row yet
            output.warn(f"the rows so far are kept in {out}.partial; to go on behind them: {again}")
        raise
    if done.continued:
        output.say(f"Went on behind {numbered(done.continued, 'row')} of an earlier run.")
    answered, errors = numbered(done.rows - done.errors, "answer"), numbered(done.errors, "error")
    output.say(f"Wrote {answered} and {errors} to {out}.")
    if done.engine is not None:
        output.say(f"Answered by {done.engine}.")
    return done.errors


def _shown(output: Output, bundle: str, images: Inputs, top_k: int | None, engine: str) -> int:
    """Print every answer, or write it as a JSON line; return how many are errors."""
    from ..bulk import answers
    from ..bulk.models import default_top_k
    from ..loading import open_model

    failed = 0
    with open_model(bundle, engine) as model, _lines(output.json_path) as stream:
        top_k = default_top_k(model.bundle) if top_k is None else top_k
        found = answers(model, images, range(len(images)), top_k)
        for answer in output.track(found, total=len(images), label="predict"):
            failed += answer.error is not None
            if stream is not None:
                line = json_module.dumps(answer.to_dict(), ensure_ascii=stream is sys.stdout)
                stream.write(line + "\n")
            if output.json_path != "-":
                _show(output, answer)
            elif answer.error is not None:
                output.warn(answer.error)
        if output.json_path != "-":
            output.say(f"Answered by {model.engine.name}.")
    return failed


@contextlib.contextmanager
def _lines(path: str | None) -> Iterator[TextIO | None]:
    """Give the JSON lines' stream: stdout, a file written whole or not at all, or none."""
    if path is None or path == "-":
        yield sys.stdout if path else None
        return
    try:
        with replacing(Path(path)) as temporary, _open_lines(temporary) as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error


def _open_lines(path: Path) -> TextIO:
    # File names need not be UTF-8; JSON can carry what they are.
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _show(output: Output, answer: Answer) -> None:
    from ..detector import DetectionResult

    if answer.error is not None:
        output.warn(answer.error)
        return
    output.say(answer.input)
    for one in answer.found if isinstance(answer, DetectionResult) else ():
        box = " ".join(f"{side:.0f}" for side in one.box)
        output.say(f"  {one.score:6.1%}  {one.name}  [{box}]  ({one.group})")
    for score in answer.top if not isinstance(answer, DetectionResult) else ():
        images = numbered(score.train_count, "image")
        output.say(f"  {score.prob:6.1%}  {score.name}  ({score.group}, {images})")
