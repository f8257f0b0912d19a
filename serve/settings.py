"""What a server is told, in one place, with its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ltdeploy.errors import UsageError

__all__ = ["LOOPBACK", "ServeSettings"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MIB = 1 << 20


@dataclass(frozen=True)
class ServeSettings:
    """Where a server listens, what it takes, and when it refuses.

    Parameters
    ----------
    host, port : of HTTP; port 0 takes a free one.
    grpc_port : of gRPC on the same host; None serves none.
    engine, threads : what runs the models, as of :func:`ltdeploy.load`.
    max_batch : images that one run of an engine takes at most.
    max_delay_ms : how long a request waits on an idle engine for others to join it. Of 0, the
        default, none waits: what came while the engine was at work runs together all the same, and
        on a CPU larger batches are hardly faster.
    max_queue : images that wait for one model at most; one more is refused with 429.
    timeout_s : the deadline of requests that name none; the answer is refused with 503 at once
        where the predicted wait is longer.
    max_body_bytes, max_pixels : of one request and one picture.
    max_bytes_at_once : of all bodies that are held in memory; one more is refused with 503.
    max_connections : open at once; one more is refused with 503.
    read_timeout_s : how long a client may take to send a request.
    drain_s : how long SIGTERM waits for accepted requests.
    tokens : what a client must show as ``Authorization: Bearer``; empty asks for none.
    insecure : whether an address that others reach may be without tokens.
    tls_certificate, tls_key : PEM files; both or none.
    reload_s : how often the bundles are looked at for changes; 0 never.

    Raises
    ------
    UsageError
        For values out of range, or an address that others reach without tokens.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    engine: str = "auto"
    threads: int | None = None
    max_batch: int = 16
    max_delay_ms: float = 0.0
    max_queue: int = 256
    timeout_s: float = 30.0
    max_body_bytes: int = 32 * _MIB
    max_pixels: int = 50_000_000
    max_bytes_at_once: int = 512 * _MIB
    max_connections: int = 512
    read_timeout_s: float = 20.0
    drain_s: float = 30.0
    tokens: tuple[str, ...] = ()
    insecure: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    reload_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("port", "grpc_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise UsageError(f"{name} is {value}; expected 0 to 65535.")
        for name in ("max_batch", "max_queue", "max_body_bytes", "max_pixels", "max_connections"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        for name in ("timeout_s", "read_timeout_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected seconds above 0.")
        for name in ("max_delay_ms", "drain_s", "reload_s"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        if self.max_queue < self.max_batch:
            raise UsageError(
                f"max_queue is {self.max_queue}, less than max_batch, {self.max_batch}; no batch "
                "would ever be full."
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("TLS needs a certificate and its key; only one of them is given.")
        if any(not token.strip() for token in self.tokens):
            raise UsageError("A token is empty; expected a secret text.")
        if self.host not in LOOPBACK and not self.tokens and not self.insecure:
            raise UsageError(
                f"Others can reach {self.host}, and no token is set: give --token-file FILE or the "
                "environment's LTDEPLOY_TOKEN, or --insecure if something before the server asks "
                "for them."
            )
