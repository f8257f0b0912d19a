"""Measure what serving costs: HTTP and gRPC against the same engine in one process.

One server, `ltdeploy serve`, of one bundle; the load comes from a second process on the same
machine. The in-process side and the served side take turns, and the ratio of each turn is one
value.

``tensors``: ready images in batches through the binary extension, saturated, against the bare
engine on the same batches. ``photos``: JPEG bodies to /v1/predict against in-process ``predict`` of
the same bytes. ``latency``: single photographs one after the other, and at half of the saturated
rate, against in-process calls. ``overload``: five times what it can do.

    python benchmarks/serving.py BUNDLE --photos DIR [--seconds 10] [--turns 3] [--batch 8]
        [--only tensors photos latency overload]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import ltdeploy

PARTS = ("tensors", "photos", "latency", "overload")


def figure(name: str, values: Sequence[float], unit: str = "") -> None:
    """Print one line: median, lowest, highest."""
    shown = f"{statistics.median(values):.3g}{unit} ({min(values):.3g} … {max(values):.3g})"
    print(f"{name:<72} {shown}", flush=True)


@contextmanager
def served(bundle: str, *options: str) -> Iterator[tuple[str, int]]:
    """Run the command; yield its HTTP address and its process."""
    command = [sys.executable, "-m", "ltdeploy", "serve", f"m={bundle}", "--port", "0"]
    with subprocess.Popen(
        [*command, "--grpc-port", "-1", *options], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        address = next(
            found[1] for line in process.stderr if (found := re.match(r"HTTP +http://(\S+)", line))
        )
        reader = threading.Thread(target=lambda: [None for _ in process.stderr or ()])
        reader.start()
        try:
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            reader.join()


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def load(told: dict[str, Any]) -> dict[str, Any]:
    """Send requests as told, in this process; return latencies, statuses and the time it took."""
    bodies = [Path(name).read_bytes() for name in told["bodies"]]
    latencies: list[float] = []
    statuses: list[int] = []
    began = time.perf_counter()
    ends = began + told["seconds"]
    rate = told.get("rate")
    turn = iter(range(10**9))
    lock = threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection(told["address"], timeout=120)
        while True:
            with lock:
                number = next(turn)
            due = time.perf_counter() if rate is None else began + number / rate
            if max(due, time.perf_counter()) >= ends:
                return
            time.sleep(max(0.0, due - time.perf_counter()))
            body = bodies[number % len(bodies)]
            try:
                connection.request("POST", told["path"], body, told["headers"])
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0  # lost: no answer came
            # From when it was due: a client that waits for its turn would hide the queue.
            latencies.append(time.perf_counter() - due)
            statuses.append(status)

    workers = [threading.Thread(target=work) for _ in range(told["connections"])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {
        "latencies": latencies,
        "statuses": statuses,
        "seconds": time.perf_counter() - began,
    }


def from_another_process(**told: Any) -> dict[str, Any]:
    """Run :func:`load` in a process of its own."""
    command = [sys.executable, __file__, "--load", json.dumps(told)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def per_second(seconds: float, work: Callable[[], int]) -> float:
    """Return how much ``work`` does in a second."""
    began = time.perf_counter()
    done = 0
    while time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


def tensor_body(images: np.ndarray[Any, Any]) -> tuple[bytes, dict[str, str]]:
    """Return a request of the binary extension that asks for binary logits."""
    head = {
        "inputs": [
            {
                "name": "images",
                "datatype": "UINT8",
                "shape": list(images.shape),
                "parameters": {"binary_data_size": images.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    return text + images.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    photos = sorted(str(path) for path in asked.photos.iterdir() if path.suffix == ".jpg")
    read = [Path(name).read_bytes() for name in photos]
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    with (
        ltdeploy.load(asked.bundle) as model,
        served(asked.bundle, "--max-batch", str(asked.batch)) as (address, pid),
    ):
        print(f"{model.engine.name}, {len(photos)} photographs, turns of {asked.seconds:g} s")
        size = (model.preprocessing.height_px, model.preprocessing.width_px, 3)
        images = np.random.default_rng(0).integers(0, 256, (asked.batch, *size), np.uint8)
        model.warm_up((1, asked.batch))
        if "tensors" in asked.only:
            body, headers = tensor_body(images)
            place = folder / "serving-tensors.bin"
            place.write_bytes(body)
            ratios, rates = [], []
            for _ in range(asked.turns):
                bare = per_second(asked.seconds, lambda: len(model.logits(images)))
                told = from_another_process(
                    address=address,
                    path="/v2/models/m/infer",
                    headers=headers,
                    bodies=[str(place)],
                    connections=3,
                    seconds=asked.seconds,
                )
                assert set(told["statuses"]) == {200}
                rates.append(len(told["statuses"]) * asked.batch / told["seconds"])
                ratios.append(rates[-1] / bare)
            place.unlink()
            figure(f"tensors over HTTP, batches of {asked.batch}, over the bare engine", ratios)
            figure("  images per second over HTTP", rates)
        rate = 0.0
        if {"photos", "overload", "latency"} & set(asked.only):
            ratios, rates = [], []
            for _ in range(asked.turns):
                inside = per_second(
                    asked.seconds,
                    lambda: len(model.predict(list(read))),  # type: ignore[arg-type]
                )
                told = from_another_process(
                    address=address,
                    path="/v1/predict",
                    headers={"Content-Type": "image/jpeg"},
                    bodies=photos,
                    connections=2 * asked.batch + 4,
                    seconds=asked.seconds,
                )
                assert set(told["statuses"]) == {200}
                rates.append(len(told["statuses"]) / told["seconds"])
                ratios.append(rates[-1] / inside)
            rate = statistics.median(rates)
            figure("JPEG bodies over HTTP over in-process predict", ratios)
            figure("  images per second over HTTP", rates)
        if "latency" in asked.only:
            for half in (False, True):
                inside_ms, served_ms = [], []
                for _ in range(asked.turns):
                    own: list[float] = []
                    until = time.perf_counter() + asked.seconds
                    while time.perf_counter() < until:
                        for one in read:
                            began = time.perf_counter()
                            model.predict(one)
                            own.append(time.perf_counter() - began)
                    told = from_another_process(
                        address=address,
                        path="/v1/predict",
                        headers={"Content-Type": "image/jpeg"},
                        bodies=photos,
                        connections=8 if half else 1,
                        seconds=asked.seconds,
                        **({"rate": rate / 2} if half else {}),
                    )
                    share = 99 if half else 50
                    inside_ms.append(1000 * float(np.percentile(own, share)))
                    served_ms.append(1000 * float(np.percentile(told["latencies"], share)))
                name = "p99 at half load" if half else "p50, one after the other"
                differences = [b - a for a, b in zip(inside_ms, served_ms, strict=True)]
                figure(f"{name}: over the in-process call, ms", differences)
                figure("  served, ms", served_ms)
        if "overload" in asked.only:
            before = resident_mb(pid)
            told = from_another_process(
                address=address,
                path="/v1/predict?timeout_ms=2000",
                headers={"Content-Type": "image/jpeg"},
                bodies=photos,
                connections=256,
                seconds=max(asked.seconds, 20),
                rate=5 * rate,
            )
            kinds = {s: told["statuses"].count(s) for s in sorted(set(told["statuses"]))}
            pairs = zip(told["statuses"], told["latencies"], strict=True)
            accepted = sorted(seconds for status, seconds in pairs if status == 200)
            sent = len(told["statuses"]) / told["seconds"]
            print(f"overload, {sent / rate:.1f} times that rate sent, deadline 2 s: {kinds}")
            print(f"  p99 of accepted: {1000 * accepted[int(0.99 * len(accepted))]:.0f} ms")
            print(f"  resident before and after: {before:.0f}, {resident_mb(pid):.0f} MB")
            told = from_another_process(
                address=address,
                path="/v1/predict",
                headers={"Content-Type": "image/jpeg"},
                bodies=photos,
                connections=1,
                seconds=2.0,
            )
            print(f"  the 2 s behind it, one after the other: {set(told['statuses'])}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(load(json.loads(sys.argv[2]))))
    else:
        main()
