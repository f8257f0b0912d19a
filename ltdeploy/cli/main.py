"""The command line: one Typer application, each command in a file of its own."""

from __future__ import annotations

import os
import sys

import typer

from .. import __version__
from .bench import bench
from .calibrate import calibrate
from .compare import compare
from .doctor import doctor
from .export import export
from .inspect import inspect
from .output import silence_stdout
from .predict import predict
from .quickstart import quickstart
from .runtime import run
from .serve import serve
from .train import train
from .verify import verify

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Ship long-tailed vision models without losing the tail.",
    epilog="Start with: ltdeploy quickstart",
)
for command in (
    quickstart,
    train,
    calibrate,
    export,
    verify,
    compare,
    predict,
    serve,
    bench,
    inspect,
    doctor,
):
    app.command(name=command.__name__)(command)


def _show_version(shown: bool) -> None:
    if shown:
        print(f"ltdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Ship long-tailed vision models without losing the tail."""


def main() -> None:
    """Run the command line and exit with its code."""
    # Threads of torch that wait for each other by spinning take the cores from whoever else runs:
    # beside one busy process a training step takes four times as long. Must be set before torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = run(app, sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
    sys.exit(code)
