"""A real uvicorn in a thread, and sockets for clients that misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

__all__ = ["GET", "connected", "everything", "serving"]

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
_PATIENCE_S = 60.0


@contextlib.contextmanager
def serving(app: ASGIApp, **options: Any) -> Iterator[int]:
    """Serve ``app`` on the loopback as ``ltdeploy serve`` does; yield the port."""
    config = uvicorn.Config(
        app,
        **{"http": "httptools", "ws": "none", "lifespan": "off", "log_config": None, **options},
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(_PATIENCE_S)
    assert not thread.is_alive()


@contextlib.contextmanager
def connected(port: int, sent: bytes = b"") -> Iterator[socket.socket]:
    """Yield a connection on which ``sent`` went out."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as client:
        client.sendall(sent)
        yield client


def everything(client: socket.socket) -> bytes:
    """Return all that comes until the server ends the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)
