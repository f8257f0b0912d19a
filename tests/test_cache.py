"""The cache: the network runs once, and never is anything else's or half an entry believed."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import draw_photo, write_checkpoint

from ltdeploy import cache as cache_module
from ltdeploy.cache import cached_logits
from ltdeploy.datasets import FolderDataset
from ltdeploy.errors import DataError, UsageError
from ltdeploy.files import default_cache
from ltdeploy.inference import Logits
from ltdeploy.models.classifier import Classifier, LoadOptions, load_checkpoint


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Classifier:
    return load_checkpoint(checkpoint)  # type: ignore[return-value]


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the photographs that may be changed."""
    return Path(shutil.copytree(photo_folder, tmp_path / "val"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by one with every run of a network."""
    made: list[str] = []
    build = cache_module.reference_engine

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append("run")
        return build(*arguments, **options)

    monkeypatch.setattr(cache_module, "reference_engine", counted)
    return made


def look(
    model: Any, folder: Path, cache: Path | None, warn: Callable[[str], None] | None = None
) -> Logits:
    dataset = FolderDataset(folder)
    labels = np.arange(10, 10 + len(dataset))  # whatever they are, they are not in the cache
    return cached_logits(model, dataset, labels, cache=cache, warn=warn or refuse)


def refuse(text: str) -> None:
    raise AssertionError(text)


def entry_of(cache: Path) -> Path:
    (entry,) = cache.iterdir()
    return entry


def assert_same(one: Logits, other: Logits) -> None:
    for name in ("logits", "labels", "indices", "hashes", "features"):
        first, second = getattr(one, name), getattr(other, name)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    assert one.unreadable == other.unreadable


def test_the_second_run_does_not_run_the_network(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    first = look(model, photos, tmp_path / "cache")
    assert first.features is not None
    assert first.features.shape == (6, 64)
    assert runs == ["run"]
    again = look(model, photos, tmp_path / "cache")
    assert runs == ["run"]
    assert_same(first, again)
    # Nor does a folder of another name with the same images, or another process.
    moved = photos.rename(tmp_path / "validation")
    assert_same(first, look(model, moved, tmp_path / "cache"))
    assert runs == ["run"]


def test_labels_are_those_of_now(model: Classifier, photos: Path, tmp_path: Path) -> None:
    look(model, photos, tmp_path / "cache")
    dataset = FolderDataset(photos)
    found = cached_logits(model, dataset, np.arange(6)[::-1], cache=tmp_path / "cache")
    assert found.labels.tolist() == [5, 4, 3, 2, 1, 0]


def test_without_a_cache_nothing_is_kept(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    look(model, photos, None)
    look(model, photos, None)
    assert len(runs) == 2
    assert sorted(tmp_path.rglob("*")) == before


def truncate(entry: Path) -> None:
    path = entry / "logits.npy"
    path.write_bytes(path.read_bytes()[:-7])


def empty(entry: Path) -> None:
    (entry / "features.npy").write_bytes(b"")


def flip(entry: Path) -> None:
    content = bytearray((entry / "logits.npy").read_bytes())
    content[-3] ^= 1
    (entry / "logits.npy").write_bytes(bytes(content))


def lose(entry: Path) -> None:
    (entry / "indices.npy").unlink()


def exchange(entry: Path) -> None:
    """Arrays of another entry, whole in themselves."""
    logits = np.load(entry / "logits.npy")
    np.save(entry / "logits.npy", logits[::-1])


def forget(entry: Path) -> None:
    (entry / "entry.json").unlink()


def told(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        path = entry / "entry.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def garble(entry: Path) -> None:
    (entry / "entry.json").write_bytes(b'{"schema": 1, "fi\xff')


def rewrite(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Exchange an array and its digest: as whole as an entry can be made by hand."""

    def damage(entry: Path) -> None:
        path = entry / f"{name}.npy"
        np.save(path, change(np.load(path)))
        content = json.loads((entry / "entry.json").read_text())
        content["files"][name] = cache_module._file_digest(path)
        (entry / "entry.json").write_text(json.dumps(content))

    return damage


def nest(entry: Path) -> None:
    (entry / "entry.json").write_text("[" * 100_000)


def without_features(content: dict[str, Any]) -> dict[str, Any]:
    kept = {name: digest for name, digest in content["files"].items() if name != "features"}
    return {**content, "files": kept}


DAMAGES = {
    "truncated": truncate,
    "empty": empty,
    "flipped bit": flip,
    "lost file": lose,
    "other arrays": exchange,
    "no entry.json": forget,
    "no json": garble,
    "a list": told(lambda content: []),
    "files in a list": told(lambda content: {**content, "files": []}),
    "no files": told(lambda content: {**content, "files": {}}),
    "no unreadable": told(lambda content: {**content, "unreadable": None}),
    "no features": told(without_features),
    "deep json": nest,
    "indices too large": rewrite("indices", lambda indices: indices + 100),
    "indices below zero": rewrite("indices", lambda indices: indices - 3),
    "indices that are floats": rewrite("indices", lambda indices: indices + 0.5),
    "a row less": rewrite("logits", lambda logits: logits[1:]),
    "another digest": told(
        lambda content: {**content, "files": {**content["files"], "logits": "0" * 128}}
    ),
    "a path": told(
        lambda content: {**content, "files": {**content["files"], "../../secret": "0" * 128}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_entries_are_noticed_and_made_anew(
    damage: Callable[[Path], None],
    model: Classifier,
    photos: Path,
    tmp_path: Path,
    runs: list[str],
) -> None:
    cache = tmp_path / "cache"
    first = look(model, photos, cache)
    damage(entry_of(cache))
    heard: list[str] = []
    assert_same(first, look(model, photos, cache, heard.append))
    assert len(runs) == 2
    (text,) = heard
    assert str(entry_of(cache)) in text
    assert "damaged" in text
    assert "made anew" in text
    assert_same(first, look(model, photos, cache))  # whole again, and not a word
    assert len(runs) == 2


def test_a_link_in_an_entrys_place_is_removed_and_what_it_points_to_stays(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    first = look(model, photos, cache)
    entry = entry_of(cache)
    shutil.move(entry, elsewhere)
    entry.symlink_to(elsewhere)
    assert_same(first, look(model, photos, cache))  # a link to what is whole is as good
    assert runs == ["run"]
    truncate(elsewhere)
    for damaged in (elsewhere, tmp_path / "nowhere"):
        if not entry.is_symlink():
            shutil.rmtree(entry)
            entry.symlink_to(damaged)
        heard: list[str] = []
        assert_same(first, look(model, photos, cache, heard.append))
        assert "made anew" in heard[0]
        assert not entry.is_symlink()
        assert_same(first, look(model, photos, cache))
    assert len(runs) == 3
    assert elsewhere.is_dir()


def test_a_file_in_an_entrys_place_is_removed(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    first = look(model, photos, tmp_path / "cache")
    entry = entry_of(tmp_path / "cache")
    shutil.rmtree(entry)
    entry.write_text("in the way")
    heard: list[str] = []
    look(model, photos, tmp_path / "cache", heard.append)
    assert len(heard) == 1
    assert_same(first, look(model, photos, tmp_path / "cache"))
    assert len(runs) == 2


@pytest.mark.parametrize("package", ["ltdeploy", "PIL", "torch", "onnxruntime"])
def test_another_version_of_what_makes_logits_is_another_entry(
    package: str,
    model: Classifier,
    photos: Path,
    tmp_path: Path,
    runs: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look(model, photos, tmp_path / "cache")
    if package == "ltdeploy":
        monkeypatch.setattr(cache_module, "__version__", "99.0")
    else:
        known = cache_module.installed_version
        monkeypatch.setattr(
            cache_module,
            "installed_version",
            lambda asked: "99.0" if asked == package else known(asked),
        )
    look(model, photos, tmp_path / "cache")
    look(model, photos, tmp_path / "cache")
    assert len(runs) == 2


def test_a_model_that_tells_no_features_is_cached_without_them(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    closed = replace(model, head=replace(model.head, foldable=False))
    first = look(closed, photos, tmp_path / "cache")
    assert first.features is None
    again = look(closed, photos, tmp_path / "cache")
    assert again.features is None
    np.testing.assert_array_equal(first.logits, again.logits)
    assert runs == ["run"]


def test_half_written_leftovers_are_passed_over_and_removed_when_old(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    cache = tmp_path / "cache"
    for name in ("old", "young"):
        (cache / f".partial-{name}").mkdir(parents=True)
        (cache / f".partial-{name}" / "logits.npy").write_bytes(b"half")
    (cache / "of the user").mkdir()
    yesterday = time.time() - 25 * 3600
    for name in (".partial-old", "of the user"):
        os.utime(cache / name, (yesterday, yesterday))
    look(model, photos, cache)
    assert runs == ["run"]
    left = {path.name for path in cache.iterdir()}
    assert len(left) == 3
    assert {".partial-young", "of the user"} < left
    look(model, photos, cache)
    assert runs == ["run"]


def test_a_full_disk_leaves_nothing_behind(
    model: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    save = np.save

    def save_some(path: Path, *arguments: Any, **options: Any) -> None:
        saved.append(path.name)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        save(path, *arguments, **options)

    monkeypatch.setattr(cache_module.np, "save", save_some)
    heard: list[str] = []
    found = look(model, photos, tmp_path / "cache", heard.append)
    assert len(found.logits) == 6
    assert heard == [
        f"the logits could not be kept in {tmp_path / 'cache'} (No space left on device); the next "
        "run makes them anew"
    ]
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("place", ["file/cache", "x" * 300, "x" * 300 + "/cache"])
def test_a_folder_that_cannot_be_written_is_a_warning(
    place: str, model: Classifier, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    heard: list[str] = []
    found = look(model, photos, tmp_path / place, heard.append)
    assert len(found.logits) == 6
    assert len(heard) == 1
    assert "could not be kept" in heard[0]


def test_a_file_is_no_cache(model: Classifier, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UsageError, match="a file; expected a folder, or --no-cache"):
        look(model, photos, tmp_path / "cache")


def test_what_logits_follow_from_makes_another_entry(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    cache = tmp_path / "cache"
    other = load_checkpoint(write_checkpoint(tmp_path / "other.pt", seed=1))
    assert isinstance(other, Classifier)
    size = replace(model.preprocessing, height_px=24, width_px=24)
    mean = replace(model.preprocessing, mean=(0.1, 0.2, 0.3))
    named = replace(model, source=replace(model.source, path=tmp_path / "renamed.pt"))
    look(model, photos, cache)
    for changed in (
        other,
        replace(model, preprocessing=size),
        replace(model, preprocessing=mean),
        replace(model, head=replace(model.head, scale=2.0)),
        replace(model, arch="other"),
    ):
        known = len(runs)
        look(changed, photos, cache)
        assert len(runs) == known + 1
    known = len(runs)
    look(named, photos, cache)  # negative control: neither name nor place of the file matters
    assert len(runs) == known


def test_another_image_makes_another_entry(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    cache = tmp_path / "cache"
    first = look(model, photos, cache)
    path = sorted((photos / "cat").iterdir())[1]
    before, modified = path.read_bytes(), path.stat()
    draw_photo(99).save(path, quality=95)
    os.utime(path, (modified.st_atime, modified.st_mtime))
    changed = look(model, photos, cache)
    assert len(runs) == 2
    assert [i for i in range(6) if first.hashes[i] != changed.hashes[i]] == [1]
    path.rename(photos / "dog" / path.name.replace("001", "009"))  # the order counts
    look(model, photos, cache)
    (photos / "dog" / "009.jpg").unlink()
    look(model, photos, cache)
    assert len(runs) == 4
    path.write_bytes(before)
    assert_same(look(model, photos, cache), first)
    assert len(runs) == 4


def test_unreadable_images_are_named_from_the_cache_too(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    broken = sorted((photos / "cat").iterdir())[2]
    broken.write_bytes(b"no image")
    first = look(model, photos, tmp_path / "cache")
    again = look(model, photos, tmp_path / "cache")
    assert runs == ["run"]
    assert_same(first, again)
    ((image, reason),) = again.unreadable
    assert image == f"val/cat/{broken.name}"
    assert reason
    assert again.indices.tolist() == [0, 1, 3, 4, 5]
    assert again.labels.tolist() == [10, 11, 13, 14, 15]


def test_nothing_is_kept_of_a_data_set_without_any_readable_image(
    model: Classifier, photos: Path, tmp_path: Path
) -> None:
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the 6 images"):
        look(model, photos, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_vanishes_is_another_entry(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    dataset = FolderDataset(photos)
    labels = np.zeros(6, dtype=np.int64)
    cached_logits(model, dataset, labels, cache=tmp_path / "cache")
    Path(dataset.source(0)).unlink()
    found = cached_logits(model, dataset, labels, cache=tmp_path / "cache")
    assert len(runs) == 2
    assert found.unreadable[0][0] == "val/cat/000.jpg"


def test_two_that_write_at_once_leave_one_whole_entry(
    model: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=60)
    write = cache_module._write

    def write_together(entry: Path, made: Logits) -> None:
        together.wait()
        write(entry, made)

    monkeypatch.setattr(cache_module, "_write", write_together)
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: look(model, photos, cache), range(2))
    assert_same(first, second)
    assert not entry_of(cache).name.startswith(".partial")
    assert_same(first, look(model, photos, cache))


def test_onnx_files_are_cached_too(
    model: Classifier, photos: Path, tmp_path: Path, runs: list[str]
) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            helper.make_node("MatMul", ["features", "w"], ["z"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "small.onnx"
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    options = LoadOptions(classes=model.classes, preprocessing=model.preprocessing)
    foreign = load_checkpoint(path, options=options)
    first = look(foreign, photos, tmp_path / "cache")
    assert first.features is not None
    np.testing.assert_allclose(first.features @ weight, first.logits, rtol=1e-5)
    assert_same(first, look(foreign, photos, tmp_path / "cache"))
    assert runs == ["run"]
    ours = look(model, photos, tmp_path / "cache")
    assert len(runs) == 2
    np.testing.assert_array_equal(first.hashes, ours.hashes)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path / "told"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "base"))
    assert default_cache() == tmp_path / "told"
    monkeypatch.delenv("LTDEPLOY_CACHE")
    assert default_cache() == tmp_path / "base" / "ltdeploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "ltdeploy"
