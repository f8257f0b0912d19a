"""The gRPC server: address, limits, TLS and tokens around the protocol's service."""

from __future__ import annotations

import grpc

import ltdeploy
from ltdeploy.errors import UsageError

from .grpc_v2 import TokenInterceptor, add_to
from .metrics import Metrics
from .repository import Repository
from .settings import ServeSettings

__all__ = ["GrpcServer"]


class GrpcServer:
    """Serves the protocol over gRPC on the host of the settings.

    Parameters
    ----------
    models : what it answers with.
    settings : host, port, limits, tokens and TLS.
    metrics : told of every call that is refused.
    """

    def __init__(self, models: Repository, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings = settings

        def refused(model: str | None, cause: str) -> None:
            # What a client typed is no label: every new one would be a new time series.
            known = {one.name for one in models.listed()}
            metrics.refused(model if model in known else None, cause)

        self._server = grpc.aio.server(
            interceptors=[TokenInterceptor(settings.tokens, refused=refused)]
            if settings.tokens
            else [],
            # No maximum_concurrent_rpcs: a call counts there before its message or its token came,
            # so that silent strangers would shut everybody out.
            options=[
                ("grpc.max_concurrent_streams", 64),
                ("grpc.server_handshake_timeout_ms", int(1000 * settings.read_timeout_s)),
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
            ],
        )
        add_to(
            self._server,
            models,
            version=ltdeploy.__version__,
            max_batch=settings.max_batch,
            refused=refused,
        )

    async def start(self) -> int:
        """Listen; return the port.

        Raises
        ------
        UsageError
            If the address cannot be had.
        """
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if settings.tls_certificate is None or settings.tls_key is None:
                port = self._server.add_insecure_port(address)
            else:
                pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
                credentials = grpc.ssl_server_credentials([pair])
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise UsageError(
                f"{address} cannot be listened on: it is taken, or not an address of this machine. "
                "Give another --grpc-port; 0 takes a free one, -1 serves none."
            ) from None
        await self._server.start()
        return int(port)

    async def stop(self, drain_s: float) -> None:
        """Take no more calls, and let those under way end."""
        await self._server.stop(drain_s)
