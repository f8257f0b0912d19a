"""The command itself: started, asked, reloaded, told to stop while it works."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from samples import draw_photo
from serve_running import running

from ltdeploy.bundle import open_bundle, write_bundle
from ltdeploy.cli.serve import _tokens
from ltdeploy.errors import UsageError
from ltdeploy.export.entries import npz
from ltdeploy.predictor import Predictor

ENGINE = ("--engine", "onnxruntime", "--threads", "1")


def photo() -> bytes:
    file = io.BytesIO()
    draw_photo(3).save(file, "JPEG")
    return file.getvalue()


class Process:
    """A running ``ltdeploy serve`` and what it wrote so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.written: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._came:
                self.written.append(line)
                self._came.notify_all()

    def http(self) -> str:
        """Return where it listens."""

        def found() -> str | None:
            return next(
                (m[1] for line in self.written if (m := re.match(r"HTTP +(\S+)", line))), None
            )

        with self._came:
            assert self._came.wait_for(lambda: found() is not None, 120), self.written
        address = found()
        assert address is not None
        return address

    def ended(self) -> int:
        """Wait for its end; return the exit code."""
        code = self.process.wait(120)
        self._reader.join()
        return code

    def requests(self) -> list[int | None]:
        """Return the statuses of its access log."""
        lines = [json.loads(line) for line in self.written if line.startswith("{")]
        return [one["status"] for one in lines if one["logger"] == "ltdeploy.serve.access"]


@contextmanager
def started(*arguments: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "ltdeploy", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


def test_sigterm_under_load_loses_no_accepted_request(bundle_path: Path) -> None:
    stop = threading.Event()
    body = photo()

    def ask(address: str) -> int:
        answered = 0
        while not stop.is_set():
            try:
                answer = httpx.post(
                    f"{address}/v1/predict", content=body, trust_env=False, timeout=60
                )
            except httpx.TransportError:
                return answered  # never accepted: nobody listens any more
            assert answer.status_code == 200
            answered += 1
        return answered

    with started(str(bundle_path), "--grpc-port", "-1", *ENGINE) as server:
        address = server.http()
        with ThreadPoolExecutor(4) as pool:
            callers = [pool.submit(ask, address) for _ in range(4)]
            while len(server.requests()) < 20:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            assert server.ended() == 0
            stop.set()
            answered = sum(caller.result() for caller in callers)
    assert answered >= 20
    assert server.requests() == [200] * answered
    assert server.written[-1] == "Stopped.\n"


def test_serving_brings_no_torch(bundle_path: Path) -> None:
    with started(str(bundle_path), "--grpc-port", "0", *ENGINE) as server:
        address = server.http()
        assert httpx.post(f"{address}/v1/predict", content=photo(), trust_env=False).is_success
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "onnxruntime" in loaded
        assert "libtorch" not in loaded
        server.process.send_signal(signal.SIGINT)
        assert server.ended() == 0
    # Negative control: the name is what a process with torch shows.
    import torch

    assert "libtorch" in Path("/proc/self/maps").read_text(), torch.__version__


def test_a_reload_under_load_fails_no_request(bundle_path: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(bundle_path, tmp_path / "moths.ltd"))
    bundle = open_bundle(place)
    files = {name: (place / name).read_bytes() for name in bundle.manifest.files}
    golden = bundle.golden()
    stop = threading.Event()
    body = photo()

    def ask(address: str) -> int:
        answered = 0
        with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
            while not stop.is_set():
                assert client.post("/v1/predict", content=body).status_code == 200
                answered += 1
        return answered

    def told(address: str, text: str) -> Callable[[], bool]:
        return lambda: text in httpx.get(f"{address}/metrics", trust_env=False).text

    def until(happened: Callable[[], bool]) -> None:
        for _ in range(1200):
            if happened():
                return
            time.sleep(0.05)
        raise AssertionError("it never happened")

    taken = 'ltdeploy_reloads_total{model="moths",outcome="taken"} '
    refused = 'ltdeploy_reloads_total{model="moths",outcome="refused"} '
    with running([str(place)], reload_s=0.02) as addresses, ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(ask, addresses.http) for _ in range(2)]
        try:
            for count in ("1.0", "2.0"):
                write_bundle(place, bundle.manifest, files)
                until(told(addresses.http, taken + count))
            wrong = {**files, "golden.npz": npz(images=golden.images, logits=golden.logits + 1)}
            write_bundle(place, bundle.manifest, wrong)
            until(told(addresses.http, refused + "1.0"))
            # Of other classes: clients would read the new labels by the old names.
            first, *others = bundle.manifest.classes
            renamed = (first.model_copy(update={"name": "another"}), *others)
            write_bundle(place, bundle.manifest.model_copy(update={"classes": renamed}), files)
            until(told(addresses.http, refused + "2.0"))
            assert told(addresses.http, 'ltdeploy_model_ready{model="moths",version="1"} 1.0')()
        finally:
            stop.set()
        assert sum(caller.result() for caller in callers) > 0


