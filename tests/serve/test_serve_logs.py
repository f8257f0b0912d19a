"""The logs: one JSON object a line, whatever strangers send, and no secret in any."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import serving
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ltdeploy.serve import logs
from ltdeploy.serve.guards import LastResort, protect
from ltdeploy.serve.logs import JsonLines, request_id

TOKEN = "a-very-secret-token"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Write the logs here while the test runs."""
    stream = io.StringIO()
    with logs.written("INFO", stream):
        yield stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return what was written, a dictionary a line."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def line(message: str, **extra: object) -> dict[str, Any]:
    """Return one record as it is written."""
    written: dict[str, Any] = json.loads(
        JsonLines().format(logging.makeLogRecord({"msg": message, **extra}))
    )
    return written


async def answer(request: Request) -> PlainTextResponse:
    """Answer, and say which model did."""
    request.state.model = "birds"
    return PlainTextResponse("hello")


async def broken(request: Request) -> PlainTextResponse:
    """Fail."""
    raise RuntimeError("the cable is loose")


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """Return a client of a guarded server."""
    app = Starlette(
        routes=[
            Route("/", answer),
            Route("/broken", broken),
            Route("/v2/models/{name}", answer),
            Route("/v2/models/{name}/ready", broken),
            Route("/metrics", answer),
        ],
        middleware=[Middleware(LastResort)],
    )
    whole = protect(app, tokens=(TOKEN,), max_body_bytes=10, read_timeout_s=30)
    headers = {"authorization": f"Bearer {TOKEN}", "x-request-id": "mine-1"}
    with (
        serving(whole) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client,
    ):
        yield client


@given(text=st.text(), path=st.text(), name=st.sampled_from(["path", "model", "client"]))
def test_no_text_of_a_stranger_forges_a_line(text: str, path: str, name: str) -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), name: path * 3})
    out = JsonLines().format(record)
    assert out.isascii()
    assert out.isprintable()  # no line end, no terminal sequence
    assert set(json.loads(out)) == {"time", "level", "message", name}


def test_long_text_is_cut_and_short_text_is_not() -> None:
    assert line("x" * 300)["message"] == "x" * 300
    cut = line("a" * 5000 + "b" * 5000, path="y" * 10_000)
    assert len(cut["message"]) < 310
    assert cut["message"].startswith("aaa")
    assert cut["message"].endswith("bbb")
    assert len(cut["path"]) < 310


def test_numbers_stay_numbers() -> None:
    got = line("m", ms=1.5, images=3, ok=True, none=None, bad=float("nan"), worse=float("inf"))
    assert [got[name] for name in ("ms", "images", "ok", "none")] == [1.5, 3, True, None]
    assert [got[name] for name in ("bad", "worse")] == ["nan", "inf"]  # JSON has no such numbers


@pytest.mark.parametrize("name", ["authorization", "Authorization", "api_key", "token", "tokens"])
def test_secrets_are_hidden_and_other_text_is_not(name: str) -> None:
    hidden = line(f"got Bearer {TOKEN}, and basic {TOKEN}!", note="plain", **{name: TOKEN})
    assert TOKEN not in json.dumps(hidden)
    assert hidden["message"] == "got Bearer [hidden], and basic [hidden]"
    assert hidden["note"] == "plain"
    assert TOKEN in json.dumps(line(TOKEN, note=TOKEN))  # the control: nothing else is hidden


def test_time_is_utc_and_the_id_is_the_requests() -> None:
    async def logged(name: str) -> dict[str, Any]:
        request_id.set(name)
        await asyncio.sleep(0)
        return line("m", created=0.25)

    async def both() -> list[dict[str, Any]]:
        return list(await asyncio.gather(logged("one"), logged("two")))

    one, two = asyncio.run(both())
    assert one["time"] == "1970-01-01T00:00:00.250Z"
    assert (one["request_id"], two["request_id"]) == ("one", "two")
    assert "request_id" not in line("m")


def test_each_request_is_one_line(written: io.StringIO, client: httpx.Client) -> None:
    client.get("/", params={"token": TOKEN})
    client.get("/v2/models/fish")
    client.get("/nowhere%0d%0a%7b%22forged%22:1%7d%1b[31m")
    client.post("/", content=b"x" * 11)
    client.get("/metrics")
    client.get("/", headers={"authorization": f"Bearer {TOKEN}x"})
    got = [entry for entry in lines(written) if entry["logger"] == "ltdeploy.serve.access"]
    assert [entry["status"] for entry in got] == [200, 200, 404, 413, 401]
    assert [entry.get("model") for entry in got[:3]] == ["birds", "birds", None]
    first = got[0]
    assert (first["method"], first["path"], first["bytes"]) == ("GET", "/", 5)
    assert (first["client"], first["request_id"], first["level"]) == ("127.0.0.1", "mine-1", "INFO")
    assert first["ms"] > 0
    assert got[2]["path"] == '/nowhere\r\n{"forged":1}\x1b[31m'
    assert "\x1b" not in written.getvalue()
    assert TOKEN not in written.getvalue()


def test_probes_are_written_only_to_who_asks(written: io.StringIO, client: httpx.Client) -> None:
    client.get("/metrics")
    assert not [e for e in lines(written) if e["logger"] == "ltdeploy.serve.access"]
    logging.getLogger("ltdeploy").setLevel("DEBUG")
    client.get("/metrics")
    assert [e["path"] for e in lines(written) if e["logger"] == "ltdeploy.serve.access"] == [
        "/metrics"
    ]


def test_an_error_comes_with_its_traceback_in_one_line(
    written: io.StringIO, client: httpx.Client
) -> None:
    assert client.get("/broken").status_code == 500
    error = next(entry for entry in lines(written) if entry["level"] == "ERROR")
    assert error["request_id"] == "mine-1"
    assert error["exception"].startswith("Traceback")
    assert error["exception"].endswith("RuntimeError: the cable is loose")
    assert sum(entry["message"] == "request" for entry in lines(written)) == 1


def test_a_model_of_the_path_is_named_where_the_handler_named_none(
    written: io.StringIO, client: httpx.Client
) -> None:
    client.get("/v2/models/fish/ready")
    assert [e["model"] for e in lines(written) if e["message"] == "request"] == ["fish"]


def test_uvicorn_writes_json_and_no_access_log(written: io.StringIO) -> None:
    with serving(Starlette(routes=[Route("/", answer)])) as port:
        httpx.get(f"http://127.0.0.1:{port}/")
    assert {entry["logger"] for entry in lines(written)} == {"uvicorn.error"}
