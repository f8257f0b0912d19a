"""``ltdeploy quickstart``: the whole way on drawn species, with nothing to download."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as opt
from .export import report_export
from .output import Output, encode, program, write_text
from .verify import conclude

__all__ = ["quickstart"]


def quickstart(
    out: Annotated[str, typer.Option(metavar="DIR", help="Where everything goes.")] = "quickstart",
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed, another model.")] = 0,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Draw species, train, fix, export, verify, and write the report: nothing to download.

    The exit code is that of verify.
    """
    output = Output(json, quiet)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {out}: the folder cannot be made ({error.strerror}); name another one."
        ) from error
    started = time.perf_counter()

    from dataclasses import replace

    from ltdeploy.export import export_bundle

    from ..bundle import attach
    from ..datasets import open_dataset
    from ..datasets.species import SpeciesDataset, contact_sheet, write_folders
    from ..fixes import FixSpec
    from ..models.classifier import load_checkpoint
    from ..training.loop import train
    from ..training.quickstart import QUICKSTART, QUICKSTART_ARCH, QUICKSTART_PREPROCESSING
    from ..verify import baseline_json, report_html, verify_bundle

    output.say(
        "1  Drawing 28 invented moth species: 300 photographs of the commonest, 3 of the rarest"
    )
    contact_sheet(folder / "species.png")
    photos = folder / "photos" / "test"
    if not photos.exists():  # a folder that exists is complete: a second run keeps it
        write_folders(folder / "photos", "test", tracker=output.track)
    dataset = SpeciesDataset("train")
    checkpoint = folder / "moths.pt"

    output.say(
        f"2  Training {QUICKSTART_ARCH} on {len(dataset)} images, plain cross-entropy: 2 minutes"
    )
    trained = train(
        dataset,
        QUICKSTART_ARCH,
        replace(QUICKSTART, seed=seed),
        checkpoint,
        preprocessing=QUICKSTART_PREPROCESSING,
        tracker=output.track,
    )
    output.say(f"   training accuracy {trained.accuracy:.1f} % after {trained.seconds:.0f} s")

    output.say("3  Fixing the tail: logit adjustment, its strength chosen on validation images")
    exported = export_bundle(
        load_checkpoint(checkpoint),
        [FixSpec("logit_adjustment", {"tau": "auto"})],
        folder / "moths.ltd",
        validation=SpeciesDataset("val"),
        track=output.track,
    )
    report_export(output, exported)

    test = open_dataset(str(photos))
    output.say(f"4  Verifying the bundle on {len(test):,} test photographs")
    done = verify_bundle(exported.bundle, test, track=output.track)

    def write_report() -> str:
        page = report_html(done, title="moths.ltd", kind="verification")
        files = {"report.html": encode(page), "baseline.json": encode(baseline_json(done))}
        attach(exported.bundle, files)
        write_text(folder / "report.html", page)
        return str(folder / "report.html")

    code = conclude(output, done, False, write_report)
    few = done.result.groups["few"]
    output.say(
        f"\nThe rare species were recognised {few.unfixed:.0f} % of the time before the fix and "
        f"are {few.candidate:.0f} % now. {time.perf_counter() - started:.0f} s in all."
    )
    photo = min(photos.rglob("*.jpg"))
    output.say(f"Open     {folder / 'report.html'}")
    output.say(f"Try      {program()} predict {folder / 'moths.ltd'} '{photo}'")
    return code
