"""Rows survive kills, errors and Ctrl-C; none is lost, none comes twice."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from samples import draw_photo

from ltdeploy.bulk import Inputs, Written, open_inputs, predict_to_file
from ltdeploy.bulk import journal as journals
from ltdeploy.bulk.journal import Journal, Run
from ltdeploy.bundle import open_bundle
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.errors import DataError, EngineError, UsageError

ENGINE = "onnxruntime"
NAME = "onnxruntime-cpu"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return 600 inputs, three batches: thirty pictures again and again, one of them broken."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(30):
        draw_photo(number, 32, 32).save(f"photos/{number:02d}.png")
    Path("photos/07.png").write_bytes(b"")
    return [f"photos/{number % 30:02d}.png" for number in range(600)]


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def run(bundle: Path, photos: list[str], out: str = "out.jsonl", **options: Any) -> Written:
    return predict_to_file(bundle, open_inputs(photos), out, engine=ENGINE, **options)


class Broken(OnnxRuntimeEngine):
    """An engine that is lost in its third batch, as a device can be."""

    runs = 0

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.runs += 1
        if self.runs == 3:
            raise EngineError("The device is lost.")
        return super().run(feeds)


@pytest.fixture
def lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ltdeploy.loading.open_engine", lambda bundle, *_, **__: Broken(bundle.graph_path)
    )


def test_one_row_per_input_in_order(bundle_path: Path, photos: list[str]) -> None:
    warned: list[str] = []
    assert run(bundle_path, photos, warn=warned.append) == Written(600, 20, 0, NAME)
    rows = rows_of("out.jsonl")
    assert [row["input"] for row in rows] == photos
    assert all(("error" in row) == (row["input"] == "photos/07.png") for row in rows)
    assert len(rows[0]["top"]) == 5
    assert len(warned) == 20
    assert not Path("out.jsonl.partial").exists()


def test_parquet_holds_the_same(bundle_path: Path, photos: list[str]) -> None:
    run(bundle_path, photos[:60], top_k=2)
    run(bundle_path, photos[:60], "out.parquet", top_k=2)
    found = pq.read_table("out.parquet").to_pylist()
    for row, line in zip(found, rows_of("out.jsonl"), strict=True):
        assert row["input"] == line["input"]
        assert row["error"] == line.get("error")
        if row["error"] is None:
            assert [s["label"] for s in row["top"]] == [s["label"] for s in line["top"]]
            assert row["top"][0] | {"prob": 0} == line["top"][0] | {"prob": 0}
            np.testing.assert_allclose(row["top"][0]["prob"], line["top"][0]["prob"], rtol=1e-6)
        else:
            assert row["top"] is None


def test_an_engine_lost_on_the_way_names_the_batch_and_keeps_the_rows(
    bundle_path: Path, photos: list[str], lost_device: None
) -> None:
    with pytest.raises(EngineError, match=r"device is lost.* from photos/\d\d\.png to") as failed:
        run(bundle_path, photos)
    kept = rows_of("out.jsonl.partial/rows.jsonl")
    assert f"The {len(kept)} rows before are kept" in str(failed.value)
    assert [row["input"] for row in kept] == photos[: len(kept)]
    assert 0 < len(kept) < 600
    assert not Path("out.jsonl").exists()


def test_what_was_begun_is_continued(
    bundle_path: Path, photos: list[str], lost_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError):
        run(bundle_path, photos)
    kept = Path("out.jsonl.partial/rows.jsonl").read_bytes()
    with Path("out.jsonl.partial/rows.jsonl").open("ab") as file:
        file.write(b'{"input": "photos/')  # what a kill leaves of a row
    monkeypatch.setattr("ltdeploy.loading.open_engine", _plain_engine)
    done = run(bundle_path, photos)
    assert done == Written(600, 20, kept.count(b"\n"), NAME)
    assert [row["input"] for row in rows_of("out.jsonl")] == photos
    assert Path("out.jsonl").read_bytes().startswith(kept)


def _plain_engine(bundle: Any, *_: Any, **__: Any) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(bundle.graph_path)


def test_another_run_is_refused_in_words(
    bundle_path: Path, photos: list[str], lost_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError):
        run(bundle_path, photos)
    with pytest.raises(UsageError, match=r"other inputs \(600 images then, 599 now\).*--restart"):
        run(bundle_path, photos[:-1])
    with pytest.raises(UsageError, match=r"other inputs \(600 images .* their order .*changed"):
        run(bundle_path, photos[::-1])
    with pytest.raises(UsageError, match=r"--top-k 5 \(now 3\)"):
        run(bundle_path, photos, top_k=3)
    run_file = Path("out.jsonl.partial/run.json")
    told = json.loads(run_file.read_text())
    run_file.write_text(json.dumps(told | {"bundle": "0" * 64}))
    with pytest.raises(UsageError, match="another bundle"):
        run(bundle_path, photos)
    run_file.write_text("{")
    with pytest.raises(UsageError, match="another version"):
        run(bundle_path, photos)
    monkeypatch.setattr("ltdeploy.loading.open_engine", _plain_engine)
    assert run(bundle_path, photos[:5], restart=True) == Written(5, 0, 0, NAME)


def test_rows_that_were_changed_are_refused(
    bundle_path: Path, photos: list[str], lost_device: None
) -> None:
    with pytest.raises(EngineError):
        run(bundle_path, photos)
    file = Path("out.jsonl.partial/rows.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    for damaged in (lines[1:], [lines[0], *lines], ["nonsense\n", *lines[1:]]):
        file.write_text("".join(damaged))
        with pytest.raises(DataError, match=r"not this run's.*--restart"):
            run(bundle_path, photos)


def test_nothing_is_left_where_nothing_was_answered(bundle_path: Path, photos: list[str]) -> None:
    with pytest.raises(EngineError, match="Unknown engine"):
        predict_to_file(bundle_path, open_inputs(photos), "out.jsonl", engine="abacus")
    assert not Path("out.jsonl.partial").exists()


def test_an_older_output_stays_until_the_new_one_is_whole(
    bundle_path: Path, photos: list[str], lost_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out.jsonl").write_text("old")
    with pytest.raises(EngineError):
        run(bundle_path, photos, restart=True)
    assert Path("out.jsonl").read_text() == "old"
    monkeypatch.setattr("ltdeploy.loading.open_engine", _plain_engine)
    run(bundle_path, photos)
    assert len(rows_of("out.jsonl")) == 600


def test_a_finished_output_is_not_overwritten_by_accident(
    bundle_path: Path, photos: list[str]
) -> None:
    run(bundle_path, photos[:5])
    before = Path("out.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"out\.jsonl is there already.*--restart"):
        run(bundle_path, photos[5:6])
    assert Path("out.jsonl").read_bytes() == before
    assert run(bundle_path, photos[:6], restart=True) == Written(6, 0, 0, NAME)


def test_the_same_names_elsewhere_are_another_run(
    bundle_path: Path, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("other/photos").mkdir(parents=True)
    for number in range(30):
        draw_photo(100 + number, 32, 32).save(f"other/photos/{number:02d}.png")
    out = str(tmp_path / "out.jsonl")
    monkeypatch.setattr("ltdeploy.loading.open_engine", lambda b, *_, **__: Broken(b.graph_path))
    with pytest.raises(EngineError):
        run(bundle_path, photos, out)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(UsageError, match="other inputs"):
        run(bundle_path, photos, out)


def test_a_full_disk_keeps_the_rows_and_says_so(bundle_path: Path, photos: list[str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"The \d+ rows before are kept"):
            run(bundle_path, photos)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    done = run(bundle_path, photos)
    assert (done.rows, done.continued > 10) == (600, True)
    assert [row["input"] for row in rows_of("out.jsonl")] == photos


def test_two_at_once_are_refused(bundle_path: Path, photos: list[str]) -> None:
    def second(text: str) -> None:
        with pytest.raises(UsageError, match="Another process is writing"):
            run(bundle_path, photos[:40])

    assert run(bundle_path, photos[:40], warn=second) == Written(40, 2, 0, NAME)


def a_journal(images: int = 2) -> Journal:
    """Return the journal of a run whose rows are all written."""
    names = [f"{number}.png" for number in range(images)]
    for name in names:
        Path(name).open("ab").close()  # there, and with one time of change
    inputs = open_inputs(names)
    run_of = Run("b", images, inputs.fingerprint(), 5, ENGINE)
    journal = Journal(Path("o.jsonl"), run_of, inputs)
    for number in range(journal.rows, images):
        journal.answered_by(NAME)
        journal.write({"input": f"{number}.png"})
    return journal


def test_an_output_that_is_finished_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process ends between our opening the lock and our holding it."""
    monkeypatch.chdir(tmp_path)
    first = a_journal()
    lock = fcntl.flock

    def late(file: Any, kind: int) -> None:
        first.finish()
        first.__exit__(None, None, None)
        lock(file, kind)

    monkeypatch.setattr(journals.fcntl, "flock", late)
    with pytest.raises(UsageError, match="Another process"):
        a_journal()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert [row["input"] for row in rows_of("o.jsonl")] == ["0.png", "1.png"]
    assert sorted(os.listdir()) == ["0.png", "1.png", "o.jsonl"]
    with pytest.raises(UsageError, match="is there already"):
        a_journal()
    assert sorted(os.listdir()) == ["0.png", "1.png", "o.jsonl"]