def test_a_bundle_that_is_copied_file_by_file(bundle_path: Path, tmp_path: Path) -> None:
    """The manifest first, the graph later: what is refused half-way is taken when it is whole."""
    place = Path(shutil.copytree(bundle_path, tmp_path / "moths.ltd"))
    graph = (place / "model.onnx").read_bytes()

    def until(text: str) -> None:
        for _ in range(1200):
            if text in httpx.get(f"{addresses.http}/metrics", trust_env=False).text:
                return
            time.sleep(0.05)
        raise AssertionError("it never happened")

    with running([str(place)], reload_s=0.02) as addresses:
        (place / "model.onnx").write_bytes(graph[: len(graph) // 2])
        until('outcome="refused"} 1.0')
        (place / "model.onnx").write_bytes(graph)
        until('outcome="taken"} 1.0')


def test_what_cannot_be_drained_in_time_is_refused(bundle_path: Path) -> None:
    """A run holds the engine: what waits behind it is answered with 503, and never with 500."""
    release, entered = threading.Event(), threading.Event()
    original = Predictor.logits

    def held(self: Predictor, images: Any, **rest: Any) -> Any:
        if len(images) == 3:
            entered.set()
            assert release.wait(60)
        return original(self, images, **rest)

    def tensors(count: int) -> int:
        shape = [count, 32, 32, 3]
        body = {
            "inputs": [
                {
                    "name": "images",
                    "datatype": "UINT8",
                    "shape": shape,
                    "data": [0] * (count * 32 * 32 * 3),
                }
            ]
        }
        address = f"{addresses.http}/v2/models/ckpt/infer"
        return httpx.post(address, json=body, trust_env=False, timeout=60).status_code

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(Predictor, "logits", held)
        try:
            with running([str(bundle_path)], drain_s=0.2) as addresses:
                running_now = pool.submit(tensors, 3)
                assert entered.wait(60)
                waiting = [pool.submit(tensors, 1) for _ in range(3)]
                pending = 'nv_inference_pending_request_count{model="ckpt",version="1"} 4.0'
                while pending not in httpx.get(f"{addresses.http}/metrics", trust_env=False).text:
                    time.sleep(0.01)
                ending = threading.Timer(1.0, release.set)
                ending.start()
        finally:
            release.set()
        assert running_now.result() == 200
        assert [one.result() for one in waiting] == [503] * 3


def test_tokens_of_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text("# mine\n\n0123456789abcdef\n")
    monkeypatch.setenv("LTDEPLOY_TOKEN", "fedcba9876543210")
    assert set(_tokens(str(path))) == {"0123456789abcdef", "fedcba9876543210"}
    for wrong in ("short", "a token with many spaces"):
        path.write_text(wrong)
        with pytest.raises(UsageError, match="16 or more without spaces"):
            _tokens(str(path))
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="holds no token"):
        _tokens(str(path))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nothing.ltd",), "nothing.ltd"),
        (("{bundle}", "--host", "0.0.0.0"), "no token is set"),
        (("{bundle}", "--max-queue", "4"), "less than max_batch"),
        (("{bundle}", "--tls-cert", "{json}"), "a certificate and its key"),
        (
            (
                "{bundle}",
                "--tls-cert",
                "{bundle}/manifest.json",
                "--tls-key",
                "{bundle}/manifest.json",
            ),
            "cannot be used",
        ),
        (("{bundle}", "--token-file", "none.txt"), "cannot be read"),
        (("a/b={bundle}",), "does not fit into an address"),
        (("{bundle}", "--engine", "openvno"), "openvino"),
    ],
)
def test_what_cannot_be_served(
    cli: Callable[..., tuple[int, str, str]],
    bundle_path: Path,
    arguments: tuple[str, ...],
    text: str,
) -> None:
    json_path = bundle_path / "manifest.json"
    told = [one.format(bundle=bundle_path, json=json_path) for one in arguments]
    code, _, said = cli("serve", *told, "--port", "0", "--grpc-port", "-1")
    assert code == 2
    assert text in said


def test_a_port_that_is_taken(cli: Callable[..., tuple[int, str, str]], bundle_path: Path) -> None:
    with running([str(bundle_path)]) as addresses:
        port = addresses.http.rpartition(":")[2]
        code, _, said = cli("serve", bundle_path, "--port", port, "--grpc-port", "-1", *ENGINE)
        assert code == 2
        assert f"127.0.0.1:{port} cannot be listened on" in said
        code, _, said = cli("serve", bundle_path, "--port", "0", "--grpc-port", port, *ENGINE)
        assert code == 2
        assert "Give another --grpc-port" in said
