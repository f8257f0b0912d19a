"""The protocol over HTTP: real clients against a real server."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from protocol_samples import (
    NAMES,
    PATIENCE_S,
    SIDE_PX,
    VERSION,
    Addresses,
    HttpClient,
    NumpyModel,
    NumpyModels,
    check_conformance,
    images,
    running,
)
from starlette.requests import Request
from tritonclient.utils import InferenceServerException

from ltdeploy.serve.failures import ClientGone, TooMany
from ltdeploy.serve.http_v2 import read_body, refused, unless_gone

INFER = "/v2/models/species/infer"


@pytest.fixture(scope="module")
def models() -> NumpyModels:
    return NumpyModels([NumpyModel(), NumpyModel(version="2"), NumpyModel(name="other")])


@pytest.fixture(scope="module")
def addresses(models: NumpyModels) -> Iterator[Addresses]:
    with running(models) as places:
        yield places


@pytest.fixture
def client(addresses: Addresses) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{addresses.http}", timeout=PATIENCE_S) as client:
        yield client


def asked(pictures: np.ndarray, **more: object) -> dict[str, object]:
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(pictures.shape),
        "data": pictures.tolist(),
    }
    return {"inputs": [tensor], **more}


def test_real_clients_find_a_conforming_server(addresses: Addresses) -> None:
    check_conformance(addresses.http, addresses.grpc, "species")
    check_conformance(addresses.http, addresses.grpc, "other")


def test_the_conformance_check_notices_a_server_that_does_not_conform() -> None:
    class Fickle(NumpyModel):
        def compute(self, images: np.ndarray) -> np.ndarray:
            return super().compute(images) + len(self.calls)

    class Careless(NumpyModels):
        def get(self, name: str, version: str | None = None) -> NumpyModel:
            return self.models[0]

    for wrong in (NumpyModels([Fickle()]), Careless([NumpyModel()])):
        with running(wrong) as places, pytest.raises(AssertionError):
            check_conformance(places.http, places.grpc, "species")


def test_the_server_and_its_models_say_what_they_are(client: httpx.Client) -> None:
    assert client.get("/v2").json() == {
        "name": "ltdeploy",
        "version": VERSION,
        "extensions": ["binary_tensor_data", "classification", "model_configuration"],
    }
    assert client.get("/v2/models/species").json() == {
        "name": "species",
        "versions": ["1", "2"],
        "platform": "numpy-cpu",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, SIDE_PX, SIDE_PX, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert client.get("/v2/models/species/versions/1/config").json() == {
        "name": "species",
        "platform": "numpy-cpu",
        "max_batch_size": 16,
        "input": [{"name": "images", "data_type": "TYPE_UINT8", "dims": [SIDE_PX, SIDE_PX, 3]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}],
    }
    index = client.post("/v2/repository/index").json()
    assert index[0] == {"name": "species", "version": "1", "state": "READY"}
    assert len(index) == 3


def test_health_says_in_its_body_what_kserves_client_reads(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    ready = client.get("/v2/models/species/versions/1/ready")
    assert ready.json() == {"name": "species", "ready": True}


def test_tritonclient_reads_configuration_and_index(addresses: Addresses) -> None:
    with HttpClient(addresses.http) as client:
        assert client.get_model_config("species")["max_batch_size"] == 16
        assert len(client.get_model_repository_index()) == 3
        with pytest.raises(InferenceServerException):
            client.get_inference_statistics("species")


@pytest.mark.parametrize("flat", [False, True])
def test_json_in_json_out(client: httpx.Client, flat: bool) -> None:
    pictures = images(2)
    body = asked(pictures, id="seven")
    if flat:
        body["inputs"][0]["data"] = pictures.ravel().tolist()
    answer = client.post(INFER, json=body)
    assert answer.headers["content-type"] == "application/json"
    logits = NumpyModel().compute(pictures)
    assert answer.json() == {
        "model_name": "species",
        "model_version": "2",
        "id": "seven",
        "outputs": [
            {
                "name": "logits",
                "datatype": "FP32",
                "shape": [2, 3],
                "data": logits.ravel().astype(float).tolist(),
            }
        ],
    }


def test_bytes_come_after_the_json_that_the_header_measures(client: httpx.Client) -> None:
    pictures = images(2)
    answer = client.post(INFER, json=asked(pictures, parameters={"binary_data_output": True}))
    end = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    got = np.frombuffer(answer.content[end:], np.float32).reshape(2, 3)
    np.testing.assert_array_equal(got, NumpyModel().compute(pictures))
    assert b'"binary_data_size":24' in answer.content[:end]


@pytest.mark.parametrize("binary", [False, True])
def test_classes_by_name(addresses: Addresses, binary: bool) -> None:
    pictures = images(2)
    with HttpClient(addresses.http) as client:
        tensor = triton.InferInput("images", list(pictures.shape), "UINT8")
        tensor.set_data_from_numpy(pictures)
        wish = triton.InferRequestedOutput("logits", binary_data=binary, class_count=2)
        got = client.infer("species", [tensor], outputs=[wish]).as_numpy("logits")
    assert got.shape == (2, 2)
    for row, logits in zip(got, NumpyModel().compute(pictures), strict=True):
        for text, label in zip(row, np.argsort(-logits), strict=False):
            value, index, name = (text.decode() if binary else text).split(":")
            assert (int(index), name) == (label, NAMES[label])
            assert float(value) == pytest.approx(logits[label], abs=1e-5)


def test_a_timeout_in_microseconds_is_a_deadline_in_seconds(
    client: httpx.Client, models: NumpyModels
) -> None:
    for timeout, expected in ((250_000, 0.25), (0, None)):
        client.post(INFER, json=asked(images(1), parameters={"timeout": timeout}))
        assert models.models[1].deadlines_s[-1] == expected


def test_errors_are_json_with_a_cause(client: httpx.Client) -> None:
    wrong = client.post(INFER, json=asked(images(1)[..., :2]))
    assert (wrong.status_code, wrong.json()["cause"]) == (400, "wrong_shape")
    assert f"expected [N, {SIDE_PX}, {SIDE_PX}, 3]" in wrong.json()["error"]
    absent = client.get("/v2/models/nothing")
    assert (absent.status_code, absent.json()["cause"]) == (404, "unknown_model")
    assert client.get("/v2/models/species/versions/9/ready").status_code == 404
    assert client.get(INFER).status_code == 405


@pytest.mark.parametrize("name", ["\x00", "é\n", "\ud800", "x" * 100_000])
def test_strange_names_in_a_request_do_not_break_the_answer(
    client: httpx.Client, name: str
) -> None:
    body = asked(images(1), id=name)
    assert client.post(INFER, content=json.dumps(body)).json()["id"] == name
    body["inputs"][0]["name"] = name
    answer = client.post(INFER, content=json.dumps(body))
    assert (answer.status_code, answer.json()["cause"]) == (400, "unknown_input")
    assert len(answer.content) < 1000


def test_compressed_bodies_are_refused_clearly(addresses: Addresses) -> None:
    with HttpClient(addresses.http) as client:
        tensor = triton.InferInput("images", [1, SIDE_PX, SIDE_PX, 3], "UINT8")
        tensor.set_data_from_numpy(images(1))
        for algorithm in ("gzip", "deflate"):
            with pytest.raises(InferenceServerException, match="compressed") as caught:
                client.infer("species", [tensor], request_compression_algorithm=algorithm)
            assert caught.value.status() == "415"
        client.infer("species", [tensor], response_compression_algorithm="gzip")


def test_readiness_is_of_the_server_and_of_each_model() -> None:
    sleeping = NumpyModel(is_ready=False)
    with running(NumpyModels([sleeping], is_ready=False)) as places:
        with HttpClient(places.http) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert not client.is_model_ready("species")
        answer = httpx.get(f"http://{places.http}/v2/health/ready")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["cause"] == "not_ready"


def test_a_full_queue_says_when_to_come_again() -> None:
    full = NumpyModel(error=TooMany("The queue is full.", "queue_full", retry_after_s=1.2))
    with running(NumpyModels([full])) as places:
        answer = httpx.post(f"http://{places.http}{INFER}", json=asked(images(1)))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json() == {"error": "The queue is full.", "cause": "queue_full"}


def raw_request(address: str, length: int) -> socket.socket:
    """Open a connection and send the head of a request."""
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), PATIENCE_S)
    connection.sendall(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return connection


def test_work_ends_when_its_client_goes_away() -> None:
    model = NumpyModel(held=True)
    body = httpx.Request("POST", "http://x", json=asked(images(1))).content
    with running(NumpyModels([model])) as places:
        with raw_request(places.http, len(body)) as connection:
            connection.sendall(body)
            assert model.started.wait(PATIENCE_S)
            assert not model.cancelled.is_set()
        assert model.cancelled.wait(PATIENCE_S)


def test_work_goes_on_while_its_client_waits() -> None:
    model = NumpyModel(held=True)
    body = httpx.Request("POST", "http://x", json=asked(images(1))).content
    with running(NumpyModels([model])) as places, raw_request(places.http, len(body)) as connection:
        connection.sendall(body)
        assert model.started.wait(PATIENCE_S)
        model.go.set()
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert not model.cancelled.is_set()


def test_a_client_that_goes_in_the_middle_of_its_upload_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = NumpyModel()
    with running(NumpyModels([model])) as places:
        with raw_request(places.http, 1000) as connection:
            connection.sendall(b'{"inputs":')
        assert httpx.get(f"http://{places.http}/v2/health/ready").status_code == 200
    assert not model.calls
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_half_a_body_is_no_body() -> None:
    messages = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    request = Request({"type": "http", "headers": []}, receive)
    with pytest.raises(ClientGone):
        asyncio.run(read_body(request))


def test_cancelling_a_request_cancels_its_work() -> None:
    async def main() -> list[str]:
        events: list[str] = []

        async def forever() -> None:
            events.append("begun")
            try:
                await asyncio.Event().wait()
            finally:
                events.append("ended")

        async def receive() -> dict[str, object]:
            await asyncio.Event().wait()
            return {}

        request = Request({"type": "http", "headers": []}, receive)
        task = asyncio.create_task(unless_gone(request, forever()))
        while not events:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return events

    assert asyncio.run(main()) == ["begun", "ended"]


def test_what_is_no_refusal_is_not_answered_as_one() -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(refused(None, ZeroDivisionError()))  # type: ignore[arg-type]
