"""Files of ours: written whole, or not at all, or not any more; and where a cache stands."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

__all__ = ["cancellable", "check_cancelled", "default_cache", "replacing", "write_whole"]

_CHECK: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


def default_cache() -> Path:
    """Return ``$LTDEPLOY_CACHE``, else ``ltdeploy`` in the user's cache folder."""
    told = os.environ.get("LTDEPLOY_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(told) if told else Path(base) / "ltdeploy"


@contextlib.contextmanager
def cancellable(check: Callable[[], None]) -> Iterator[None]:
    """Let ``check`` raise before anything written inside the block takes its place."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def check_cancelled() -> None:
    """Raise what the work around us raises when it was told to stop; outside of any, nothing."""
    check = _CHECK.get()
    if check is not None:
        check()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its place when the block ends well.

    When the block fails, for whatever reason, the temporary file goes and ``path`` stays as it was.
    A pipe or device at ``path`` is given as it is.

    Raises
    ------
    OSError
        If the folder cannot be written to, or the disk is full.
    """
    path = Path(os.path.realpath(path))  # the target of a link, not the link
    if path.exists() and not path.is_file():
        yield path  # a pipe or a device: nothing to replace
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files that only their owner reads; ours are as open as any new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        check_cancelled()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``; a failed write leaves an older file as it was.

    Raises
    ------
    OSError
        As :func:`replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
