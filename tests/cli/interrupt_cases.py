"""Ctrl-C ends a command, also where what it raises is lost on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from ltdeploy.cli.main import app
from ltdeploy.cli.output import Output, write_text
from ltdeploy.cli.runtime import interrupt_is_handled, interrupted, run, typed_with
from ltdeploy.files import write_whole
from ltdeploy.training.interrupts import hold_back

Press = Callable[[], None]


class Thing:
    """Something that a weak reference can point to."""


def lose_in_a_callback() -> None:
    """Press Ctrl-C while a weak reference's callback runs, as modules being imported have one."""
    thing = Thing()
    kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing
    assert kept() is None


def lose_in_an_except() -> None:
    """Press Ctrl-C inside a library that catches everything."""
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGINT)


def press() -> None:
    """Press Ctrl-C where nothing is in the way."""
    os.kill(os.getpid(), signal.SIGINT)


LOST = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
lost = pytest.mark.parametrize(
    "lose", [pytest.param(lose_in_a_callback, marks=LOST), lose_in_an_except]
)


@pytest.fixture(autouse=True)
def _python_listens() -> Iterator[None]:
    # A shell starts background commands with SIGINT ignored, and Python would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def command(body: Callable[[], int | None]) -> typer.Typer:
    made = typer.Typer(add_completion=False)
    made.command()(body)
    return made


@lost
def test_a_lost_ctrl_c_writes_nothing_and_ends_with_130(
    lose: Press, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.html"
    old.write_text("old")

    def body() -> None:
        lose()
        write_text(old, "new")

    assert run(command(body), []) == 130
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]
    assert capsys.readouterr().err == "ltdeploy: Interrupted; nothing was half-written.\n"


@lost
def test_the_next_step_of_the_work_ends_it(lose: Press) -> None:
    steps = []

    def body() -> None:
        for step in Output(quiet=True).track(range(5), total=5, label="work"):
            steps.append(step)
            if step == 1:
                lose()

    assert run(command(body), []) == 130
    assert steps == [0, 1]


@lost
@pytest.mark.parametrize("code", [0, 1, 3])
def test_no_verdict_stands_where_the_last_thing_was_a_lost_ctrl_c(lose: Press, code: int) -> None:
    def body() -> int:
        lose()
        return code

    assert run(command(body), []) == 130
    assert run(command(lambda: code), []) == code  # the next command starts anew


def test_an_error_that_a_library_made_of_ctrl_c_is_no_defect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def body() -> None:
        try:
            press()
        except KeyboardInterrupt:
            raise RuntimeError("callback failed") from None

    assert run(command(body), []) == 130
    assert "defect" not in capsys.readouterr().err


def test_a_command_that_catches_it_may_write_what_it_has(tmp_path: Path) -> None:
    def body() -> int:
        try:
            press()
        except KeyboardInterrupt:
            interrupt_is_handled()
        write_text(tmp_path / "rows.txt", "so far")
        return 130

    assert run(command(body), []) == 130
    assert (tmp_path / "rows.txt").read_text() == "so far"


def test_a_command_says_what_it_left_and_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def body(name: str = "", resume: bool = False) -> int:
        try:
            press()
        except KeyboardInterrupt:
            interrupt_is_handled()
            return interrupted(f"Half is done; go on with: {typed_with('--resume')}")
        return 0

    go_on = "ltdeploy: Half is done; go on with: ltdeploy --name 'a b' --resume\n"
    for more in ([], ["--resume"]):
        assert run(command(body), ["--name", "a b", *more]) == 130
        assert capsys.readouterr().err == go_on
    assert run(command(press), []) == 130  # the next command has a word of its own
    assert capsys.readouterr().err == "ltdeploy: Interrupted; nothing was half-written.\n"


def test_what_is_held_back_is_heard_at_the_next_release() -> None:
    reached = []

    def steps() -> None:
        with hold_back() as held:
            held.release()
            press()
            press()
            reached.append("end of the step")
            held.release()
            reached.append("next step")

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert reached == ["end of the step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):  # the control
        press()


def test_what_is_held_back_to_the_end_is_heard_there_and_noted() -> None:
    reached = []

    def body() -> None:
        with hold_back():
            press()
            reached.append("within")
        reached.append("after")

    assert run(command(body), []) == 130
    assert reached == ["within"]


def test_an_error_of_what_is_held_back_comes_first() -> None:
    def step() -> None:
        with hold_back():
            press()
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        step()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_held_back_elsewhere() -> None:
    def body() -> None:
        with hold_back() as held:
            held.release()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hold_back() as held:
            press()
            held.release()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_outside_of_a_command_nothing_is_cancelled(tmp_path: Path) -> None:
    run(command(lose_in_an_except), [])
    write_whole(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    with pytest.raises(KeyboardInterrupt):
        press()


def test_a_command_in_the_background_stays_deaf(tmp_path: Path) -> None:
    def body() -> None:
        press()
        write_text(tmp_path / "file", "written")

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(command(body), []) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert (tmp_path / "file").exists()


def test_export_keeps_the_old_bundle_when_ctrl_c_was_lost(
    checkpoint: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltdeploy.bundle import open_bundle, write_bundle

    opened = open_bundle(bundle_path)
    files = {name: (bundle_path / name).read_bytes() for name in opened.manifest.files}
    written = write_bundle(tmp_path / "old.ltd", opened.manifest, files)
    before = {file: file.read_bytes() for file in written.path.iterdir() if file.is_file()}

    import ltdeploy.models.loading as loading

    load = loading.load_model

    def interrupted(*args: object, **options: object) -> object:
        lose_in_an_except()
        return load(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "load_model", interrupted)
    assert run(app, ["export", "-q", str(checkpoint), "--out", str(written.path)]) == 130
    assert {file: file.read_bytes() for file in written.path.iterdir() if file.is_file()} == before
    assert list(tmp_path.iterdir()) == [written.path]
