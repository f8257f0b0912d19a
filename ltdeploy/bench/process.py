"""The handle of a process that holds one engine; see :mod:`.worker`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import EngineError

__all__ = ["EngineProcess"]

_PATIENCE_S = 5.0
# An engine that hangs must not hang the run. Opening may build one, and a warm-up has many runs.
_LIMIT_S = 3600.0
_LIMITS_S = {"turn": 600.0}


class EngineProcess:
    """An engine in a process of its own, so that its memory is its own and a crash too.

    Parameters
    ----------
    bundle : the bundle's folder.
    engine : as it is asked for, ``"openvino:hint=throughput"``.
    threads : threads for one run.
    images : a ``.npy`` file of uint8 images (N, H, W, 3), N at least the largest batch.

    Attributes
    ----------
    name : of the engine that runs.
    load_s : what opening it took.

    Raises
    ------
    EngineError
        If it cannot be opened; the text is the engine's own.
    """

    def __init__(self, bundle: Path, engine: str, threads: int, images: Path) -> None:
        self._engine = engine
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process)
        self._process = subprocess.Popen(
            # -P: a file of the user's folder must not be taken for a module.
            [sys.executable, "-P", "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            told = self.ask(
                do="open",
                bundle=str(bundle),
                engine=engine,
                threads=threads,
                images=str(images),
            )
        except BaseException:
            self.close()
            raise
        self.name: str = told["name"]
        self.load_s: float = told["load_s"]

    def ask(self, **question: object) -> dict[str, Any]:
        """Ask one question and wait for its answer.

        Raises
        ------
        EngineError
            If the answer is an error, the process has ended, or it is ended for giving no answer
            in ten minutes, or in an hour where it opens or warms up.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):  # it has ended: said below
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            limit_s = _LIMITS_S.get(str(question["do"]), _LIMIT_S)
            if not select.select([self._process.stdout], [], [], limit_s)[0]:
                self._process.kill()
                raise EngineError(
                    f"The process that ran {self._engine} gave no answer in {limit_s:g} s and was "
                    "ended. Try a smaller --batch, or leave the engine out."
                )
            line = self._process.stdout.readline()
        if not line:
            raise EngineError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        hint = ""
        if code == -signal.SIGKILL:
            hint = " Memory may have run out: try a smaller --batch, or fewer engines at once."
        return f"The process that ran {self._engine} {how}{f': {said[-1]}' if said else '.'}{hint}"
