"""The process that holds one engine and takes its time when asked: ``python -m`` this module.

A question is one line of JSON on stdin, an answer one on stdout; the end of stdin ends it.

- ``{"do": "open", "bundle": PATH, "engine": TEXT, "threads": N, "images": FILE.npy}`` →
  ``{"name": …, "load_s": …}``
- ``{"do": "warm", "batch": B}`` → ``{"runs": …, "stable": …, "peak_bytes": …}``
- ``{"do": "turn", "batch": B, "seconds": S}`` → ``{"latencies_ms": […]}``

What fails answers ``{"error": TEXT}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LtdeployError, UsageError
from .timing import take_turn, warm_up

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..engines import Engine

__all__ = ["Worker", "main"]


class Worker:
    """An engine, its input, and what can be asked of them."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._images: npt.NDArray[np.uint8] | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one question; what goes wrong is an answer too."""
        try:
            match question["do"]:
                case "open":
                    return self._open(question)
                case "warm":
                    return self._warm(question["batch"])
                case "turn":
                    return self._turn(question["batch"], question["seconds"])
                case unknown:
                    raise UsageError(f"Cannot {unknown!r}; expected open, warm or turn.")
        except LtdeployError as error:
            return {"error": str(error)}
        except Exception as error:  # a broken library must not end the measurement of the others
            return {"error": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """Release the engine."""
        if self._engine is not None:
            self._engine.close()

    def _open(self, question: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        from ..bundle import open_bundle
        from ..engines import open_engine

        bundle = open_bundle(question["bundle"])
        started = time.perf_counter()
        self._engine = open_engine(bundle, question["engine"], threads=question["threads"])
        load_s = time.perf_counter() - started
        self._images = np.load(question["images"], allow_pickle=False)
        return {"name": self._engine.name, "load_s": load_s}

    def _warm(self, batch: int) -> dict[str, Any]:
        from ..engines import check_finite

        engine, feeds = self._ready(batch)
        for values in engine.run(feeds).values():  # a detector has several
            check_finite(engine.name, values.reshape(batch, -1), [f"#{n}" for n in range(batch)])
        done = warm_up(lambda: engine.run(feeds))
        return {"runs": done.runs + 1, "stable": done.stable, "peak_bytes": _peak_bytes()}

    def _turn(self, batch: int, seconds: float) -> dict[str, Any]:
        engine, feeds = self._ready(batch)
        latencies_ms = take_turn(lambda: engine.run(feeds), seconds)
        return {"latencies_ms": [round(latency, 5) for latency in latencies_ms]}

    def _ready(self, batch: int) -> tuple[Engine, dict[str, npt.NDArray[np.uint8]]]:
        if self._engine is None or self._images is None:
            raise UsageError("No engine is open; ask to open one first.")
        return self._engine, {self._engine.inputs[0].name: self._images[:batch]}


def _peak_bytes() -> int | None:
    """Return the most main memory this process ever had; None where the system does not tell."""
    # Not getrusage: on Linux its maximum includes that of the process this one was started from.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def main() -> None:
    """Answer questions until there are no more."""
    # Ctrl-C goes to all processes of a terminal; this one ends when the one that asks does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print to stdout would garble the answers
    worker = Worker()
    try:
        for line in sys.stdin:
            answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
            answers.flush()
    except BrokenPipeError:
        pass  # nobody asks any more
    finally:
        worker.close()


if __name__ == "__main__":
    main()
