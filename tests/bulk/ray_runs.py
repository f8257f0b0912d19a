"""Predict on a local Ray with two workers and tell what happened; a process of its own.

Ray leaves environment variables and unfinished threads behind, and workers cannot import tests:
what stands in ``__main__`` they get by value.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ltdeploy.bulk import Inputs, RayOptions, predict_to_file
from ltdeploy.bulk.inputs import _Files
from ltdeploy.errors import LtdeployError


class Lethal(Inputs):
    """Inputs of which one kills the process that reads it, as a crashing decoder does.

    Parameters
    ----------
    place : which one.
    deaths : how many processes it kills before it can be read.
    """

    def __init__(self, paths: list[str], place: int, deaths: int) -> None:
        super().__init__([_Files(paths, os.getcwd())])
        self._place = place
        self._graves = [Path(f"grave{number}").absolute() for number in range(deaths)]

    def source(self, index: int) -> Any:
        """Return the image, or die."""
        if index == self._place:
            for grave in self._graves:
                if not grave.exists():
                    grave.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().source(index)


def listening() -> set[str]:
    """Return the addresses on which the Rays of this machine listen, as the kernel has them."""
    open_sockets = {
        fields[9]: fields[1].partition(":")[0]
        for family in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/net/{family}").read_text().splitlines()[1:])
        if fields[3] == "0A"
    }
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray" not in (process / "cmdline").read_bytes():
                continue
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        found |= {open_sockets.get(link[8:-1], "") for link in links if link.startswith("socket:")}
    return found - {""}


def main(bundle: str, out: str, engine: str, images: int, place: int, deaths: int) -> None:
    """Predict, and print what happened as JSON."""
    heard: set[str] = set()

    def track(items: Any, *, total: int | None, label: str) -> Any:
        for number, item in enumerate(items):
            if number == 1:
                heard.update(listening())
            yield item

    inputs = Lethal([f"photos/{number % 30:02d}.png" for number in range(images)], place, deaths)
    told: dict[str, Any] = {}
    try:
        done = predict_to_file(
            bundle, inputs, out, engine=engine, ray=RayOptions(workers=2), track=track
        )
        told |= {
            "rows": done.rows,
            "continued": done.continued,
            "errors": done.errors,
            "engine": done.engine,
        }
    except LtdeployError as error:
        told |= {"kind": type(error).__name__, "error": str(error)}
    import ray

    still = ray.is_initialized()
    print(json.dumps(told | {"heard": sorted(heard), "still": still}))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))  # type: ignore[arg-type]
