"""What stands before the app: ids, last resort, safe headers, limits of the body, tokens.

Pure ASGI, outermost first as :func:`protect` puts them together::

    RequestIds       every line of the log and every answer names the request
    AccessLog        one line per request (logs.py)
    LastResort       whatever escapes becomes 500 without details; safe headers on every answer
    BodyLimit        413 and 408
    BearerTokens     401
    app

Connections, and clients that are slow before their request is complete, are in connections.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import Callable, Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .failures import Failed, RequestError, TooLarge, TooSlow, Unauthenticated, Unavailable
from .logs import AccessLog, request_id

__all__ = [
    "OPEN_PATHS",
    "BearerTokens",
    "BodyLimit",
    "LastResort",
    "RequestIds",
    "protect",
    "refuse",
]

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")

# Told the cause of every refusal, for the metrics.
Refused = Callable[[str], None]

_LINGER_S = 1.0
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_log = logging.getLogger("ltdeploy.serve")


def protect(
    app: ASGIApp,
    *,
    tokens: Sequence[str],
    max_body_bytes: int,
    read_timeout_s: float,
    refused: Refused = lambda cause: None,
    open_paths: Sequence[str] = OPEN_PATHS,
    max_bytes_at_once: int = 1 << 62,
) -> ASGIApp:
    """Return ``app`` behind all guards.

    Parameters
    ----------
    tokens : what clients must show; none lets everybody in.
    max_body_bytes, read_timeout_s, max_bytes_at_once : of :class:`BodyLimit`.
    refused : told the cause of every refusal, e.g. ``lambda cause: metrics.refused(None, cause)``.
    open_paths : answered without a token.
    """
    if tokens:
        app = BearerTokens(app, tokens, open_paths, refused)
    app = BodyLimit(app, max_body_bytes, read_timeout_s, refused, max_bytes_at_once)
    return RequestIds(AccessLog(LastResort(app, refused)))


async def refuse(send: Send, error: RequestError, *, close: bool = False) -> None:
    """Answer with the error's status, headers and JSON; ``close`` ends the connection after it."""
    body = json.dumps(error.to_dict()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _header(scope: Scope, name: bytes) -> bytes | None:
    found: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return found[0] if len(found) == 1 else None


class RequestIds:
    """Give each request an id: the client's ``X-Request-ID`` where it is safe, else a new one.

    Safe are 1 to 64 letters, digits and ``. _ : -``. The id stands in the answer, and in
    :data:`.logs.request_id` for whatever is logged meanwhile.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer through the app under an id."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = _header(scope, b"x-request-id")
        made = given if given and _SAFE_ID.fullmatch(given) else secrets.token_hex(8).encode()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-request-id", made)]}
            await send(message)

        before = request_id.set(made.decode())
        try:
            await self.app(scope, receive, named)
        finally:
            request_id.reset(before)


class LastResort:
    """Answer 500 without details to what nothing else caught, and log it; add safe headers.

    A Starlette app has a last resort of its own, which answers in plain text before anything around
    the app hears of the error. Give it this one as its outermost middleware too.

    An error after the answer began leaves it unfinished: the server then ends the connection, which
    tells the client that the answer is not whole.
    """

    def __init__(self, app: ASGIApp, refused: Refused = lambda cause: None) -> None:
        self.app, self.refused = app, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer through the app."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def safe(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = message["headers"]
                names = {name.lower() for name, _ in own}
                more = [header for header in _SAFE_HEADERS if header[0] not in names]
                message = {**message, "headers": [*own, *more]}
            await send(message)

        try:
            await self.app(scope, receive, safe)
        except ClientDisconnect:
            return  # nobody is left to be told
        except RequestError as error:
            await self._answer(error, None if started else safe)
        except Exception:
            _log.exception("An unexpected error.", extra={"path": scope["path"]})
            failed = Failed("The server failed; its log has the reason.", "internal")
            await self._answer(failed, None if started else safe)

    async def _answer(self, error: RequestError, send: Send | None) -> None:
        self.refused(error.cause)
        if send is not None:
            await refuse(send, error, close=True)


class BodyLimit:
    """Refuse bodies that are too long (413) or come too slowly (408).

    A declared length over the limit is refused before a byte is read, any other while it arrives;
    to the app it looks as if the client had gone, so that it stops whatever it was doing. Where an
    answer goes out before the whole body was read, it ends the connection: nothing is kept open for
    the rest.

    Parameters
    ----------
    max_bytes : of one body.
    read_timeout_s : from the end of the headers to the end of the body, in total: a byte now and
        then buys no time.
    max_bytes_at_once : of all bodies whose requests are not yet answered; more are refused with
        503, as they are held in memory.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        read_timeout_s: float,
        refused: Refused = lambda cause: None,
        max_bytes_at_once: int = 1 << 62,
    ) -> None:
        self.app, self.max_bytes, self.read_timeout_s = app, max_bytes, read_timeout_s
        self.refused = refused
        self.max_bytes_at_once, self._bytes_held = max_bytes_at_once, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer through the app, or refuse."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        # The server's parser has seen to it that the length is a number.
        length = int(_header(scope, b"content-length") or 0)
        if length > self.max_bytes:
            error = self._too_large(f"has {length:,} bytes and is")
            self.refused(error.cause)
            await refuse(_ending(receive, send), error)
            return

        deadline = asyncio.get_running_loop().time() + self.read_timeout_s
        got_bytes = 0
        is_read = started = False
        refusal: RequestError | None = None
        ending = _ending(receive, send)

        async def limited() -> Message:
            nonlocal got_bytes, is_read, refusal
            if is_read:
                return await receive()
            if refusal is not None:
                return {"type": "http.disconnect"}
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refusal = TooSlow(
                    f"The request did not arrive within {self.read_timeout_s:g} s.", "read_timeout"
                )
                return {"type": "http.disconnect"}
            new_bytes = len(message.get("body", b""))
            got_bytes += new_bytes
            self._bytes_held += new_bytes
            if got_bytes > self.max_bytes:
                refusal = self._too_large("is")
                return {"type": "http.disconnect"}
            if self._bytes_held > self.max_bytes_at_once:
                refusal = Unavailable(
                    "The requests under way hold all the memory that they may.",
                    "memory",
                    retry_after_s=1.0,
                )
                return {"type": "http.disconnect"}
            is_read = not message.get("more_body", False)
            return message

        async def answering(message: Message) -> None:
            nonlocal started, ending
            if refusal is not None and not started:
                return  # the app's own words on the interruption
            if not started:
                started = True
                ending = send if is_read else ending
            await ending(message)

        try:
            await self.app(scope, limited, answering)
        except Exception:
            if refusal is None or started:
                raise
        finally:
            self._bytes_held -= got_bytes
        if refusal is not None and not started:
            self.refused(refusal.cause)
            await refuse(ending, refusal)

    def _too_large(self, has: str) -> TooLarge:
        return TooLarge(f"The body {has} over the limit of {self.max_bytes:,} bytes.", "body_size")


