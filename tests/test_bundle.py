"""Bundles: written whole or not at all, opened only when every byte is as declared."""

from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltdeploy import bundle as bundle_module
from ltdeploy.bundle import attach, open_bundle, write_bundle
from ltdeploy.errors import BundleError


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy.ltd"
    shutil.copytree(bundle_path, target)
    return target


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_opens_what_was_written(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    assert bundle.name == "ckpt"
    assert bundle.classes.groups[0] == "many"
    assert bundle.classes.groups[-1] == "few"
    assert bundle.preprocessing.height_px == 32
    golden = bundle.golden()
    assert golden.images.shape == (8, 32, 32, 3)
    assert golden.images.dtype == np.uint8
    assert golden.logits.shape == (8, 6)
    assert len(bundle.selection_hashes()) == 0
    assert set(bundle.manifest.files) == {"model.onnx", "golden.npz"}


def test_holds_no_pickle_and_no_absolute_path(bundle_path: Path) -> None:
    text = (bundle_path / "manifest.json").read_text()
    assert str(bundle_path.parent) not in text
    for file in bundle_path.iterdir():
        assert file.suffix in {".json", ".onnx", ".npz", ".html"}


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_changed_byte_is_found(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"changed after it was written: {name}"):
        open_bundle(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "golden.npz").unlink()
    with pytest.raises(BundleError, match=r"incomplete: golden\.npz is missing"):
        open_bundle(copy)


def test_a_link_out_of_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (copy / "model.onnx").rename(outside)
    (copy / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="link that leaves it"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "..\\outside"])
def test_a_path_out_of_the_bundle_is_refused(copy: Path, name: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["files"][name] = content["files"]["golden.npz"]

    edit_manifest(copy, change)
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        open_bundle(copy)


def test_a_newer_schema_names_the_version_that_reads_it(copy: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["schema"] = 7
        content["versions"]["ltdeploy"] = "9.1"

    edit_manifest(copy, change)
    with pytest.raises(BundleError, match=r"schema 7, written by ltdeploy 9\.1"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda m: m.pop("classes"), "classes"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m["classes"][0].update(train_count=-1), r"classes\.0\.train_count"),
        (lambda m: m["classes"][0].update(name="species 1"), "stands twice"),
        (lambda m: m["classes"][0].update(group="few"), "groups contradict"),
        (lambda m: m["fix"]["steps"][0].update(shift=[0.0]), "needs A of shape"),
        (lambda m: m["fix"]["steps"][0]["scale"].__setitem__(0, None), r"fix\.steps\.0\..*scale"),
        (lambda m: m["fix"].update(steps=[]), r"fix\.steps"),
        (lambda m: m["fix"]["steps"][0].update(kind="neural"), r"fix\.steps\.0"),
        (lambda m: m["fix"].update(steps=[{"kind": "log_softmax", "classes": 5}]), "5 of 6"),
        (lambda m: m["preprocessing"].update(height_px=0), "height_px"),
        (lambda m: m["graphs"][0].update(file="other.onnx"), "not among the hashed files"),
        (lambda m: m.update(graphs=[]), "graphs"),
        (lambda m: m.update(schema=4, versions=[]), "in a newer version"),
    ],
)
def test_an_invalid_manifest_says_where(
    copy: Path, change: Callable[[dict[str, Any]], None], where: str
) -> None:
    edit_manifest(copy, change)
    with pytest.raises(BundleError, match=where):
        open_bundle(copy)


def test_half_a_manifest_is_damage(copy: Path) -> None:
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(copy)


def test_what_is_no_bundle_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="ltdeploy export CKPT"):
        open_bundle(tmp_path / "absent.ltd")
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)


def rewrite(source: Path, target: Path, **files: bytes) -> None:
    """Write the bundle ``source`` again at ``target``."""
    opened = open_bundle(source)
    content = {name: (source / name).read_bytes() for name in opened.manifest.files}
    write_bundle(target, opened.manifest, content | files)


def test_replaces_an_older_bundle(bundle_path: Path, copy: Path) -> None:
    attach(open_bundle(copy), {"report.html": b"old"})
    rewrite(bundle_path, copy)
    assert not (copy / "report.html").exists()
    assert open_bundle(copy).name == "ckpt"


