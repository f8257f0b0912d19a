"""What goes wrong, and what the user sees: one test for each row of the promise."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from samples import draw_photo, write_checkpoint

from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run

Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in an empty folder; return its exit code and what it printed on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str]:
        code = run(app, [str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.err

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of each class of ``checkpoint``."""
    folder = tmp_path / "photos" / "val"
    for label in range(6):
        (folder / f"species {label}").mkdir(parents=True)
        for number in range(3):
            photo = draw_photo(10 * label + number, 32, 32)
            photo.save(folder / f"species {label}" / f"{number}.png")
    return folder


# Checkpoints


def test_a_wrong_path_names_its_neighbour(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint, tmp_path / "ckpt.pt")
    code, text = cli("export", "ckpt_.pt")
    assert code == 2
    assert "ckpt_.pt" in text
    assert "Did you mean" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.pt", b"my notes on long tails"),
        ("page.pth", b"<!DOCTYPE html><html>404</html>"),
        ("empty.pt", b""),
        (
            "lfs.pt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        ),
    ],
)
def test_what_is_no_checkpoint_is_said_so(
    cli: Cli, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    code, text = cli("export", "--tau", "0.7", name)
    assert code == 2
    assert name in text
    assert not list(tmp_path.glob("*.ltd"))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.marker, "w")


def test_code_in_a_pickle_is_refused_and_does_not_run(cli: Cli, tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    torch.save({"state_dict": {}, "extra": Bomb(str(marker))}, tmp_path / "bomb.pt")
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump(Bomb(str(marker)), file)
    for name in ("bomb.pt", "plain.pt"):
        code, text = cli("export", name)
        assert code == 2
        assert "--trust-pickle" in text
        assert "open" in text
        assert not marker.exists()
    # Negative control: the bomb does go off where code may run.
    with (tmp_path / "plain.pt").open("rb") as file:
        pickle.load(file).close()
    assert marker.exists()


def test_a_truncated_checkpoint_is_damage(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    content = checkpoint.read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    code, text = cli("export", "half.pt")
    assert code == 2
    assert "half.pt" in text


def test_a_missing_head_is_an_error(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    for key in [k for k in content["state_dict"] if k.startswith(("linear", "fc"))]:
        del content["state_dict"][key]
    torch.save(content, tmp_path / "headless.pt")
    code, text = cli("export", "headless.pt")
    assert code == 2
    assert "head" in text.lower()


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([5, 4, 3], "3 training counts"),
        ([0] * 6, "zero"),
        ([9, 8, -7, 6, 5, 4], "-7"),
    ],
)
def test_wrong_counts_in_the_file(cli: Cli, tmp_path: Path, counts: list[int], text: str) -> None:
    write_checkpoint(tmp_path / "ckpt.pt", train_counts=counts)
    code, said = cli("export", "ckpt.pt")
    assert code == 2
    assert text in said


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["a,1", "b,2"], "2 classes"),
        (["a,1", "b,2", "c,3", "d,4", "e,5", "f,-6"], "-6"),
        (["a,1", "b,2", "c,3", "a,4", "e,5", "f,6"], "twice"),
        (["a,1", "b,2", "c,3", "d,4", "e,5", "f,many"], "many"),
        ([], "no class"),
    ],
)
def test_wrong_class_tables(
    cli: Cli, checkpoint: Path, tmp_path: Path, rows: list[str], text: str
) -> None:
    (tmp_path / "classes.csv").write_text("\n".join(["name,train_count", *rows]) + "\n")
    bare = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save(bare, tmp_path / "bare.pt")
    code, said = cli("export", "bare.pt", "--classes", "classes.csv")
    assert code == 2
    assert text in said


def test_what_is_missing_is_listed_at_once(cli: Cli, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(5, 7), "fc.bias": torch.zeros(5)}, tmp_path / "odd.pt")
    code, text = cli("export", "--tau", "0.7", "odd.pt")
    assert code == 2
    assert "--arch" in text
    assert "--classes" in text
    assert "5 × 7" in text


# Fixes and options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--tau=-0.5"], "at least 0"),
        (["--tau", "strong"], "expected a number"),
        (["--tau", "0.7", "--tau-bias", "dorp"], "Did you mean 'drop'"),
        (["--fix", "tau_nrom:tau=1"], "Did you mean 'tau_norm'"),
        (["--tau", "auto"], "add --val DATA"),
        (["--val", "photos/val"], "leave --val out"),
        (["--tua", "0.7"], "Did you mean '--tau'?"),
        (["--out", "bundle"], "ends in .ltd"),
        (["--mean", "a,b,c"], "three numbers"),
        (["--arch", "timm:resnet5O"], "Did you mean"),
    ],
)
def test_options_that_cannot_be_meant(
    cli: Cli, checkpoint: Path, options: list[str], text: str
) -> None:
    code, said = cli("export", *options, checkpoint)
    assert code == 2
    assert text in said


