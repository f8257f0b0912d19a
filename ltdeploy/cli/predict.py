"""``ltdeploy predict``: photographs → classes."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ..errors import DataError, UsageError
from ..files import replacing
from . import options as opt
from .output import Output
from .runtime import ExitCode

if TYPE_CHECKING:
    from ..predictor import Prediction

__all__ = ["predict"]


def predict(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder NAME.ltd.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT…", help="Images, or folders of images.")
    ],
    top_k: Annotated[int, typer.Option(metavar="K", help="Classes per image.")] = 5,
    out: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl", help="One JSON line per image.")
    ] = None,
    engine: opt.Engine = "onnxruntime",
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Classify images. One that cannot be read is named, and the exit code is then 2."""
    output = Output(json, quiet)
    if out is not None and not out.endswith(".jsonl"):
        raise UsageError(f"--out is {out!r}; expected a name that ends in .jsonl.")
    if out is not None and json is not None:
        raise UsageError("--out and --json write the same lines; give one of them.")
    files = list(_image_files(inputs))

    from ..predictor import load

    failed = 0
    with load(bundle, engine=engine) as model, _lines(out or json) as stream:
        answers = model.predict(iter(files), top_k=top_k)
        for answer in output.track(answers, total=len(files), label="predict"):
            failed += answer.error is not None
            if stream is not None:
                stream.write(
                    json_module.dumps(answer.to_dict(), ensure_ascii=stream is sys.stdout) + "\n"
                )
            if out is None and json != "-":
                _show(output, answer)
            elif answer.error is not None:
                output.warn(answer.error)
    if out is not None:
        output.say(f"Wrote {len(files) - failed} answers and {failed} errors to {out}.")
    return ExitCode.BAD_INPUT if failed else ExitCode.OK


def _image_files(inputs: list[str]) -> Iterator[str]:
    """Yield the files named, and those in the folders named, in sorted order."""
    from ..datasets.folder import IMAGE_SUFFIXES

    for text in inputs:
        path = Path(text)
        if not path.is_dir():
            yield text  # a missing or unreadable file gets its own error line
            continue
        found = sorted(
            str(Path(folder) / name)
            for folder, _, names in os.walk(path)
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        )
        if not found:
            raise DataError(f"The folder {text} holds no image; expected .jpg, .png, .webp, ….")
        yield from found


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


def _show(output: Output, answer: Prediction) -> None:
    if answer.error is not None:
        output.warn(answer.error)
        return
    output.say(answer.input)
    for score in answer.top:
        output.say(
            f"  {score.prob:6.1%}  {score.name}  ({score.group}, {score.train_count} images)"
        )
