"""Measure the sweep over a fix's strengths against the plain NumPy loop: seconds and memory.

Logits of a long-tailed model are drawn to a file. Then, round by round, a fresh process each does
the plain loop in memory, the sweep in memory, and the sweep streamed from the file, for logit
adjustment and for τ-normalisation. The plain loop is timed on every tenth strength and its median
scaled to all of them. Prints one line per figure: median and range over the rounds.

    python benchmarks/tau_sweep.py [--images 24426] [--classes 8142] [--strengths 101] [--rounds 3]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltdeploy.fixes.sweep import sweep_top1

FAMILIES = ("logit adjustment", "tau-norm")
EVERY = 10  # of the strengths, the plain loop is timed on one in so many
BLOCK_ROWS = 256
MB = 1e6


def counts_of(classes: int) -> npt.NDArray[np.float64]:
    """Return training counts that fall from 1,000 to 2, as iNaturalist 2018's do."""
    rank = np.linspace(0.0, 1.0, classes)
    return np.asarray(np.maximum(1000.0 * np.exp(-9.0 * np.sqrt(rank)), 2.0).round())


def slopes_of(family: str, classes: int) -> npt.NDArray[np.float64]:
    """Return g = −log π, or h = −log(‖w‖ / gm) of norms that grew with the counts."""
    counts = counts_of(classes)
    slopes = -np.log(counts / counts.sum())
    return slopes if family == FAMILIES[0] else 0.15 * (slopes - slopes.mean())


def draw(path: Path, images: int, classes: int) -> None:
    """Write logits: noise, a leaning to frequent classes, evidence for the image's own class."""
    random = np.random.default_rng(0)
    leaning = (-0.8 * slopes_of(FAMILIES[0], classes)).astype(np.float32)
    labels = np.arange(images) % classes
    out = np.lib.format.open_memmap(path, "w+", np.float32, (images, classes))
    for start in range(0, images, BLOCK_ROWS):
        own = labels[start : start + BLOCK_ROWS]
        block = 1.5 * random.standard_normal((len(own), classes), dtype=np.float32) + leaning
        block[np.arange(len(own)), own] += random.normal(8.0, 3.0, len(own)).astype(np.float32)
        out[start : start + len(own)] = block
    out.flush()


def peak_mb() -> float:
    """Return the most memory this process has held: VmHWM, which does not begin at its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found.group(1)) * 1024 / MB


def run_way(way: str, family: str, path: Path, strengths: int) -> dict[str, Any]:
    """Do it one way and return seconds for all strengths, peak memory, and a digest of labels."""
    taus = np.linspace(0.0, 2.0, strengths)
    adjust = family == FAMILIES[0]
    if way == "stream":
        logits: Any = path
        classes = np.load(path, mmap_mode="r").shape[1]
    else:
        logits = np.load(path)
        classes = logits.shape[1]
    slopes = slopes_of(family, classes)
    single = 0.0
    if way == "plain":
        started = time.perf_counter()
        logits.argmax(axis=1)
        single = time.perf_counter() - started
        seconds, columns = [], []
        for tau in taus[::EVERY]:
            started = time.perf_counter()
            if adjust:
                columns.append((logits + (tau * slopes).astype(np.float32)).argmax(axis=1))
            else:
                columns.append((logits * np.exp(tau * slopes).astype(np.float32)).argmax(axis=1))
            seconds.append(time.perf_counter() - started)
        total, labels = statistics.median(seconds) * strengths, np.stack(columns, axis=1)
    else:
        started = time.perf_counter()
        top1 = sweep_top1(logits, None if adjust else slopes, slopes if adjust else None, taus)
        total, labels = time.perf_counter() - started, top1[:, ::EVERY]
    digest = hashlib.sha256(np.ascontiguousarray(labels, dtype=np.int32).tobytes()).hexdigest()
    return {"seconds": total, "single": single, "peak_mb": peak_mb(), "labels": digest}


def fresh(way: str, family: str, path: Path, strengths: int) -> dict[str, Any]:
    """Do the same in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--family", family, "--file", str(path)]
    done = subprocess.run(
        [*command, "--strengths", str(strengths)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"The process failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def line(name: str, values: list[float], unit: str) -> None:
    """Print one figure: median, lowest, highest."""
    shown = f"{statistics.median(values):.4g}{unit} ({min(values):.4g} … {max(values):.4g})"
    print(f"{name:<64} {shown}", flush=True)


def measure(family: str, path: Path, strengths: int, rounds: int) -> None:
    """Print the figures of one family."""
    size = np.load(path, mmap_mode="r").nbytes / MB
    ways: dict[str, list[dict[str, Any]]] = {"plain": [], "sweep": [], "stream": []}
    for _ in range(rounds):
        for way, done in ways.items():
            done.append(fresh(way, family, path, strengths))
    plain, sweep, stream = ([run["seconds"] for run in ways[way]] for way in ways)
    timed = len(range(0, strengths, EVERY))
    line(f"{family}: plain loop, {timed} strengths scaled to {strengths}", plain, " s")
    line(f"{family}: sweep in memory", sweep, " s")
    line(f"{family}: sweep streamed from the file", stream, " s")
    singles = [run["single"] for run in ways["plain"]]
    line(f"{family}: one argmax over the logits, the least there is", singles, " s")
    ratios = [p / s for p, s in zip(plain, sweep, strict=True)]
    line(f"{family}: plain over sweep (wanted: 15 or more)", ratios, "")
    ratios = [p / s for p, s in zip(plain, stream, strict=True)]
    line(f"{family}: plain over streamed sweep", ratios, "")
    peaks = {way: [run["peak_mb"] for run in done] for way, done in ways.items()}
    line(f"{family}: plain loop's peak memory over logits", [p / size for p in peaks["plain"]], "")
    shares = [p / size for p in peaks["sweep"]]
    line(f"{family}: sweep's peak memory over logits (wanted: 1.3)", shares, "")
    line(f"{family}: streamed, peak memory (wanted: below 1000)", peaks["stream"], " MB")
    same = len({run["labels"] for done in ways.values() for run in done}) == 1
    print(f"{f'{family}: labels the same (wanted: yes)':<64} {'yes' if same else 'no'}", flush=True)


def main() -> None:
    """Run every measurement, or, for a child process, one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24_426)
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--strengths", type=int, default=101)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--family", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.way:
        print(json.dumps(run_way(told.way, told.family, told.file, told.strengths)))
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "logits.npy"
        draw(path, told.images, told.classes)
        size = np.load(path, mmap_mode="r").nbytes / MB
        print(f"{told.images:,} × {told.classes:,} float32 logits, {size:.0f} MB", flush=True)
        for family in FAMILIES:
            measure(family, path, told.strengths, told.rounds)


if __name__ == "__main__":
    main()
