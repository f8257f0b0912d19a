"""Photographs to a real server: /v1/predict as browsers, curl and clients use it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx_detector_samples import write_bundle
from PIL import Image
from samples import draw_photo
from serve_running import running

import ltdeploy
from ltdeploy.serve.run import Addresses


@pytest.fixture(scope="module")
def detector(module_folder: Path) -> Path:
    return write_bundle(module_folder)


@pytest.fixture(scope="module")
def server(bundle_path: Path, detector: Path) -> Iterator[Addresses]:
    bundles = [f"moths={bundle_path}", f"moths={bundle_path}", f"boxes={detector}"]
    with running(bundles, max_pixels=1_000_000, max_body_bytes=1 << 20) as addresses:
        yield addresses


@pytest.fixture
def client(server: Addresses) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=60, trust_env=False) as client:
        yield client


def photo(seed: int = 3, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    draw_photo(seed).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_answer_is_the_predictors(client: httpx.Client, bundle_path: Path, kind: str) -> None:
    body = photo(kind=kind)
    with ltdeploy.load(bundle_path, engine="onnxruntime", threads=1) as model:
        expected = model(body, top_k=3)
    answer = client.post("/v1/predict?model=moths&top_k=3", content=body)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["model"], told["version"]) == ("moths", "2")  # the newest
    assert [one["name"] for one in told["top"]] == [one.name for one in expected.top]
    for one, other in zip(told["top"], expected.top, strict=True):
        assert one["prob"] == pytest.approx(other.prob, rel=1e-4)
        assert (one["label"], one["group"], one["train_count"]) == (
            other.label,
            other.group,
            other.train_count,
        )


def test_a_form_of_a_browser(client: httpx.Client) -> None:
    raw = client.post("/v1/predict?model=moths", content=photo()).json()
    form = client.post(
        "/v1/predict",
        files={"image": ("a.png", photo(), "image/png")},
        data={"model": "moths", "version": "1", "top_k": "2"},
    )
    assert form.status_code == 200
    assert form.json()["version"] == "1"
    assert form.json()["top"] == raw["top"][:2]


def test_a_form_does_not_contradict_itself_or_the_address(client: httpx.Client) -> None:
    image = ("image", ("a.png", photo(), "image/png"))
    for query, fields in (("&top_k=3", ["2"]), ("", ["2", "3"])):
        told = [("top_k", (None, value)) for value in fields]
        answer = client.post(f"/v1/predict?model=moths{query}", files=[image, *told])
        assert (answer.status_code, answer.json()["cause"]) == (400, "parameter")
        assert "'top_k' stands twice" in answer.json()["error"]


def test_boxes(client: httpx.Client, detector: Path) -> None:
    with ltdeploy.load_detector(detector, engine="onnxruntime", threads=1) as model:
        expected = model.predict(photo(), min_score=0.2).found
    told = client.post("/v1/predict?model=boxes&min_score=0.2", content=photo()).json()
    assert len(expected) > 0
    assert [one["name"] for one in told["boxes"]] == [one.name for one in expected]
    np.testing.assert_allclose(
        [one["box"] for one in told["boxes"]], [one.box for one in expected], atol=0.01
    )


def test_what_is_known_of_a_request_moves_its_answer(client: httpx.Client) -> None:
    plain = client.post("/v1/predict?model=moths&top_k=6", content=photo()).json()["top"]
    last = plain[-1]["label"]
    prior = json.dumps([1e6 if label == last else 0.0 for label in range(6)])
    files = {"image": ("a.png", photo())}
    moved = client.post("/v1/predict?model=moths", files=files, data={"log_prior": prior})
    assert moved.json()["top"][0]["label"] == last


FORM = b'--x\r\ncontent-disposition: form-data; name="\xff\xfe"\r\n\r\nz\r\n--x--\r\n'


def broken(kind: str) -> bytes:
    whole = photo(kind=kind)
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("query", "body", "kind", "status", "cause"),
    [
        ("model=moths", b"", None, 400, "empty_body"),
        ("model=moths", b"hello, world", None, 415, "image_format"),
        ("model=moths", photo(), "application/json", 415, "content_type"),
        ("model=moths", broken("PNG"), None, 422, "image"),
        ("model=mohts", photo(), None, 404, "model"),
        ("model=moths&version=9", photo(), None, 404, "version"),
        ("", photo(), None, 400, "parameter"),
        ("model=moths&top_k=0", photo(), None, 400, "top_k"),
        ("model=moths&top_k=x", photo(), None, 400, "parameter"),
        (f"model=moths&top_k=1{400 * '0'}", photo(), None, 400, "parameter"),
        ("model=moths&min_score=nan", photo(), None, 400, "parameter"),
        (f"model=moths&log_prior=[1{400 * '0'}]", photo(), None, 400, "log_prior"),
        (f"model=moths&log_prior=1{400 * '0'}", photo(), None, 400, "log_prior"),
        ("model=moths&topk=3", photo(), None, 400, "parameter"),
        ("model=moths&top_k=1&top_k=2", photo(), None, 400, "parameter"),
        ("model=moths&timeout_ms=0", photo(), None, 400, "parameter"),
        ("model=moths&log_prior=[1]", photo(), None, 400, "log_prior"),
        ("model=moths&log_prior=[[[", photo(), None, 400, "log_prior"),
        ("model=boxes&log_prior=[1]", photo(), None, 400, "log_prior"),
        ("model=boxes&min_score=2", photo(), None, 400, "min_score"),
        ("model=moths", b"\xff\xd8\xff" + b"\0" * (1 << 20), None, 413, "body_size"),
        ("model=moths", photo(), "multipart/form-data; boundary=x", 400, "form"),
        ("model=moths", photo(), "multipart/form-data", 400, "form"),
        ("model=moths", FORM, "multipart/form-data; boundary=x; charset=punycode", 400, "form"),
    ],
)
def test_what_cannot_be_answered(
    client: httpx.Client, query: str, body: bytes, kind: str | None, status: int, cause: str
) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post(f"/v1/predict?{query}", content=body, headers=headers)
    assert (answer.status_code, answer.json()["cause"]) == (status, cause)
    assert answer.json()["error"].endswith((".", "?"))
    # The connection, and the server, still answer.
    assert client.post("/v1/predict?model=moths", content=photo()).status_code == 200


def test_a_picture_with_too_many_pixels(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "PNG")
    answer = client.post("/v1/predict?model=moths", content=file.getvalue())
    assert (answer.status_code, answer.json()["cause"]) == (413, "image_size")


def test_models_and_metrics(client: httpx.Client) -> None:
    client.post("/v1/predict?model=moths", content=photo())
    told: dict[str, Any] = client.get("/v1/models").json()
    assert [(one["name"], one["version"], one["task"]) for one in told["models"]] == [
        ("boxes", "1", "detection"),
        ("moths", "1", "classification"),
        ("moths", "2", "classification"),
    ]
    shown = client.get("/metrics").text
    assert 'nv_inference_count{model="moths",version="2"}' in shown
    assert 'ltdeploy_predictions_total{group="' in shown
    assert client.get("/v1/predict").json()["cause"] == "method"
    assert client.get("/etc/passwd").json()["cause"] == "address"


def test_hostile_bodies_never_are_the_servers_fault(client: httpx.Client) -> None:
    rng = np.random.default_rng(0)
    whole = [photo(kind=kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    for _ in range(300):
        body = bytearray(whole[rng.integers(len(whole))])
        for place in rng.integers(0, len(body), rng.integers(1, 20)):
            body[place] = rng.integers(256)
        answer = client.post(
            "/v1/predict?model=moths", content=bytes(body[: rng.integers(1, len(body))])
        )
        assert answer.status_code in (200, 413, 415, 422), answer.text
