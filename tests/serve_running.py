"""A server of real bundles in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ltdeploy.serve.run import Addresses, serve_until
from ltdeploy.serve.settings import ServeSettings

__all__ = ["QUIET", "running"]

# Free ports, one engine that is everywhere, and no wait for changed bundles.
QUIET = ServeSettings(port=0, grpc_port=None, engine="onnxruntime", threads=1, reload_s=0.0)


@contextmanager
def running(bundles: Sequence[str], **settings: Any) -> Iterator[Addresses]:
    """Serve until the block ends; raise what the server raised."""
    known: list[Addresses] = []
    failed: list[BaseException] = []
    listening = threading.Event()
    ends: list[Any] = []

    async def main() -> None:
        stop = asyncio.Event()
        ends.append((asyncio.get_running_loop(), stop))

        def announce(addresses: Addresses) -> None:
            known.append(addresses)
            listening.set()

        await serve_until(stop, bundles, replace(QUIET, **settings), announce)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            listening.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        assert listening.wait(120)
        if failed:
            raise failed[0]
        yield known[0]
    finally:
        if ends and thread.is_alive():
            loop, stop = ends[0]
            loop.call_soon_threadsafe(stop.set)
        thread.join(60)
    assert not thread.is_alive()
    if failed:
        raise failed[0]
