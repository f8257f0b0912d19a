"""Measure what a fresh process pays: import, command line, first answer.

Prints one line per figure: median and range over fresh processes, after one that is not counted
(it fills the file cache and writes byte code). Times of whole processes include the interpreter's
own start, whose line stands beside them.

    python benchmarks/startup.py [--bundle NAME.ltd] [--photo FILE] [--runs 7]

Without a bundle, a ResNet-50 of 1,000 classes is exported from random weights first; without a
photo, one of 4,000 × 3,000 pixels is drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CLASSES = 1000

# VmHWM and not getrusage, whose figure begins with that of the process that started this one.
REPORT = """
import json, re, sys
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)
print(json.dumps(
    {"seconds": seconds, "torch": "torch" in sys.modules, "peak_mb": int(peak) / 1024}
))
"""

IMPORT = """
import time
start = time.perf_counter()
import ltdeploy
seconds = time.perf_counter() - start
"""

HELP = """
import contextlib, io, sys
sys.argv[1:] = ["--help"]
from ltdeploy.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    try:
        main()
    except SystemExit:
        pass
seconds = None
"""

PREDICT = """
import sys
import ltdeploy
with ltdeploy.load(sys.argv[1]) as model:
    model(sys.argv[2]).best
seconds = None
"""


@dataclass(frozen=True)
class Run:
    """One fresh process: seconds as the code or else the clock around it says, and what it took."""

    seconds: float
    torch: bool
    peak_mb: float


def run_once(code: str, arguments: list[str]) -> Run:
    """Run code in a fresh process."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    elapsed = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"The process failed:\n{done.stderr}")
    said = json.loads(done.stdout.splitlines()[-1])
    seconds = elapsed if said["seconds"] is None else said["seconds"]
    return Run(seconds, said["torch"], said["peak_mb"])


def measure(name: str, code: str, runs: int, limit_s: float | None, *arguments: str) -> None:
    """Print one line: median, range, memory, torch, and the limit it is held to."""
    run_once(code, list(arguments))
    done = [run_once(code, list(arguments)) for _ in range(runs)]
    seconds = [run.seconds for run in done]
    line = (
        f"{name:<34} {statistics.median(seconds):6.3f} s "
        f"({min(seconds):.3f} to {max(seconds):.3f}, {runs} processes), "
        f"peak {max(run.peak_mb for run in done):4.0f} MB, "
        f"torch {'imported' if any(run.torch for run in done) else 'not imported'}"
    )
    print(line + ("" if limit_s is None else f"; limit {limit_s:g} s"), flush=True)


def export_resnet50(folder: Path) -> Path:
    """Export a ResNet-50 with random weights and return its bundle."""
    import timm
    import torch

    from ltdeploy.classes import ClassTable
    from ltdeploy.export import export_bundle
    from ltdeploy.models.classifier import LoadOptions, load_checkpoint

    torch.manual_seed(0)
    checkpoint = folder / "resnet50.pt"
    torch.save(timm.create_model("resnet50", num_classes=CLASSES).state_dict(), checkpoint)
    table = ClassTable.from_counts([max(3, 1300 // (label + 1)) for label in range(CLASSES)])
    model = load_checkpoint(checkpoint, options=LoadOptions(arch="timm:resnet50", classes=table))
    return export_bundle(model, [], folder / "resnet50.ltd").bundle.path


def draw_photo(folder: Path) -> Path:
    """Write a JPEG of the size a telephone takes and return its path."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, size=(60, 80, 3), dtype=np.uint8)
    path = folder / "photo.jpg"
    Image.fromarray(coarse).resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, help="a bundle; default: a ResNet-50 made here")
    parser.add_argument("--photo", type=Path, help="an image; default: one drawn here")
    parser.add_argument("--runs", type=int, default=7, help="fresh processes per figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bundle = options.bundle or export_resnet50(Path(temporary))
        photo = options.photo or draw_photo(Path(temporary))
        measure("python, nothing imported", "seconds = None", options.runs, None)
        measure("import ltdeploy", IMPORT, options.runs, 0.15)
        measure("ltdeploy --help", HELP, options.runs, 0.4)
        arguments = (str(bundle), str(photo))
        measure("load a bundle, predict one photo", PREDICT, options.runs, 1.5, *arguments)


if __name__ == "__main__":
    main()
