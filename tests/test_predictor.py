"""The public way in: a bundle, photographs, typed answers."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ltdeploy
from ltdeploy.arrays import softmax
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.errors import BundleError, EngineError, ImageError, UsageError
from ltdeploy.images import load_prepared


@pytest.fixture(scope="module")
def model(bundle_path: Path) -> ltdeploy.Predictor:
    return ltdeploy.load(bundle_path)


@pytest.fixture(scope="module")
def photos(photo_folder: Path) -> list[Path]:
    return sorted(photo_folder.rglob("*.jpg"))


def test_path_bytes_array_and_image_give_one_answer(
    model: ltdeploy.Predictor, photos: list[Path]
) -> None:
    image = Image.open(photos[0])
    answers = [
        model.predict(photos[0]),
        model.predict(str(photos[0])),
        model.predict(photos[0].read_bytes()),
        model.predict(np.asarray(image.convert("RGB"))),
        model.predict(image),
    ]
    assert len({answer.top for answer in answers}) == 1
    assert answers[0].input == str(photos[0])


def test_answers_are_the_graphs_softmax(model: ltdeploy.Predictor, photos: list[Path]) -> None:
    ready = load_prepared(photos[0], model.preprocessing)[None]
    expected = softmax(model.logits(ready))[0]
    answer = model(photos[0], top_k=99)
    assert [score.label for score in answer.top] == np.argsort(-expected).tolist()
    assert sum(score.prob for score in answer.top) == pytest.approx(1, abs=1e-5)
    best = answer.best
    assert (best.name, best.group) == (
        model.classes.names[best.label],
        model.classes.groups[best.label],
    )
    assert best.train_count == model.classes.counts[best.label]


def test_lists_and_iterators_answer_in_order(model: ltdeploy.Predictor, photos: list[Path]) -> None:
    many = [photos[i % len(photos)] for i in range(40)]
    listed = model.predict(many)
    assert [answer.input for answer in listed] == [str(path) for path in many]
    streamed = list(model.predict(iter(many)))
    assert streamed == listed
    one_by_one = [model.predict(path) for path in many]
    assert [a.best.label for a in one_by_one] == [a.best.label for a in listed]


def test_an_endless_iterator_is_answered(model: ltdeploy.Predictor, photos: list[Path]) -> None:
    answers = model.predict(itertools.cycle(photos))
    assert len(list(itertools.islice(answers, 50))) == 50


def test_an_empty_list_gives_an_empty_list(model: ltdeploy.Predictor) -> None:
    assert model.predict([]) == []


def test_a_bad_image_is_an_error_alone_and_a_line_among_others(
    model: ltdeploy.Predictor, photos: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        model.predict(bad)
    answers = model.predict([photos[0], bad, photos[1]])
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert "bad.jpg" in str(answers[1].error)
    assert answers[1].to_dict().keys() == {"input", "error"}
    with pytest.raises(ImageError):
        _ = answers[1].best


def test_json_lines_have_the_documented_keys(model: ltdeploy.Predictor, photos: list[Path]) -> None:
    line = json.loads(json.dumps(model(photos[0]).to_dict()))
    assert line.keys() == {"input", "top"}
    assert line["top"][0].keys() == {"label", "name", "prob", "group"}


def test_threads_share_one_predictor(model: ltdeploy.Predictor, photos: list[Path]) -> None:
    expected = [model.predict(path).top for path in photos]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(model.predict, photos * 10))
    for index, answer in enumerate(answers):
        wanted = expected[index % len(photos)]
        assert [s.label for s in answer.top] == [s.label for s in wanted]


def test_ready_inputs_are_answered_as_they_are(
    model: ltdeploy.Predictor, photos: list[Path]
) -> None:
    ready = np.stack([load_prepared(path, model.preprocessing) for path in photos])
    answers = model.classify(ready, top_k=3)
    assert [answer.input for answer in answers] == [f"#{place}" for place in range(len(photos))]
    for answer, expected in zip(answers, model.predict(photos, top_k=3), strict=True):
        assert [s.label for s in answer.top] == [s.label for s in expected.top]
        assert [s.prob for s in answer.top] == pytest.approx([s.prob for s in expected.top])
    assert model.classify(ready[:0]) == []
    with pytest.raises(UsageError, match="top_k is 0"):
        model.classify(ready, top_k=0)


def test_a_stream_gets_its_images_in_the_decoding_threads(
    model: ltdeploy.Predictor, photos: list[Path]
) -> None:
    fetched: list[str] = []

    def fetch() -> bytes:
        fetched.append(threading.current_thread().name)
        return photos[0].read_bytes()

    answers = list(model.stream([("first", fetch), ("second", photos[1]), ("third", fetch)]))
    assert [answer.input for answer in answers] == ["first", "second", "third"]
    assert answers[0].top == answers[2].top
    assert all(name.startswith("ltdeploy-decode") for name in fetched)
    assert len(fetched) == 2


class LostDevice(OnnxRuntimeEngine):
    """An engine that is lost in its second batch."""

    runs = 0

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.runs += 1
        if self.runs == 2:
            raise EngineError("The device is lost.")
        return super().run(feeds)


def test_an_engine_that_is_lost_names_the_batch(bundle_path: Path, photos: list[Path]) -> None:
    bundle = ltdeploy.open_bundle(bundle_path)
    named = [(f"image {number}", photos[0]) for number in range(600)]
    with ltdeploy.Predictor(bundle, LostDevice(bundle.graph_path)) as model:
        answers = model.stream(iter(named))
        done = list(itertools.islice(answers, 256))
        assert [answer.input for answer in done] == [f"image {number}" for number in range(256)]
        with pytest.raises(EngineError, match=r"lost\. .* 256 images, from image 256 to image 511"):
            next(answers)


def test_a_closed_predictor_says_so(bundle_path: Path, photos: list[Path]) -> None:
    with ltdeploy.load(bundle_path) as model:
        assert model(photos[0]).top
    model.close()
    with pytest.raises(UsageError, match="load the bundle again"):
        model(photos[0])


@pytest.mark.parametrize("images", [3, None, {"a": 1}, np.zeros((2, 2), dtype=complex)])
def test_what_is_no_image_is_refused(model: ltdeploy.Predictor, images: object) -> None:
    with pytest.raises((UsageError, ImageError)):
        model.predict(images)  # type: ignore[call-overload]


def test_top_k_below_one_is_refused(model: ltdeploy.Predictor, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match="top_k is 0"):
        model.predict(photos[0], top_k=0)


def test_an_unknown_engine_is_no_other_engine(bundle_path: Path) -> None:
    with pytest.raises(EngineError, match="Did you mean 'onnxruntime'"):
        ltdeploy.load(bundle_path, engine="onnxruntim")


def test_golden_samples_are_replayed(bundle_path: Path, tmp_path: Path) -> None:
    ltdeploy.load(bundle_path, verify=True).close()
    # Negative control: a bundle whose golden answers are another model's.
    from ltdeploy.bundle import open_bundle, write_bundle
    from ltdeploy.export.entries import npz

    opened = open_bundle(bundle_path)
    golden = opened.golden()
    files = {name: (bundle_path / name).read_bytes() for name in opened.manifest.files}
    files["golden.npz"] = npz(images=golden.images, logits=golden.logits + 1)
    other = write_bundle(tmp_path / "other.ltd", opened.manifest, files)
    with pytest.raises(BundleError, match="golden samples"):
        ltdeploy.load(other.path, verify=True)
    shutil.rmtree(other.path)


def test_predicting_imports_no_torch_and_sends_nothing(
    bundle_path: Path, photos: list[Path]
) -> None:
    script = """
