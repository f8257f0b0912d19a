"""Structured logs: one JSON object a line on stderr, with the request's id in each.

What clients send is text of strangers: it is escaped (no line can be forged, no terminal steered)
and cut. Headers and query strings are never logged; what looks like a token is hidden all the same.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AccessLog", "JsonLines", "request_id", "written"]

request_id: ContextVar[str | None] = ContextVar("ltdeploy_request_id", default=None)

_LONGEST_TEXT, _LONGEST_TRACEBACK = 300, 8000
_SECRET_FIELD = re.compile(r"authorization|cookie|password|secret|token|api_?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"\b(bearer|basic)\s+[^\s\"',;]+", re.IGNORECASE)
# Fields that logging itself puts on a record; whatever else stands there was given as ``extra``.
_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}
_QUIET_PATHS = ("/metrics", "/v2/health/")
_access = logging.getLogger("ltdeploy.serve.access")


class JsonLines(logging.Formatter):
    """Write a record as one line of JSON: time, level, logger, message, request_id, extra fields.

    Examples
    --------
    >>> line = JsonLines().format(logging.makeLogRecord({"msg": "Loaded.", "model": "birds"}))
    >>> json.loads(line)["model"]
    'birds'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at.replace("+00:00", "Z"), "level": record.levelname}
        if record.name:
            line["logger"] = record.name
        line["message"] = _safe(record.getMessage())
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        for name, value in record.__dict__.items():
            if name not in _OWN and name not in line:
                line[name] = "[hidden]" if _SECRET_FIELD.search(name) else _safe(value)
        if record.exc_info:
            line["exception"] = _safe(self.formatException(record.exc_info), _LONGEST_TRACEBACK)
        # ASCII only: control characters, line ends and bidirectional marks come out as \uXXXX.
        return json.dumps(line)


def _safe(value: object, longest: int = _LONGEST_TEXT) -> object:
    """Return a number or None as it is, and anything else as text without secrets, cut."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)  # JSON knows no NaN
    text = _SECRET_TEXT.sub(r"\1 [hidden]", str(value))
    if len(text) <= longest:
        return text
    # Of a traceback both ends tell: where it began and what was raised.
    return f"{text[: longest // 2]} … {text[-(longest // 2) :]}"


@contextmanager
def written(level: str = "INFO", stream: TextIO | None = None) -> Iterator[None]:
    """Write the logs of ltdeploy and uvicorn to ``stream`` as JSON lines while the block runs.

    uvicorn is to be started with ``log_config=None, access_log=False``: its own access log writes
    query strings, and a second line per request.

    Parameters
    ----------
    level : of what is written; DEBUG adds health probes and reads of the metrics.
    stream : stderr by default.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in ("ltdeploy", "uvicorn")]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    for logger in loggers:
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True
    try:
        yield
    finally:
        for logger, (handlers, former, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(former)


class AccessLog:
    """Write one line per request: method, path, status, ms, bytes, client and model.

    The model is what a handler left in ``request.state.model``, or the path's ``name``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer through the app, and write down how it went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status: int | None = None
        sent_bytes = 0

        async def counting(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counting)
        finally:
            _write(scope, status, time.perf_counter() - began, sent_bytes)


def _write(scope: Mapping[str, Any], status: int | None, seconds: float, sent_bytes: int) -> None:
    path: str = scope["path"]
    is_probe = status == 200 and path.startswith(_QUIET_PATHS)
    level = logging.DEBUG if is_probe else logging.INFO
    if not _access.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "method": scope["method"],
        "path": path,
        "status": status,  # None: the client went before there was an answer
        "ms": round(seconds * 1000, 3),
        "bytes": sent_bytes,
        "client": scope["client"][0] if scope.get("client") else None,
    }
    model = scope.get("state", {}).get("model") or scope.get("path_params", {}).get("name")
    if model is not None:
        fields["model"] = model
    _access.log(level, "request", extra=fields)