def test_who_finished_touches_nothing_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = a_journal(images=0)
    first.finish()
    Path("o.jsonl").unlink()
    with a_journal() as second:
        first.__exit__(None, None, None)
        second.finish()
    assert len(rows_of("o.jsonl")) == 2


def test_what_was_killed_in_its_last_step_is_only_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = a_journal()
    with monkeypatch.context() as killed:
        killed.setattr(Journal, "_drop", lambda self: None)
        first.finish()
        first.__exit__(None, None, None)
    assert sorted(os.listdir("o.jsonl.partial")) == ["lock", "run.json"]
    with a_journal() as second:
        assert second.continued == 2
        second.finish()
    assert len(rows_of("o.jsonl")) == 2
    assert sorted(os.listdir()) == ["0.png", "1.png", "o.jsonl"]


def test_auto_does_not_go_on_with_another_engine(
    bundle_path: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = open_inputs(photos)
    monkeypatch.setattr("ltdeploy.loading.open_engine", lambda b, *_, **__: Broken(b.graph_path))
    with pytest.raises(EngineError):
        predict_to_file(bundle_path, inputs, "out.jsonl")
    kept = len(rows_of("out.jsonl.partial/rows.jsonl"))

    class Another(OnnxRuntimeEngine):
        name = "another"

    monkeypatch.setattr("ltdeploy.loading.open_engine", lambda b, *_, **__: Another(b.graph_path))
    said = f"The {kept} rows .* answered by {NAME}, and --engine auto is another now.*--restart"
    with pytest.raises(UsageError, match=said):
        predict_to_file(bundle_path, inputs, "out.jsonl")
    assert len(rows_of("out.jsonl.partial/rows.jsonl")) == kept
    monkeypatch.setattr("ltdeploy.loading.open_engine", _plain_engine)
    done = predict_to_file(bundle_path, inputs, "out.jsonl")
    assert done == Written(600, 20, kept, NAME)


def test_inputs_that_changed_are_said_to_have(
    bundle_path: Path, photos: list[str], lost_device: None
) -> None:
    with pytest.raises(EngineError):
        run(bundle_path, photos)
    draw_photo(99, 40, 40).save("photos/03.png")
    with pytest.raises(UsageError, match=r"600 images then and now, but .* files changed since"):
        run(bundle_path, photos)


def test_endings_and_places_that_cannot_be_written(bundle_path: Path, photos: list[str]) -> None:
    with pytest.raises(UsageError, match=r"ends in \.jsonl or \.parquet"):
        run(bundle_path, photos, "out.csv")
    with pytest.raises(UsageError, match="there is no folder"):
        run(bundle_path, photos, "no/such/out.jsonl")
    os.mkfifo("pipe.jsonl")
    with pytest.raises(UsageError, match="not a regular file"):
        run(bundle_path, photos, "pipe.jsonl")


SLOW = """
import sys, time
from ltdeploy.bulk import open_inputs, predict_to_file
def slowly(items, *, total, label):
    for item in items:
        time.sleep(0.004)
        yield item
print(predict_to_file(sys.argv[1], open_inputs(sys.argv[2:]), "out.parquet", engine="onnxruntime",
                      track=slowly))
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_costs_no_row(bundle_path: Path, photos: list[str], kind: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOW, str(bundle_path), *photos]
    rows = Path("out.parquet.partial/rows.jsonl")
    killed = 0
    for at_least in (1, 200):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not rows.exists() or rows.read_bytes().count(b"\n") < at_least:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(kind)
        process.wait()
        assert rows.read_bytes().count(b"\n") >= max(killed, at_least)
        killed = rows.read_bytes().count(b"\n")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"continued={killed}" in done.stdout
    found = pq.read_table("out.parquet")
    assert found["input"].to_pylist() == photos
    assert not rows.parent.exists()


def test_inputs_are_counted_once(bundle_path: Path, photos: list[str]) -> None:
    opened = open_bundle(bundle_path)
    inputs = open_inputs(photos[:3])
    assert isinstance(inputs, Inputs)
    assert predict_to_file(opened, inputs, "a.jsonl", engine=ENGINE).rows == 3