def test_unknown_commands_and_missing_arguments(cli: Cli) -> None:
    assert "Did you mean 'export'?" in cli("exprot", "x.pt")[1]
    code, text = cli("verify", "x.ltd")
    assert code == 2
    assert "--data" in text


# Data


def test_an_empty_or_absent_data_set(cli: Cli, bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    code, text = cli("verify", bundle_path, "--data", "nothing")
    assert code == 2
    assert "nothing" in text
    code, text = cli("verify", bundle_path, "--data", "noting")
    assert code == 2
    assert "Did you mean" in text


def test_labels_that_the_model_does_not_know(cli: Cli, bundle_path: Path, photos: Path) -> None:
    (photos / "species 0").rename(photos / "unicorn")
    code, text = cli("verify", bundle_path, "--data", photos)
    assert code == 2
    assert "unicorn" in text


def test_an_unreadable_image_is_named_and_the_run_goes_on(
    cli: Cli, bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "species 1" / "1.png").write_bytes(b"no image")
    code, text = cli(
        "verify", bundle_path, "--data", photos, "--json", "v.json", "--html", "r.html"
    )
    assert code == 2
    assert "1.png" in text
    result = json.loads((tmp_path / "v.json").read_text())
    assert (result["verdict"], result["images"], result["unreadable"]) == ("pass", 17, 1)
    code, text = cli("predict", bundle_path, photos, "--out", "out.jsonl")
    assert code == 2
    assert "1.png" in text
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 18
    assert sum("error" in line for line in lines) == 1


def test_a_class_without_images_is_named(cli: Cli, bundle_path: Path, photos: Path) -> None:
    shutil.rmtree(photos / "species 4")
    code, text = cli("verify", bundle_path, "--data", photos, "--html", "r.html")
    assert code == 0
    assert "species 4" in text


def test_hostile_images_are_answered_in_words(cli: Cli, bundle_path: Path, data_dir: Path) -> None:
    files = sorted(p for p in (data_dir / "hostile_images").iterdir() if p.suffix != ".md")
    code, text = cli("predict", bundle_path, *files, "--out", "answers.jsonl")
    assert code == 2
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == len(files)
    for file, answer in zip(files, answers, strict=True):
        if file.name.startswith("ok"):
            assert "top" in answer, answer
        elif not file.name.startswith("maybe"):
            assert file.name in answer["error"]
            assert file.name in text


# Bundles


def test_a_bundle_that_was_tampered_with(
    cli: Cli, bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle_path, tmp_path / "bad.ltd")
    with (tmp_path / "bad.ltd" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    for command in (
        ["verify", "bad.ltd", "--data", str(photos)],
        ["predict", "bad.ltd", str(photos)],
        ["inspect", "bad.ltd"],
    ):
        code, text = cli(*command)
        assert code == 2
        assert "changed after it was written" in text


def test_a_verdict_has_an_exit_code(
    cli: Cli, checkpoint: Path, bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "other.pt", seed=5)
    code, _ = cli("compare", checkpoint, "other.pt", "--data", photos, "--margin", "99.9")
    assert code in (0, 3)
    code, _ = cli("compare", checkpoint, "other.pt", "--data", photos)
    assert code in (1, 3)
    strict, _ = cli("compare", checkpoint, "other.pt", "--data", photos, "--strict")
    assert strict == 1
    assert cli("verify", bundle_path, "--data", photos, "--html", "r.html")[0] == 0


def test_an_internal_error_is_owned(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import ltdeploy.cli.doctor

    def broken() -> dict[str, object]:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(ltdeploy.cli.doctor, "diagnose", broken)
    code, text = cli("doctor")
    assert code == 70
    assert "--debug" in text


def test_ctrl_c_leaves_nothing_half_written(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ltdeploy", "export", "--tau", "0.7", str(checkpoint)]
    # A shell starts background commands with SIGINT ignored, and Python would inherit that.
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    time.sleep(2.0)
    os.kill(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    # Under -m, Python ends itself by the signal if it came inside an exec (those of dataclasses,
    # while modules load); a shell shows 130 for either.
    assert process.returncode in (130, -signal.SIGINT), text
    assert "Interrupted" in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(app, ["inspect", "absent.pt", "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err
