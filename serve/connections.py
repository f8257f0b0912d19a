"""Connections: how many there may be, and how long one may take to say what it wants.

uvicorn has no deadline for a request's headers and, with httptools, no limit of their size: a
client that sends a byte now and then, or nothing at all, keeps its connection for ever. Its
``limit_concurrency`` counts such connections too and refuses every request while there are many, in
plain text and without ``Retry-After``; so a few hundred silent connections shut everybody out. Here
a silent connection ends, only those that came too late are refused, and probes are answered always.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .failures import BadRequest, Unavailable
from .guards import OPEN_PATHS, refuse

__all__ = ["guarded_connections"]

_RETRY_AFTER_S = 1.0
_log = logging.getLogger("ltdeploy.serve")


def guarded_connections(
    *,
    max_connections: int,
    read_timeout_s: float,
    max_header_bytes: int = 1 << 16,
    open_paths: Sequence[str] = OPEN_PATHS,
    refused: Callable[[str], None] = lambda cause: None,
) -> type[asyncio.Protocol]:
    """Return what ``uvicorn.Config(http=…)`` takes.

    Parameters
    ----------
    max_connections : open at once. Requests on one more are refused with 503; of twice as many the
        last is closed without a word.
    read_timeout_s : from the first byte of a request, or from the start of the connection, to the
        end of the request's headers; and how long a client may leave an answer unread.
    max_header_bytes : of all headers of a request with its first line.
    open_paths : answered on too many connections as well, so that nobody restarts a busy server.
    refused : told the cause of every refusal.
    """

    class Configured(_GuardedConnection):
        options = _Options(
            max_connections, read_timeout_s, max_header_bytes, frozenset(open_paths), refused
        )

    return Configured


@dataclass(frozen=True)
class _Options:
    max_connections: int
    read_timeout_s: float
    max_header_bytes: int
    open_paths: frozenset[str]
    refused: Callable[[str], None]


class _HeadersTooLong(Exception):
    """Stops the parser."""


class _GuardedConnection(HttpToolsProtocol):
    """A connection with a deadline for headers, a limit of their size, and a place in the count."""

    options: ClassVar[_Options]

    _deadline: asyncio.TimerHandle | None = None
    _in_body = False
    _unaccounted_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, and start its clock."""
        super().connection_made(cast("asyncio.Transport", transport))
        if len(self.connections) > 2 * self.options.max_connections:
            self.options.refused("connections")
            self.transport.abort()
            return
        if len(self.connections) > self.options.max_connections:
            self.app = cast("Any", self._too_many(cast("ASGIApp", self.app)))
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # The system's own clock for answers that nobody fetches; Linux has it.
            milliseconds = round(self.options.read_timeout_s * 1000)
            with contextlib.suppress(OSError):  # no TCP underneath
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and end a connection whose headers do not end."""
        if not self._in_body and self._deadline is None:
            self._start_clock()  # blank lines before a request are not the parser's business
        self._unaccounted_bytes += len(data)
        super().data_received(data)
        if self._unaccounted_bytes > self.options.max_header_bytes:
            self._refuse_headers()

    def on_message_begin(self) -> None:
        """Start the clock of the next request, which may begin in the middle of what came."""
        super().on_message_begin()
        if self._deadline is None:
            self._start_clock()

    def on_headers_complete(self) -> None:
        """Stop the clock; from here the app's own guards watch."""
        self._stop_clock()
        self._in_body = True
        size_bytes = len(self.url) + sum(len(name) + len(text) + 4 for name, text in self.headers)
        if size_bytes > self.options.max_header_bytes:
            raise _HeadersTooLong  # all in one read: the count above would come too late
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take the body, and as much again for the lines of its chunks, out of the count."""
        self._unaccounted_bytes -= 2 * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin the count anew."""
        self._in_body = False
        self._unaccounted_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser did not take, in JSON."""
        problem = sys.exception()
        if problem is not None and isinstance(problem.__context__, _HeadersTooLong):
            self._refuse_headers()
        else:
            self._refuse("The request is no valid HTTP.", "not_http")

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, with or without its client's consent."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _refuse_headers(self) -> None:
        limit = self.options.max_header_bytes
        self._refuse(f"The headers are over the limit of {limit:,} bytes.", "header_size")

    def _refuse(self, reason: str, cause: str) -> None:
        if self.transport.is_closing():
            return
        self.options.refused(cause)
        body = json.dumps(BadRequest(reason, cause).to_dict()).encode()
        if self.cycle is None or self.cycle.response_complete:  # nothing of an answer is out
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                b"connection: close\r\nx-content-type-options: nosniff\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
        self.transport.close()

    def _start_clock(self) -> None:
        self._deadline = self.loop.call_later(self.options.read_timeout_s, self._too_late)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_clock()  # the next request can wait, this one is being answered
        elif not self.transport.is_closing():
            self.options.refused("header_timeout")
            _log.debug("A connection sent no whole request in time.")
            self.transport.abort()

    def _too_many(self, app: ASGIApp) -> ASGIApp:
        async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
            is_open = scope["type"] != "http" or scope["path"] in self.options.open_paths
            if is_open or len(self.connections) <= self.options.max_connections:
                await app(scope, receive, send)
                return
            self.options.refused("connections")
            error = Unavailable(
                f"More than {self.options.max_connections} connections are open.",
                "connections",
                retry_after_s=_RETRY_AFTER_S,
            )
            await refuse(send, error, close=True)

        return refusing