def _has_body(scope: Scope) -> bool:
    headers = scope["headers"]
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )


def _ending(receive: Receive, send: Send) -> Send:
    """Return a ``send`` that ends the connection with the answer, and reads on for a moment.

    Closing at once would reset the connection under a client that still writes, and many read no
    answer after a reset.
    """

    async def ending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (b"connection", b"close")]
            await send({**message, "headers": headers})
        elif message.get("more_body", False):
            await send(message)
        else:
            await send({**message, "more_body": True})
            try:
                async with asyncio.timeout(_LINGER_S):
                    while (await receive()).get("more_body", False):
                        pass
            except TimeoutError:
                pass
            await send({"type": "http.response.body", "body": b""})

    return ending


class BearerTokens:
    """Let only requests in that show a token as ``Authorization: Bearer``.

    Digests are compared and all of them, so that the time says neither which token nor how much of
    it was right (:func:`hmac.compare_digest`).

    Parameters
    ----------
    tokens : one of them is enough; several let a new one come in before the old one goes.
    open_paths : what answers without, for probes. They tell nothing about models.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: Sequence[str],
        open_paths: Sequence[str] = OPEN_PATHS,
        refused: Refused = lambda cause: None,
    ) -> None:
        self.app, self.open_paths, self.refused = app, frozenset(open_paths), refused
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer through the app, or refuse with 401."""
        if scope["type"] == "lifespan" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        scheme, _, token = (_header(scope, b"authorization") or b"").partition(b" ")
        if scheme.lower() == b"bearer" and self.knows(token.strip()):
            await self.app(scope, receive, send)
            return
        what = "is not known" if token else "is missing"
        error = Unauthenticated(
            f"The token {what}; expected the header 'Authorization: Bearer TOKEN'.", "token"
        )
        self.refused(error.cause)
        await refuse(send, error)

    def knows(self, token: bytes) -> bool:
        """Return whether ``token`` is one of the tokens, in the same time for any answer."""
        digest = hashlib.sha256(token).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0
