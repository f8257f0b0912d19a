"""``ltdeploy predict``: inputs of every kind, outputs that can be continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import draw_photo

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Return the paths of four pictures in ``photos``."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        draw_photo(number, 32, 32).save(tmp_path / "photos" / f"{number}.png")
    return [f"photos/{number}.png" for number in range(4)]


def inputs_of(path: str) -> list[str]:
    return [json.loads(line)["input"] for line in Path(path).read_text().splitlines()]


def test_folders_lists_and_parquet(cli: Cli, bundle_path: Path, photos: list[str]) -> None:
    Path("list.txt").write_text("1.png\n2.png\n")
    pq.write_table(pa.table({"image": [Path(photos[3]).read_bytes()]}), "one.parquet")
    code, said, _ = cli(
        "predict", bundle_path, "list.txt", "photos", "one.parquet", "--root", "photos",
        "--out", "o.jsonl",
    )  # fmt: skip
    assert code == 0
    wrote, answered = said.splitlines()
    assert wrote == "Wrote 7 answers and 0 errors to o.jsonl."
    assert answered.startswith("Answered by ")
    assert inputs_of("o.jsonl") == ["1.png", "2.png", *photos, "one.parquet#0"]
    assert cli("predict", bundle_path, "photos", "--out", "o.parquet")[0] == 0
    assert pq.read_table("o.parquet")["input"].to_pylist() == photos


def test_json_and_words_take_the_same_inputs(
    cli: Cli, bundle_path: Path, photos: list[str]
) -> None:
    Path("list.txt").write_text("photos/1.png 0\n")
    code, said, _ = cli("predict", bundle_path, "list.txt", "--json", "-", "--top-k", "2")
    assert code == 0
    (line,) = [json.loads(text) for text in said.splitlines()]
    assert (line["input"], len(line["top"])) == ("photos/1.png", 2)
    code, said, _ = cli("predict", bundle_path, photos[0])
    assert said.startswith(photos[0])
    assert said.splitlines()[-1].startswith("Answered by ")
    code, _, said = cli("predict", bundle_path, photos[0], "--top-k", "0")
    assert (code, "--top-k is 0; expected 1 or more" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-"], "neither stdin nor addresses"),
        (["photos", "--restart"], "--restart needs --out"),
        (["photos", "--on", "ray"], "--on ray needs --out"),
        (["photos", "--on", "spark", "--out", "o.jsonl"], "expected 'ray'"),
        (["photos", "--out", "o.csv"], "ends in .jsonl or .parquet"),
        (["photos", "--out", "o.jsonl", "--json", "-"], "give one of them"),
        (["photos", "--root", "photos"], "no .txt list"),
        (["empty"], "holds no image"),
        (["phots", "--out", "o.jsonl"], "phots does not exist; expected an image, a folder"),
        (["photos/7.png", "--out", "o.jsonl"], "Did you mean "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_refused(
    cli: Cli, bundle_path: Path, photos: list[str], arguments: list[str], complaint: str
) -> None:
    Path("empty").mkdir()
    code, _, said = cli("predict", bundle_path, *arguments)
    assert code == 2
    assert complaint in said
    assert not Path("o.jsonl.partial").exists()
    assert not Path("o.jsonl").exists()


def test_a_checkpoint_is_told_what_to_do_with_it(cli: Cli, photos: list[str]) -> None:
    Path("my model.pt").write_bytes(b"weights")
    code, _, said = cli("predict", "my model.pt", *photos)
    assert code == 2
    assert "my model.pt is a file; expected a bundle" in said
    assert "export 'my model.pt'" in said


def test_one_is_not_told_as_several(cli: Cli, bundle_path: Path, photos: list[str]) -> None:
    Path("list.txt").write_text(f"{photos[0]}\nphotos/gone.png\n")
    code, said, _ = cli("predict", bundle_path, "list.txt", "--out", "o.jsonl")
    assert code == 2
    assert said.startswith("Wrote 1 answer and 1 error to o.jsonl.")


def test_rows_of_two_files_with_one_name(cli: Cli, bundle_path: Path, photos: list[str]) -> None:
    for folder in ("da", "db"):
        Path(folder).mkdir()
        pq.write_table(pa.table({"image": [Path(photos[3]).read_bytes()]}), f"{folder}/x.parquet")
    files = ("da/x.parquet", "db/x.parquet")
    assert cli("predict", bundle_path, *files, "--out", "o.jsonl")[0] == 0
    assert inputs_of("o.jsonl") == [f"{file}#0" for file in files]


def test_ctrl_c_says_how_to_go_on(bundle_path: Path, photos: list[str], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(photos * 2500))
    command = [sys.executable, "-m", "ltdeploy", "predict", str(bundle_path), "list.txt"]
    command += ["--out", "o.jsonl", "--engine", "onnxruntime", "--restart"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    rows = tmp_path / "o.jsonl.partial" / "rows.jsonl"
    while not rows.exists() or not rows.stat().st_size:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "the rows so far are kept in o.jsonl.partial" in said
    again = said.partition("to go on behind them: ")[2].splitlines()[0]
    assert "--restart" not in again
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        again, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    assert "Went on behind" in done.stdout
    assert inputs_of(str(tmp_path / "o.jsonl")) == photos * 2500
