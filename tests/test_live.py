"""A model that is exchanged while it answers."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_detector_samples import write_bundle
from samples import draw_photo

from ltdeploy import bundle as bundle_files
from ltdeploy import loading
from ltdeploy.bundle import open_bundle
from ltdeploy.errors import BundleError, UsageError
from ltdeploy.export.entries import npz
from ltdeploy.live import LiveModel


def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    draw_photo(3).save(path)
    return path


class Opened:
    """Which models were opened, and closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[Any] = []
        self.closed: list[Any] = []
        original = loading.open_model

        def opened(*arguments: Any, **options: Any) -> Any:
            model = original(*arguments, **options)
            close = model.close
            self.models.append(model)
            monkeypatch.setattr(model, "close", lambda: (self.closed.append(model), close()))
            return model

        monkeypatch.setattr(loading, "open_model", opened)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


def test_an_exchange_drops_no_call(bundle_path: Path, tmp_path: Path, opened: Opened) -> None:
    picture, asked = photo(tmp_path), threading.Event()
    answers: list[str] = []

    def ask(model: LiveModel) -> None:
        while not asked.is_set():
            answers.append(model(picture).best.name)  # type: ignore[union-attr]

    with LiveModel(bundle_path, engine="onnxruntime") as model, ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(ask, model) for _ in range(3)]
        for _ in range(3):
            model.exchange(bundle_path)
        asked.set()
        for caller in callers:
            caller.result()  # raises what the caller met
    assert len(set(answers)) == 1
    assert len(opened.models) == 4
    assert opened.closed == opened.models


def test_who_holds_a_model_keeps_it(bundle_path: Path, opened: Opened) -> None:
    live = LiveModel(bundle_path, engine="onnxruntime")
    with live.leased() as held:
        live.exchange(bundle_path)
        live.close()
        live.close()
        assert opened.closed == opened.models[1:]  # the second had nobody left
        held.warm_up((2,))
    assert set(map(id, opened.closed)) == set(map(id, opened.models))
    with pytest.raises(UsageError, match="was closed"):
        live("photo.png")
    with pytest.raises(UsageError, match="was closed"):
        live.exchange(bundle_path)
    assert len(opened.closed) == len(opened.models) == 3


def test_a_bad_bundle_is_refused_and_the_old_one_stays(
    bundle_path: Path, tmp_path: Path, opened: Opened
) -> None:
    bundle = open_bundle(bundle_path)
    golden = bundle.golden()
    files = {name: (bundle_path / name).read_bytes() for name in bundle.manifest.files}
    files["golden.npz"] = npz(images=golden.images, logits=golden.logits + 1)
    other = bundle_files.write_bundle(tmp_path / "other.ltd", bundle.manifest, files)
    bad = Path(shutil.copytree(bundle_path, tmp_path / "bad.ltd"))
    graph = bad / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with LiveModel(bundle_path, engine="onnxruntime") as live:
        with pytest.raises(BundleError, match=r"model\.onnx"):
            live.exchange(bad)
        with pytest.raises(BundleError, match="golden samples"):
            live.exchange(other.path)
        assert opened.closed == opened.models[1:]  # what was opened and refused
        assert live(photo(tmp_path)).best.prob > 0  # type: ignore[union-attr]


def test_detectors_too(tmp_path: Path) -> None:
    with LiveModel(write_bundle(tmp_path), engine="onnxruntime") as live:
        answer = live(np.zeros((60, 80, 3), np.uint8), min_score=0.0)
        assert answer.to_dict()["boxes"]


def test_a_model_of_another_task_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    boxes = write_bundle(tmp_path)
    with LiveModel(bundle_path, engine="onnxruntime") as live:
        with pytest.raises(BundleError, match="is a detector, and the present model is not"):
            live.exchange(boxes)
        assert live(photo(tmp_path)).best.prob > 0  # type: ignore[union-attr]
        with pytest.raises(UsageError, match="for a stream, use leased"):
            live(iter([photo(tmp_path)]))  # type: ignore[arg-type]