def test_leaves_what_is_no_bundle_alone(bundle_path: Path, tmp_path: Path) -> None:
    taken = tmp_path / "mine.ltd"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="left alone"):
        rewrite(bundle_path, taken)
    assert (taken / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("manifest", ['{"name": "my web app"}', "[]", "{"])
def test_leaves_another_programs_manifest_alone(
    bundle_path: Path, tmp_path: Path, manifest: str
) -> None:
    taken = tmp_path / "app.ltd"
    taken.mkdir()
    (taken / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match="left alone"):
        rewrite(bundle_path, taken)
    assert (taken / "manifest.json").read_text() == manifest


def test_leaves_a_bundle_that_holds_somebodys_file_alone(bundle_path: Path, copy: Path) -> None:
    (copy / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match=r"'thesis\.txt', which no bundle does"):
        rewrite(bundle_path, copy)
    assert (copy / "thesis.txt").exists()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_leaves_the_old_bundle(
    bundle_path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    written = bundle_module._write_synced
    calls = 0

    def full(file: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            file.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written(file, content)

    monkeypatch.setattr(bundle_module, "_write_synced", full)
    with pytest.raises(BundleError, match=r"No space left on device\. Nothing was changed"):
        rewrite(bundle_path, copy)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert [entry.name for entry in copy.parent.iterdir()] == [copy.name]


def test_a_file_size_limit_of_the_system_leaves_the_old_bundle(
    bundle_path: Path, copy: Path
) -> None:
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    script = """
import resource, sys
from pathlib import Path
from ltdeploy.bundle import open_bundle, write_bundle
from ltdeploy.errors import BundleError
source, target = Path(sys.argv[1]), Path(sys.argv[2])
opened = open_bundle(source)
files = {name: (source / name).read_bytes() for name in opened.manifest.files}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_bundle(target, opened.manifest, files)
except BundleError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(bundle_path), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large. Nothing was changed" in done.stdout
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert [entry.name for entry in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("after", [1, 2])
def test_an_interruption_while_renaming_keeps_a_bundle(
    bundle_path: Path,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
    after: int,
) -> None:
    rename = Path.rename
    renamed = 0

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal renamed
        done = rename(self, target)
        renamed += 1
        if renamed == after:
            raise stop
        return done

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises((KeyboardInterrupt, BundleError)):
        rewrite(bundle_path, copy)
    monkeypatch.undo()
    assert open_bundle(copy).name == "ckpt"
    assert [entry.name for entry in copy.parent.iterdir()] == [copy.name]


def test_attaches_a_report_and_nothing_else(copy: Path) -> None:
    sealed = (copy / "manifest.json").read_bytes()
    opened = open_bundle(copy)
    attach(opened, {"report.html": b"<p>one"})
    attach(opened, {"report.html": b"<p>two", "baseline.json": b"{}"})
    assert (copy / "report.html").read_bytes() == b"<p>two"
    assert (copy / "manifest.json").read_bytes() == sealed
    open_bundle(copy)
    with pytest.raises(BundleError, match="may change"):
        attach(opened, {"model.onnx": b""})


def test_a_report_of_an_older_export_harms_no_newer_one(bundle_path: Path, copy: Path) -> None:
    before = open_bundle(copy)
    rewrite(bundle_path, copy, **{"golden.npz": (bundle_path / "golden.npz").read_bytes()})
    attach(before, {"report.html": b"late"})
    assert open_bundle(copy).name == "ckpt"


def test_a_file_that_nobody_listed_is_refused(copy: Path) -> None:
    (copy / ".DS_Store").write_bytes(b"a desktop's")
    open_bundle(copy)
    (copy / "weights.bin").write_bytes(b"external data")
    with pytest.raises(BundleError, match=r"'weights\.bin', which its manifest does not list"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "content", [b"no archive", b"PK\x05\x06" + b"\0" * 18, b"PK\x03\x04 cut short"]
)
def test_unreadable_golden_samples_are_damage(
    bundle_path: Path, copy: Path, content: bytes
) -> None:
    rewrite(bundle_path, copy, **{"golden.npz": content})
    with pytest.raises(BundleError, match=r"golden\.npz is unreadable"):
        open_bundle(copy).golden()


def test_golden_samples_of_another_model_are_damage(bundle_path: Path, copy: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((2, 8, 8, 3), np.uint8), logits=np.zeros((2, 6), np.float32))
    rewrite(bundle_path, copy, **{"golden.npz": buffer.getvalue()})
    with pytest.raises(BundleError, match=r"golden\.npz is unreadable"):
        open_bundle(copy).golden()
