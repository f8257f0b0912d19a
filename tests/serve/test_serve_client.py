"""The client against a real server, and against one that refuses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import serving
from onnx_detector_samples import write_bundle
from samples import draw_photo
from serve_running import running
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

import ltdeploy
from ltdeploy.errors import UsageError
from ltdeploy.serve import client as client_module
from ltdeploy.serve.client import AsyncClient, Client, ServerRefusedError
from ltdeploy.serve.run import Addresses


@pytest.fixture(scope="module")
def detector(module_folder: Path) -> Path:
    return write_bundle(module_folder)


@pytest.fixture(scope="module")
def server(bundle_path: Path, detector: Path) -> Iterator[Addresses]:
    with running([f"moths={bundle_path}", f"boxes={detector}"], tokens=("secret",)) as addresses:
        yield addresses


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    draw_photo(3).save(path)
    return path


def test_answers_are_those_of_the_bundle(
    server: Addresses, bundle_path: Path, detector: Path, photo: Path
) -> None:
    with (
        ltdeploy.load(bundle_path, engine="onnxruntime", threads=1) as model,
        ltdeploy.load_detector(detector, engine="onnxruntime", threads=1) as finder,
        Client(server.http, token="secret") as client,
    ):
        told = client.predict(photo, model="moths", version="1", top_k=2)
        assert isinstance(told, ltdeploy.Prediction)
        assert (told.input, told.top) == (str(photo), model(photo, top_k=2).top)
        boxes = client.predict(photo.read_bytes(), model="boxes", min_score=0.2)
        assert isinstance(boxes, ltdeploy.DetectionResult)
        assert boxes.found == finder.predict(photo, min_score=0.2).found != ()
        assert [(one.name, one.task) for one in client.models()] == [
            ("boxes", "detection"),
            ("moths", "classification"),
        ]


def test_many_at_once(server: Addresses, photo: Path) -> None:
    async def ask() -> set[str]:
        async with AsyncClient(server.http, token="secret") as client:
            asked = [client.predict(photo, model="moths") for _ in range(20)]
            answers = await asyncio.gather(*asked)
            assert len(await client.models()) == 2
        return {one.best.name for one in answers if isinstance(one, ltdeploy.Prediction)}

    assert len(asyncio.run(ask())) == 1


def test_refusals_have_their_cause(server: Addresses, photo: Path, tmp_path: Path) -> None:
    with Client(server.http, token="wrong") as client:
        with pytest.raises(ServerRefusedError, match=r"^401: .*token") as refused:
            client.predict(photo, model="moths")
        assert (refused.value.status, refused.value.cause) == (401, "token")
    with Client(server.http, token="secret") as client:
        with pytest.raises(ServerRefusedError, match=r"^404: .*Did you mean 'moths'\?"):
            client.predict(photo, model="mohts")
        with pytest.raises(UsageError, match=r"none\.jpg cannot be read"):
            client.predict(tmp_path / "none.jpg")
    with pytest.raises(UsageError, match="expected http://HOST:PORT"):
        Client("127.0.0.1:8000")


class Refusing:
    """An app that gives these answers, one after the other."""

    def __init__(self, *answers: Response) -> None:
        self.answers = itertools.chain(answers)
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        self.asked += 1
        await next(self.answers)(scope, receive, send)


def busy(status: int, **headers: str) -> Response:
    return JSONResponse({"error": "Busy.", "cause": "queue_full"}, status, headers)


GOOD = JSONResponse({"models": []})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note the waits, and do not wait."""
    noted: list[float] = []

    async def asleep(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(client_module, "sleep", noted.append)
    monkeypatch.setattr(client_module, "async_sleep", asleep)
    return noted


def models_of(port: int, *, plain: bool, **options: float) -> object:
    url = f"http://127.0.0.1:{port}"
    if plain:
        with Client(url, **options) as client:  # type: ignore[arg-type]
            return client.models()

    async def ask() -> object:
        async with AsyncClient(url, **options) as client:  # type: ignore[arg-type]
            return await client.models()

    return asyncio.run(ask())


@pytest.mark.parametrize("plain", [True, False])
def test_what_is_busy_is_asked_again(waits: list[float], plain: bool) -> None:
    app = Refusing(busy(429), busy(503, **{"Retry-After": "2"}), GOOD)
    with serving(app) as port:
        assert models_of(port, plain=plain) == ()
    assert app.asked == 3
    first, second = waits
    assert 0.1 <= first <= 0.15
    assert 2 <= second <= 3


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("answers", "options", "asked"),
    [
        ([busy(503)] * 9, {"retries": 2}, 3),
        ([busy(503, **{"Retry-After": "60"})] * 9, {"timeout_s": 5.0}, 1),
        ([busy(400)] * 9, {}, 1),
        ([PlainTextResponse("bad gateway", 502)] * 9, {}, 1),
    ],
)
def test_what_stays_refused_is_an_error(
    waits: list[float],
    plain: bool,
    answers: list[Response],
    options: dict[str, float],
    asked: int,
) -> None:
    app = Refusing(*answers)
    with serving(app) as port, pytest.raises(ServerRefusedError) as refused:
        models_of(port, plain=plain, **options)
    assert app.asked == asked
    assert refused.value.status == answers[0].status_code
    assert len(waits) == asked - 1


def test_nobody_there(waits: list[float]) -> None:
    with serving(Refusing()) as port:
        pass
    with pytest.raises(ServerRefusedError, match="cannot be reached") as refused:
        models_of(port, plain=True)
    assert (refused.value.status, refused.value.cause, len(waits)) == (None, "connection", 3)
