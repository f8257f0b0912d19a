"""What a client is told when it is refused: one tree, for HTTP and gRPC alike.

::

    RequestError            status  gRPC
    ├── BadRequest          400     INVALID_ARGUMENT    the request is not what the protocol says
    ├── Unauthenticated     401     UNAUTHENTICATED     no token, or a wrong one
    ├── NotFound            404     NOT_FOUND           no such model or version
    ├── TooSlow             408     DEADLINE_EXCEEDED   the request did not arrive in time
    ├── TooLarge            413     INVALID_ARGUMENT    body, batch or picture over its limit
    ├── UnsupportedMedia    415     INVALID_ARGUMENT    a body that is no picture of a known format
    ├── Unprocessable       422     INVALID_ARGUMENT    a picture that cannot be decoded
    ├── TooMany             429     RESOURCE_EXHAUSTED  the queue is full
    ├── ClientGone          499     CANCELLED           nobody reads the answer
    ├── Failed              500     INTERNAL            the engine failed; the reason is in the log
    └── Unavailable         503     UNAVAILABLE         starting, draining, or it would be late

No text names a path, a version of a library or a line of code.
"""

from __future__ import annotations

import math
from typing import ClassVar

from ltdeploy.errors import LtdeployError

__all__ = [
    "BadRequest",
    "ClientGone",
    "Failed",
    "NotFound",
    "RequestError",
    "TooLarge",
    "TooMany",
    "TooSlow",
    "Unauthenticated",
    "Unavailable",
    "Unprocessable",
    "UnsupportedMedia",
]


class RequestError(LtdeployError):
    """A request that is refused.

    Parameters
    ----------
    reason : a sentence for the client: what was wrong, what was expected.
    cause : a word for metrics and for programs, in snake_case, e.g. ``"queue_full"``.
    retry_after_s : when trying again makes sense; None where it does not.
    """

    status: ClassVar[int] = 400
    grpc: ClassVar[str] = "INVALID_ARGUMENT"

    def __init__(self, reason: str, cause: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.cause, self.retry_after_s = reason, cause, retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to the answer: ``Retry-After`` in whole seconds, rounded up."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    def to_dict(self) -> dict[str, str]:
        """Return the JSON body: ``error``, as the Open Inference Protocol has it, and ``cause``."""
        return {"error": self.reason, "cause": self.cause}


class BadRequest(RequestError):
    """The request is not what the protocol says."""


class Unauthenticated(RequestError):
    """There is no token, or a wrong one."""

    status, grpc = 401, "UNAUTHENTICATED"

    @property
    def headers(self) -> dict[str, str]:
        """The scheme that is expected."""
        return {**super().headers, "WWW-Authenticate": "Bearer"}


class NotFound(RequestError):
    """There is no such model or version."""

    status, grpc = 404, "NOT_FOUND"


class TooSlow(RequestError):
    """A request did not arrive in time.

    408 and no silent end: clients know it as worth another try, and to an operator a closed
    connection looks like a crash.
    """

    status, grpc = 408, "DEADLINE_EXCEEDED"


class TooLarge(RequestError):
    """A body, batch or picture is over its limit."""

    status = 413


class UnsupportedMedia(RequestError):
    """A body is no picture of a known format."""

    status = 415


class Unprocessable(RequestError):
    """A picture cannot be decoded, or a value makes no sense."""

    status = 422


class TooMany(RequestError):
    """The queue is full."""

    status, grpc = 429, "RESOURCE_EXHAUSTED"


class ClientGone(RequestError):
    """The client closed the connection; nobody reads the answer."""

    status, grpc = 499, "CANCELLED"  # the status that nginx writes into its log

    def __init__(self) -> None:
        super().__init__("The client closed the connection.", "client_gone")


class Failed(RequestError):
    """The engine failed."""

    status, grpc = 500, "INTERNAL"


class Unavailable(RequestError):
    """The server starts or drains, or the answer would come too late."""

    status, grpc = 503, "UNAVAILABLE"