import socket, sys
class Refused(Exception): pass
def refuse(*args, **kwargs): raise Refused("a socket was opened")
socket.socket.connect = refuse
socket.create_connection = refuse
import ltdeploy
print(ltdeploy.load(sys.argv[1])(sys.argv[2]).best.label)
assert "torch" not in sys.modules, "torch was imported"
try:
    socket.create_connection(("127.0.0.1", 9))
except Refused:
    print("guarded")
"""
    command = [sys.executable, "-c", script, str(bundle_path), str(photos[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "guarded"


def test_what_is_known_of_one_request_moves_its_answer(
    model: ltdeploy.Predictor, photos: list[Path]
) -> None:
    """A log prior is added to the logits: of this call alone, and a constant changes nothing."""
    classes = len(model.classes)
    plain = model(photos[0], top_k=classes)
    logits = model.logits(load_prepared(photos[0], model.preprocessing)[None])
    prior = -1.25 * logits[0]  # turns the order round
    expected = softmax(logits + prior)[0]
    moved = model(photos[0], top_k=classes, log_prior=prior)
    assert (
        [one.label for one in moved.top]
        == np.argsort(-expected).tolist()
        != [one.label for one in plain.top]
    )
    np.testing.assert_allclose([one.prob for one in moved.top], -np.sort(-expected), rtol=1e-5)
    same = model([photos[0]], top_k=classes, log_prior=[7.0] * classes)[0]
    for one, other in zip(same.top, plain.top, strict=True):
        assert one.prob == pytest.approx(other.prob, rel=1e-4)
    assert model(photos[0], top_k=classes) == plain


@pytest.mark.parametrize("prior", [[0.0], [[0.0]], "x", [np.nan] * 6, [np.inf] * 6, [None] * 6])
def test_a_prior_that_does_not_fit_is_refused(
    model: ltdeploy.Predictor, photos: list[Path], prior: Any
) -> None:
    with pytest.raises(UsageError, match=r"log_prior .*expected 6 "):
        model(photos[0], log_prior=prior)


def test_a_predictor_is_warmed_up(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = OnnxRuntimeEngine.run

    def counted(self: OnnxRuntimeEngine, feeds: Mapping[str, Any]) -> Any:
        seen.append(len(feeds["images"]))
        return run(self, feeds)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", counted)
    with ltdeploy.load(bundle_path, engine="onnxruntime") as opened:
        opened.warm_up((1, 3))
    assert seen == [1, 3]


def test_an_image_that_is_no_image_breaks_nothing(
    bundle_path: Path, photos: list[Path], tmp_path: Path
) -> None:
    """A batch in which nothing is readable never comes to an engine; on each that is here."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photos[0].read_bytes()[:50])
    for engine in ("onnxruntime", "openvino"):
        with ltdeploy.load(bundle_path, engine=engine) as opened:
            before = opened(photos[0])
            for _ in range(2):
                with pytest.raises(ImageError, match=r"bad\.jpg"):
                    opened(bad)
            answers = opened([bad] * 80 + [photos[0]])
            assert [one.error is None for one in answers] == [False] * 80 + [True]
            size = (opened.preprocessing.height_px, opened.preprocessing.width_px, 3)
            assert opened.logits(np.empty((0, *size), np.uint8)).shape == (0, 6)
            assert opened(photos[0]) == before
