"""``ltdeploy compare``: two bundles or checkpoints, class by class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as opt
from .output import Output, write_text
from .verify import Data, Html, Margin, Strict, check_report_folder, conclude

__all__ = ["compare"]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Bundle or checkpoint: the old one.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Bundle or checkpoint: the new one.")],
    data: Data,
    margin: Margin = 1.0,
    html: Html = None,
    strict: Strict = False,
    root: opt.Root = None,
    arch: opt.Arch = None,
    classes: opt.Classes = None,
    outputs: opt.Outputs = None,
    head_scale: opt.HeadScale = None,
    trust_pickle: opt.TrustPickle = False,
    image_size: opt.ImageSize = None,
    resize: opt.Resize = None,
    crop_pct: opt.CropPct = None,
    interpolation: opt.Interpolation = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Compare two models on the same images: is B as good as A, in every group?

    Checkpoints are compared as they are, bundles with their fix. Exit codes as for verify.
    """
    output = Output(json, quiet)
    check_report_folder(html)

    from ..bundle import open_bundle
    from ..datasets import open_dataset, read_classes
    from ..verify.contenders import is_bundle

    if is_bundle(b) and open_bundle(b).is_detector:
        from .verify_boxes import verify_boxes

        return verify_boxes(
            output,
            open_bundle(b),
            data,
            root=root,
            reference=a,
            engine="auto",
            margin=margin,
            html=html,
            strict=strict,
            trust_pickle=trust_pickle,
            outputs=outputs,
            attached=False,
        )
    if outputs is not None:
        raise UsageError(f"--outputs is for detectors, and {b} is no detector's bundle.")

    from ..verify import compare_models, report_html

    options = opt.load_options(
        arch=arch,
        classes=read_classes(classes, root) if classes is not None else None,
        image_size=image_size,
        resize=resize,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=mean,
        std=std,
        head_scale=head_scale,
        trust_pickle=trust_pickle,
    )
    dataset = open_dataset(data, root=root)
    done = compare_models(a, b, dataset, options=options, margin=margin, track=output.track)
    if html is None:
        return conclude(output, done, strict, None)

    def write_report() -> str:
        title = f"{Path(a).name} → {Path(b).name}"
        write_text(Path(html), report_html(done, title=title, kind="comparison"))
        return html

    return conclude(output, done, strict, write_report)
