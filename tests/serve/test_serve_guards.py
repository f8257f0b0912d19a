"""The guards, with real clients; each beside a server without it."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live_server import connected, everything, serving
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ltdeploy.serve.guards import BearerTokens, BodyLimit, LastResort, RequestIds, protect
from ltdeploy.serve.logs import request_id

LIMIT = 1000
TOKENS = ("first-secret", "second-secret")
PART = b"POST /length HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\nab"


async def length(request: Request) -> PlainTextResponse:
    """Answer the body's length."""
    return PlainTextResponse(str(len(await request.body())))


async def ignore(request: Request) -> PlainTextResponse:
    """Answer without a look at the body."""
    return PlainTextResponse("ignored")


async def named(request: Request) -> PlainTextResponse:
    """Answer the id under which this is logged."""
    return PlainTextResponse(request_id.get() or "none")


async def broken(request: Request) -> PlainTextResponse:
    """Fail with words that no client may read."""
    raise RuntimeError("/secret/path in version 1.2.3")


async def half(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail in the middle of an answer."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("secret")


def app(*, with_last_resort: bool = True) -> Starlette:
    """Return a small app."""
    return Starlette(
        routes=[
            Route("/length", length, methods=["POST"]),
            Route("/ignore", ignore, methods=["GET", "POST"]),
            Route("/named", named),
            Route("/broken", broken),
            Route("/v2/health/live", ignore),
        ],
        middleware=[Middleware(LastResort)] if with_last_resort else [],
    )


@pytest.fixture(scope="module")
def causes() -> list[str]:
    """Return what the guards of ``guarded`` refused, in order."""
    return []


@pytest.fixture(scope="module")
def guarded(causes: list[str]) -> Iterator[int]:
    """Serve the app behind all guards."""
    whole = protect(
        app(),
        tokens=TOKENS,
        max_body_bytes=LIMIT,
        read_timeout_s=0.3,
        refused=causes.append,
    )
    with serving(whole) as port:
        yield port


@pytest.fixture(scope="module")
def bare() -> Iterator[int]:
    """Serve the app alone: the negative control."""
    with serving(app(with_last_resort=False)) as port:
        yield port


@pytest.fixture
def client(guarded: int) -> Iterator[httpx.Client]:
    """Return a client that has a token."""
    headers = {"authorization": f"Bearer {TOKENS[1]}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{guarded}", headers=headers) as client:
        yield client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", "Bearer first-secre", "Basic first-secret"],
)
def test_without_the_right_token_nothing_opens(
    guarded: int, bare: int, header: str | None, causes: list[str]
) -> None:
    headers = {} if header is None else {"authorization": header}
    answer = httpx.get(f"http://127.0.0.1:{guarded}/ignore", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert set(answer.json()) == {"error", "cause"}
    assert causes[-1] == answer.json()["cause"] == "token"
    assert httpx.get(f"http://127.0.0.1:{bare}/ignore", headers=headers).status_code == 200


def test_two_authorizations_are_none(guarded: int) -> None:
    both = [("authorization", "Bearer nobody"), ("authorization", f"Bearer {TOKENS[0]}")]
    assert httpx.get(f"http://127.0.0.1:{guarded}/ignore", headers=both).status_code == 401


def test_each_token_opens_and_probes_need_none(guarded: int) -> None:
    address = f"http://127.0.0.1:{guarded}"
    for token in TOKENS:
        for scheme in ("Bearer", "bearer"):
            headers = {"authorization": f"{scheme} {token}"}
            assert httpx.get(f"{address}/ignore", headers=headers).status_code == 200
    assert httpx.get(f"{address}/v2/health/live").status_code == 200
    assert httpx.get(f"{address}/v2/health/live/").status_code == 401


def test_a_token_is_compared_with_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, same = [], hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return same(left, right)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    door = BearerTokens(app(), ("a", "bb", "a-much-longer-token"))
    for shown in (b"a", b"bb", b"nothing", b""):
        compared.clear()
        assert door.knows(shown) is (shown in (b"a", b"bb"))
        assert compared == [(32, 32)] * 3  # digests: the length of a token does not show either


def test_a_body_over_the_limit_is_refused_by_its_length(
    client: httpx.Client, bare: int, causes: list[str]
) -> None:
    assert client.post("/length", content=b"x" * LIMIT).text == str(LIMIT)
    answer = client.post("/length", content=b"x" * (LIMIT + 1))
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert "1,001 bytes" in answer.json()["error"]
    assert causes[-1] == answer.json()["cause"] == "body_size"
    assert httpx.post(f"http://127.0.0.1:{bare}/length", content=b"x" * 1001).text == "1001"


def test_a_body_over_the_limit_is_refused_while_it_arrives(
    client: httpx.Client, bare: int, causes: list[str]
) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b"x" * 100

    assert client.post("/length", content=pieces(10)).text == "1000"
    answer = client.post("/length", content=pieces(11))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert causes[-1] == "body_size"
    assert httpx.post(f"http://127.0.0.1:{bare}/length", content=pieces(11)).text == "1100"


def test_bodies_together_have_a_limit_too() -> None:
    """Where 1,000 bytes may be held, a second body of 600 is refused until the first has ended."""

    async def ask() -> list[int]:
        held, go = asyncio.Event(), asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            if (await receive())["type"] == "http.disconnect":
                return
            held.set()
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guarded = BodyLimit(slow, 1000, 60.0, max_bytes_at_once=1000)
        statuses: list[int] = []

        async def one() -> None:
            async def receive() -> dict[str, object]:
                return {"type": "http.request", "body": b"x" * 600, "more_body": False}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            headers = [(b"content-length", b"600")]
            await guarded({"type": "http", "headers": headers}, receive, send)

        first = asyncio.create_task(one())
        await held.wait()
        go_second = asyncio.create_task(one())
        await asyncio.wait_for(asyncio.shield(refused_or_held(statuses)), 60)
        go.set()
        await asyncio.gather(first, go_second)
        await one()
        return statuses

    async def refused_or_held(statuses: list[int]) -> None:
        while not statuses:
            await asyncio.sleep(0.01)

    assert asyncio.run(ask()) == [503, 200, 200]


def test_a_second_transfer_encoding_is_no_way_around(guarded: int) -> None:
    head = (
        b"POST /length HTTP/1.1\r\nhost: test\r\nauthorization: Bearer first-secret\r\n"
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    with connected(guarded, head + b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n") as rude:
        assert everything(rude).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_a_client_that_goes_on_writing_reads_the_refusal(guarded: int) -> None:
    body = b"x" * 20_000_000
    head = b"POST /length HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % len(body)
    with connected(guarded, head) as stubborn:
        stubborn.sendall(body)
        assert everything(stubborn).startswith(b"HTTP/1.1 413")


def test_an_app_learns_of_no_more_than_the_limit() -> None:
    got: list[int] = []

    async def greedy(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            got.append(len(message["body"]))
        # Whatever such an app says then, the client reads why it was refused.
        await PlainTextResponse("my own words", 500)(scope, receive, send)

    with serving(BodyLimit(greedy, LIMIT, 30)) as port:
        answer = httpx.post(f"http://127.0.0.1:{port}", content=(b"x" * 300 for _ in range(50)))
    assert (answer.status_code, answer.json()["cause"]) == (413, "body_size")
    assert sum(got) <= LIMIT


def test_a_body_that_stops_is_ended(guarded: int, bare: int, causes: list[str]) -> None:
    head = PART.replace(b"host", b"authorization: Bearer first-secret\r\nhost")
    with connected(guarded, head) as slow:
        answer = everything(slow)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["cause"] == causes[-1] == "read_timeout"

    with connected(bare, PART) as slow:  # the negative control waits for ever
        slow.settimeout(0.6)
        with pytest.raises(socket.timeout):
            slow.recv(1)


def test_bytes_now_and_then_buy_no_time() -> None:
    arrived = threading.Semaphore(0)

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            arrived.release()

    with serving(BodyLimit(reading, LIMIT, 0.5)) as port, connected(port, PART[:-2]) as slow:
        for _ in range(3):
            slow.sendall(b"a")
            assert arrived.acquire(timeout=60)
        assert everything(slow).startswith(b"HTTP/1.1 408")


def test_an_answer_before_the_end_of_the_body_ends_the_connection(client: httpx.Client) -> None:
    assert client.post("/ignore", content=b"xyz").headers["connection"] == "close"
    assert "connection" not in client.get("/ignore").headers
    assert "connection" not in client.post("/length", content=b"xyz").headers


@pytest.mark.parametrize("given", ["a", "Ab-1._:", "x" * 64])
def test_a_safe_id_is_kept(client: httpx.Client, given: str) -> None:
    answer = client.get("/named", headers={"x-request-id": given})
    assert answer.text == answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a;b", '"', "é", None])
def test_any_other_id_is_replaced(client: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given.encode()}
    first, second = (client.get("/named", headers=headers) for _ in range(2))
    assert first.text == first.headers["x-request-id"] != second.text
    assert len(first.text) == 16


def test_ids_end_with_their_request(bare: int) -> None:
    assert request_id.get() is None
    assert httpx.get(f"http://127.0.0.1:{bare}/named").text == "none"


def test_an_unexpected_error_tells_nothing_and_is_logged(
    client: httpx.Client, bare: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = client.get("/broken")
    assert answer.status_code == 500
    assert answer.json()["cause"] == "internal"
    assert "secret" not in answer.text
    assert [r.getMessage() for r in caplog.records] == ["An unexpected error."]
    assert "/secret/path" in str(caplog.records[0].exc_info)
    control = httpx.get(f"http://127.0.0.1:{bare}/broken")
    assert (control.status_code, control.text) == (500, "Internal Server Error")


def test_an_error_within_an_answer_ends_the_connection(causes: list[str]) -> None:
    whole = protect(half, tokens=(), max_body_bytes=1, read_timeout_s=1, refused=causes.append)
    with serving(whole) as port, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://127.0.0.1:{port}")
    assert causes[-1] == "internal"


def test_every_answer_is_safe_for_a_browser(client: httpx.Client, bare: int) -> None:
    answers = [
        client.get("/ignore"),
        client.get("/nowhere"),
        client.get("/ignore", headers={"authorization": "no"}),
        client.post("/length", content=b"x" * 2000),
        client.get("/broken"),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 401, 413, 500]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert len(answer.headers.get_list("x-content-type-options")) == 1
        assert "x-request-id" in answer.headers
        assert "server" not in answer.headers
    assert "x-content-type-options" not in httpx.get(f"http://127.0.0.1:{bare}/ignore").headers


def test_other_kinds_of_scope_pass_through() -> None:
    seen: list[str] = []

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])
        message = await receive()
        while message["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
            message = await receive()
        await send({"type": "lifespan.shutdown.complete"})

    whole: ASGIApp = protect(lifespan, tokens=TOKENS, max_body_bytes=1, read_timeout_s=1)
    with serving(whole, lifespan="on") as port, connected(port):
        pass
    assert seen == ["lifespan"]
    assert isinstance(whole, RequestIds)
