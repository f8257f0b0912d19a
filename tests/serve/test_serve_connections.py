"""Connections that say nothing, too much or too slowly, beside plain uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import httpx
import pytest
from live_server import GET, connected, everything, serving
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from ltdeploy.serve.connections import guarded_connections

BIG = b"GET / HTTP/1.1\r\nhost: test\r\nx-much: " + b"x" * 5000 + b"\r\n\r\n"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, then answer."""
    while (await receive()).get("more_body", False):
        pass
    await PlainTextResponse("hello")(scope, receive, send)


def answer(client: socket.socket) -> bytes:
    """Return one answer of ``hello``."""
    got = b""
    while not got.endswith(b"hello"):
        part = client.recv(1 << 16)
        assert part, got
        got += part
    return got


@pytest.mark.parametrize(
    "beginning",
    [b"", b"\r\n", b"GET", GET[:-2], GET[:-4] + b"\r\nx-slow: ", b"PRI * HTTP/2.0\r\n"],
    ids=["silent", "blank line", "method", "no end", "half a header", "other protocol"],
)
def test_a_request_that_does_not_come_ends_the_connection(beginning: bytes) -> None:
    causes: list[str] = []
    kind = guarded_connections(max_connections=9, read_timeout_s=0.3, refused=causes.append)
    with serving(hello, http=kind) as port, connected(port, beginning) as slow:
        everything(slow)  # comes back
    assert causes[:1] in (["header_timeout"], ["not_http"])


def test_without_the_guard_it_stays() -> None:
    with serving(hello) as port, connected(port, GET[:-2]) as slow:
        slow.settimeout(0.6)
        with pytest.raises(socket.timeout):
            slow.recv(1)


def test_bytes_now_and_then_buy_no_time() -> None:
    causes: list[str] = []
    kind = guarded_connections(max_connections=9, read_timeout_s=0.5, refused=causes.append)
    stop = threading.Event()
    with serving(hello, http=kind) as port, connected(port, GET[:-2] + b"x-slow: ") as slow:

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    slow.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        everything(slow)
        stop.set()
        dripping.join()
    assert causes == ["header_timeout"]


def test_the_clock_runs_for_the_second_request_too_and_not_for_the_first() -> None:
    go_on = threading.Event()

    async def slow_answer(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(go_on.wait, 60)
        await hello(scope, receive, send)

    causes: list[str] = []
    kind = guarded_connections(max_connections=9, read_timeout_s=0.3, refused=causes.append)
    with (
        serving(slow_answer, http=kind, timeout_keep_alive=60) as port,
        connected(port, GET + GET[:-2]) as client,  # two in one read
    ):
        client.settimeout(0.6)
        with pytest.raises(socket.timeout):
            client.recv(1)  # the answer takes longer than the headers may
        go_on.set()
        client.settimeout(60)
        assert answer(client).startswith(b"HTTP/1.1 200")
        assert everything(client) == b""
    assert causes == ["header_timeout"]


def test_a_kept_connection_answers_again_after_longer_than_the_headers_may_take() -> None:
    kind = guarded_connections(max_connections=9, read_timeout_s=0.2)
    with serving(hello, http=kind, timeout_keep_alive=60) as port, connected(port, GET) as client:
        answer(client)
        threading.Event().wait(0.6)
        client.sendall(GET)
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_a_blank_line_holds_no_kept_connection() -> None:
    causes: list[str] = []
    kind = guarded_connections(max_connections=9, read_timeout_s=0.3, refused=causes.append)
    with serving(hello, http=kind, timeout_keep_alive=60) as port, connected(port, GET) as client:
        answer(client)
        client.sendall(b"\r\n")
        assert everything(client) == b""
    assert causes == ["header_timeout"]


@pytest.mark.parametrize("pieces", [1, 50])
def test_headers_have_a_limit(pieces: int) -> None:
    causes: list[str] = []
    kind = guarded_connections(
        max_connections=9, read_timeout_s=30, max_header_bytes=2000, refused=causes.append
    )
    step = -(-len(BIG) // pieces)
    with serving(hello, http=kind) as port, connected(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            for start in range(0, len(BIG), step):
                client.sendall(BIG[start : start + step])
                threading.Event().wait(0.002)
        assert everything(client).startswith(b"HTTP/1.1 400")
        assert httpx.post(f"http://127.0.0.1:{port}", content=b"x" * 100_000).text == "hello"
        tiny = (b"x" for _ in range(300))  # chunks of six bytes with one in them
        assert httpx.post(f"http://127.0.0.1:{port}", content=tiny).text == "hello"
    assert causes == ["header_size"]
    with serving(hello) as port, connected(port, BIG) as client:
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_trailers_count_as_headers() -> None:
    causes: list[str] = []
    kind = guarded_connections(
        max_connections=9, read_timeout_s=30, max_header_bytes=2000, refused=causes.append
    )
    head = b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    with serving(hello, http=kind) as port, connected(port, head) as client:
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                client.sendall(b"x-more: and more\r\n" * 100)
        assert b"200" not in everything(client)
    assert causes == ["header_size"]


def test_what_is_no_http_is_refused_in_json() -> None:
    causes: list[str] = []
    kind = guarded_connections(max_connections=9, read_timeout_s=30, refused=causes.append)
    with serving(hello, http=kind) as port, connected(port, b"\x16\x03\x01\x02\r\n\r\n") as client:
        got = everything(client)
    assert got.startswith(b"HTTP/1.1 400")
    assert b'"cause": "not_http"' in got
    assert causes == ["not_http"]


def test_one_connection_too_many_is_refused_and_probes_are_not() -> None:
    causes: list[str] = []
    kind = guarded_connections(max_connections=2, read_timeout_s=60, refused=causes.append)
    with serving(hello, http=kind, timeout_keep_alive=60) as port, contextlib.ExitStack() as open_:
        for _ in range(2):
            answer(open_.enter_context(connected(port, GET)))
        refused = httpx.get(f"http://127.0.0.1:{port}/")
        assert (refused.status_code, refused.json()["cause"]) == (503, "connections")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        assert httpx.get(f"http://127.0.0.1:{port}/v2/health/live").text == "hello"

        for _ in range(2):
            answer(open_.enter_context(connected(port, GET.replace(b"/ ", b"/v2/health/live ", 1))))
        with connected(port) as fifth:  # twice as many and one
            assert everything(fifth) == b""
        open_.close()
        with httpx.Client(transport=httpx.HTTPTransport(retries=3)) as client:
            while client.get(f"http://127.0.0.1:{port}/").status_code == 503:
                threading.Event().wait(0.01)
    assert set(causes) == {"connections"}


def test_uvicorns_own_limit_lets_silent_connections_shut_everybody_out() -> None:
    with serving(hello, limit_concurrency=2) as port, connected(port), connected(port):
        refused = httpx.get(f"http://127.0.0.1:{port}/v2/health/live")
    assert refused.status_code == 503
    assert "retry-after" not in refused.headers


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such clock")
def test_an_answer_that_nobody_fetches_is_given_up() -> None:
    gone = threading.Event()

    async def much(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

        async def until_gone() -> None:
            await receive()
            gone.set()

        watching = asyncio.create_task(until_gone())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.is_set():
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
            await asyncio.sleep(0.01)
        await watching

    kind = guarded_connections(max_connections=9, read_timeout_s=0.5)
    with serving(much, http=kind) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(GET)
        assert gone.wait(60)
