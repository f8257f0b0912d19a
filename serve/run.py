"""One process that serves: loads, listens, watches, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import uvicorn

from ltdeploy.errors import UsageError

from . import logs
from .app import create_app
from .connections import guarded_connections
from .grpc_server import GrpcServer
from .metrics import Metrics
from .repository import Repository, places
from .settings import ServeSettings

__all__ = ["Addresses", "run_server", "serve_until"]

_GRACE_S = 5.0  # for runs under way, and for answers on their way out
_log = logging.getLogger("ltdeploy.serve")


@dataclass(frozen=True)
class Addresses:
    """Where a server listens, and with what.

    Attributes
    ----------
    http, grpc : ``scheme://host:port`` and ``host:port``; gRPC may be None.
    models : name, version and engine of each.
    """

    http: str
    grpc: str | None
    models: Sequence[tuple[str, str, str]]

    def lines(self) -> list[str]:
        """Return them for people."""
        told = [f"Model    {name}, version {v}, on {engine}" for name, v, engine in self.models]
        told.append(f"HTTP     {self.http}  (photographs: POST /v1/predict, metrics: /metrics)")
        if self.grpc is not None:
            told.append(f"gRPC     {self.grpc}")
        return [*told, "Stop     Ctrl-C, or SIGTERM: what was accepted is answered first"]


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: stopping is more than closing its sockets here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_server(
    bundles: Sequence[str],
    settings: ServeSettings,
    announce: Callable[[Addresses], None] = lambda addresses: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was accepted, and return.

    Parameters
    ----------
    bundles : ``PATH`` or ``NAME=PATH`` of each.
    announce : told once everything listens.

    Raises
    ------
    BundleError, EngineError, MissingExtraError
        If a bundle cannot be served.
    UsageError
        If an address cannot be had.
    """
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        await serve_until(stop, bundles, settings, announce)

    _allow_many_files()
    with logs.written(), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def _allow_many_files() -> None:
    """Raise the soft limit of open files, 1,024 in most shells, to what is allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve_until(
    stop: asyncio.Event,
    bundles: Sequence[str],
    settings: ServeSettings,
    announce: Callable[[Addresses], None],
) -> None:
    """Serve until ``stop`` is set; see :func:`run_server`."""
    wanted = places(bundles)
    metrics = Metrics()
    decoders = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
    models = Repository(settings, metrics, decoders)
    with decoders:
        try:
            await models.load(wanted)
            await _listen(stop, models, settings, metrics, announce)
        finally:
            await models.close()


async def _listen(
    stop: asyncio.Event,
    models: Repository,
    settings: ServeSettings,
    metrics: Metrics,
    announce: Callable[[Addresses], None],
) -> None:
    server = _Server(_config(models, settings, metrics))
    grpc = None if settings.grpc_port is None else GrpcServer(models, settings, metrics)
    with _bound(settings) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        watching = asyncio.create_task(models.watch()) if settings.reload_s else None
        try:
            grpc_port = None if grpc is None else await grpc.start()
            while not (server.started or serving.done()):
                await asyncio.sleep(0.005)
            port = listener.getsockname()[1]
            announce(_addresses(settings, port, grpc_port, models))
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            _log.info("Draining.")
        finally:
            models.is_draining = True
            for task in (stopping, watching):
                if task is not None:
                    task.cancel()
            server.should_exit = True
            late = asyncio.create_task(_refuse_late(models, settings.drain_s))
            if grpc is not None:
                await grpc.stop(settings.drain_s + _GRACE_S)
            await serving
            late.cancel()


async def _refuse_late(models: Repository, drain_s: float) -> None:
    """Answer with 503 what is still waiting when the time to drain is over."""
    await asyncio.sleep(drain_s)
    _log.warning("The time to drain is over; what waits is refused.")
    await models.refuse_waiting()


def _bound(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        bound = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"{settings.host}:{settings.port} cannot be listened on: {reason}. Give another --host "
            "or --port; --port 0 takes a free one."
        ) from None
    # Without it an answer with a body takes 40 ms longer where uvloop, which sets it, is absent.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _addresses(
    settings: ServeSettings, port: int, grpc_port: int | None, models: Repository
) -> Addresses:
    scheme = "http" if settings.tls_certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return Addresses(
        f"{scheme}://{host}:{port}",
        None if grpc_port is None else f"{host}:{grpc_port}",
        [(one.name, one.version, one.platform) for one in models.listed()],
    )


def _config(models: Repository, settings: ServeSettings, metrics: Metrics) -> uvicorn.Config:
    config = uvicorn.Config(
        create_app(models, settings, metrics),
        host=settings.host,
        port=settings.port,
        http=guarded_connections(
            max_connections=settings.max_connections,
            read_timeout_s=settings.read_timeout_s,
            refused=lambda cause: metrics.refused(None, cause),
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        # Who a client is comes from its connection: anyone can write X-Forwarded-For.
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_s + _GRACE_S),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl's errors are among them
        raise UsageError(
            f"The TLS certificate or key cannot be used: {error}. Expected a PEM certificate and "
            "the private key that belongs to it."
        ) from error
    return config
