"""``ltdeploy serve``: bundles on the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._optional import require
from ..errors import UsageError
from . import options as opt
from .runtime import ExitCode

if TYPE_CHECKING:
    from ltdeploy.serve.run import Addresses

__all__ = ["serve"]

_MIB = 1 << 20
_SHORTEST_TOKEN = 16
_PACKAGES = (
    "uvicorn",
    "starlette",
    "httptools",
    "python_multipart",
    "grpc",
    "google.protobuf",
    "prometheus_client",
)


def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE…",
            help="Folders NAME.ltd, or NAME=FOLDER; the same name again is its next version.",
        ),
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Of HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[
        int, typer.Option(metavar="N", help="Of gRPC; 0 takes a free one, -1 serves none.")
    ] = 8001,
    engine: opt.Engine = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads of one batch; all cores.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(metavar="N", help="Images that run together at most.")
    ] = 16,
    max_delay_ms: Annotated[
        float, typer.Option(metavar="MS", help="How long a request waits for others to join it.")
    ] = 0.0,
    max_queue: Annotated[
        int, typer.Option(metavar="N", help="Images that wait per model; one more is refused.")
    ] = 256,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Deadline of requests that name none.")
    ] = 30.0,
    max_body_mb: Annotated[float, typer.Option(metavar="MB", help="Size of a request.")] = 32.0,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Bearer tokens, one a line; needed where others reach the address. Or set "
            "LTDEPLOY_TOKEN.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let others in without a token.")
    ] = False,
    tls_cert: Annotated[str | None, typer.Option(metavar="PEM", help="Certificate.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="PEM", help="Its private key.")] = None,
    reload: Annotated[
        float, typer.Option(metavar="S", help="Look for changed bundles this often; 0 never.")
    ] = 2.0,
    drain: Annotated[
        float, typer.Option(metavar="S", help="How long SIGTERM waits for accepted requests.")
    ] = 30.0,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Serve bundles over HTTP and gRPC until Ctrl-C or SIGTERM.

    Photographs go to /v1/predict, tensors to the Open Inference Protocol; /metrics is Prometheus'.
    """
    for package in _PACKAGES:
        require(package, extra="serve", purpose="serve bundles")
    from ltdeploy.serve.run import run_server
    from ltdeploy.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        grpc_port=None if grpc_port == -1 else grpc_port,
        engine=engine,
        threads=threads,
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        max_queue=max_queue,
        timeout_s=timeout,
        max_body_bytes=int(max_body_mb * _MIB),
        drain_s=drain,
        tokens=_tokens(token_file),
        insecure=insecure,
        tls_certificate=_file(tls_cert, "--tls-cert"),
        tls_key=_file(tls_key, "--tls-key"),
        reload_s=reload,
    )

    def announce(addresses: Addresses) -> None:
        if not quiet:
            print("\n".join(addresses.lines()), file=sys.stderr, flush=True)

    run_server(bundles, settings, announce)
    if not quiet:
        print("Stopped.", file=sys.stderr)
    return ExitCode.OK


def _tokens(path: str | None) -> tuple[str, ...]:
    """Return the tokens of the file and of the environment."""
    told = os.environ.get("LTDEPLOY_TOKEN", "").strip()
    tokens = [told] if told else []
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--token-file {path} cannot be read: {getattr(error, 'strerror', None) or error}."
            ) from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"--token-file {path} holds no token; expected one a line.")
        tokens += found
    for token in tokens:
        if len(token) < _SHORTEST_TOKEN or any(letter.isspace() for letter in token):
            raise UsageError(
                f"A token has {len(token)} letters{' and a space' if ' ' in token else ''}; "
                f"expected {_SHORTEST_TOKEN} or more without spaces, one a line, as "
                "'openssl rand -hex 32' makes."
            )
    return tuple(tokens)


def _file(path: str | None, option: str) -> Path | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise UsageError(f"{option} {path} is no file; expected a PEM file.")
    return Path(path)
