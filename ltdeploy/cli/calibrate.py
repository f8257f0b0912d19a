"""``ltdeploy calibrate``: which fix, and how strong, from validation data alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import options as opt
from .choice_table import report_choice
from .output import Output, program, quoted, write_text
from .runtime import ExitCode

if TYPE_CHECKING:
    from ..calibrate import Aim, Evidence
    from ..models.classifier import Classifier
    from ..models.onnx_classifier import OnnxClassifier

__all__ = ["calibrate"]

_DATA = "Data"
_CHOICE = "Choice"
_CACHE = "Cache"


def calibrate(
    ckpt: Annotated[
        str,
        typer.Argument(
            metavar="CKPT|FILE.npz", help="Checkpoint, or arrays 'logits', 'labels', 'counts'."
        ),
    ],
    val: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images that choose, never trained on: a folder per class, .parquet, …; "
            "of a detector COCO or LVIS .json.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Training images, for ncm, crt and disalign.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Unlabelled images from the place of use, for label_shift.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    root: opt.Root = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="auto|NAME[:k=v]",
            help="What to try; repeatable. Default: all that apply.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What to maximise: balanced (the default), few, harmonic or overall; of a "
            "detector balanced or few.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    max_head_loss: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Accuracy, of a detector AP, that the most frequent group may lose. Default: "
            "anything.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    target_prior: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|FILE",
            help="How often classes come in use: csv 'name,count', or DATA.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    trained_with: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Loss or sampler, where the file is silent: cross_entropy, balanced_softmax, …",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(metavar="N", help="Parts of the data.", rich_help_panel=_CHOICE)
    ] = 5,
    seed: Annotated[
        int, typer.Option(metavar="N", help="How they are cut.", rich_help_panel=_CHOICE)
    ] = 0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Try fixes that are refused.", rich_help_panel=_CHOICE),
    ] = False,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where the fix goes.")] = "fix.json",
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Default: beside the fix, as .html.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="What earlier runs gave.", rich_help_panel=_CACHE),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep nothing.", rich_help_panel=_CACHE)
    ] = False,
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
    """Choose the post-hoc fix on validation data, and say how sure the choice is.

    Example: ltdeploy calibrate ckpt.pt --val val/ --out fix.json

    From any framework: ltdeploy calibrate arrays.npz, made by numpy.savez("arrays.npz",
    logits=…, labels=…, counts=…), and at will features, weight, bias and others.
    """
    output = Output(json, quiet)
    target_path, report_path = _output_paths(out, html, json, ckpt)
    if seed < 0:
        raise UsageError(f"--seed is {seed}; expected 0 or more.")
    if no_cache and cache is not None:
        raise UsageError("--cache and --no-cache contradict each other; give one of them.")
    names = _method_names(method)

    from ..calibrate import calibrate as choose
    from ..calibrate import fix_file_of, render_report
    from ..fixes import write_fix_file

    of_classifiers = {
        "--train": train,
        "--target": target,
        "--head-scale": head_scale,
        "--image-size": image_size,
        "--resize": resize,
        "--crop-pct": crop_pct,
        "--interpolation": interpolation,
        "--mean": mean,
        "--std": std,
    }
    if Path(ckpt).suffix.lower() == ".npz":
        for option, value in {
            "--val": val,
            "--arch": arch,
            "--classes": classes,
            "--outputs": outputs,
            "--cache": cache,
            **of_classifiers,
        }.items():
            if value is not None:
                raise UsageError(
                    f"{option} is for checkpoints, and {ckpt} holds arrays already: leave it out, "
                    "and put what it would give into the file."
                )
        evidence = _evidence_of_arrays(ckpt, trained_with, force)
    else:
        val = _require_validation(ckpt, val)
        from ..datasets import read_classes

        loading = opt.load_options(
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
        from ..models.detectors.detector import Detector
        from ..models.detectors.onnx_detector import OnnxDetector
        from ..models.loading import load_model
        from ..models.trained_with import resolve_trained_with

        told = resolve_trained_with(trained_with, "--trained-with")
        model = load_model(Path(ckpt), options=loading, outputs=opt.read_outputs(outputs))
        if isinstance(model, Detector | OnnxDetector):
            from .calibrate_boxes import calibrate_detector

            return calibrate_detector(
                output,
                " --outputs ".join(quoted(one) for one in (ckpt, outputs) if one is not None),
                model,
                val,
                root=root,
                methods=names,
                objective=objective,
                max_head_loss=max_head_loss,
                trained_with=told,
                folds=folds,
                seed=seed,
                force=force,
                out=target_path,
                report=report_path,
                cache=_cache_folder(cache, no_cache),
                refused={**of_classifiers, "--target-prior": target_prior},
            )
        evidence = _evidence_of_images(
            model,
            (val, train, target, root),
            told,
            _cache_folder(cache, no_cache),
            force,
            output,
        )
    aim = _aim(objective, target_prior, max_head_loss, root, evidence, output)
    done = choose(evidence, methods=names, aim=aim, folds=folds, seed=seed, track=output.track)

    write_fix_file(target_path, fix_file_of(done, evidence))
    result = done.to_dict()
    write_text(report_path, render_report(result, title=Path(ckpt).name))
    output.json(result)
    report_choice(output, done)
    output.say(f"Fix      {target_path}")
    output.say(f"Report   {report_path}")
    named = "YOUR_CHECKPOINT" if ckpt.endswith(".npz") else ckpt
    output.say(f"Next     {program()} export --fix {target_path} {named}")
    return ExitCode.OK


def _named(evidence: Evidence, label: int) -> str:
    name = evidence.classes.names[label]
    return name if evidence.classes.is_named else f"class {name}"


def _require_validation(ckpt: str, val: str | None) -> str:
    path = Path(ckpt)
    if path.suffix.lower() == ".npy":
        raise UsageError(
            f"{ckpt} holds one array; a choice needs three. Write them with numpy.savez("
            '"arrays.npz", logits=…, labels=…, counts=…) and give that file.'
        )
    if path.suffix.lower() == ".parquet":
        raise UsageError(
            f"{ckpt} is data; the first argument is a checkpoint, and data stand behind --val."
        )
    if val is None:
        raise UsageError(
            "A fix is chosen on validation images and none were given; add --val DATA (images "
            f"that {path.name or 'the model'} was not trained on), or give an .npz of logits."
        )
    return val


def _output_paths(out: str, html: str | None, json: str | None, ckpt: str) -> tuple[Path, Path]:
    """Return where fix and report go; refuse before the work what cannot be written after it."""
    fix = Path(out)
    report = fix.with_suffix(".html") if html is None else Path(html)
    if fix.suffix != ".json":
        raise UsageError(f"--out is {out!r}; expected a name that ends in .json, like fix.json.")
    if html is None and report.is_file() and not _is_ours(report, ">ltdeploy <"):
        raise UsageError(
            f"The report goes to {str(report)!r}, and the file there is no report of ltdeploy's; "
            "it is left alone. Say --html FILE."
        )
    if fix.is_file() and not _is_ours(fix, '"methods"'):
        raise UsageError(
            f"--out is {out!r}, and the file there is no fix of ltdeploy's; it is left alone. "
            "Choose another name."
        )
    written = {"--out": fix, "--html": report}
    if json is not None and json != "-":
        written["--json"] = Path(json)
    taken = {Path(ckpt).resolve(): "what is to be calibrated"}
    for option, path in written.items():
        if not path.parent.is_dir():
            raise UsageError(f"{option} is {str(path)!r} and its folder does not exist; make it.")
        if path.is_dir():
            raise UsageError(f"{option} is {str(path)!r}, a folder; expected a file.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"{option} is {str(path)!r} and cannot be written there.")
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise UsageError(f"{option} would overwrite {other}, {str(path)!r}; choose another.")
    return fix, report


def _is_ours(path: Path, sign: str) -> bool:
    """Return whether a file is one that ltdeploy wrote, of any version, damaged or not."""
    try:
        return sign in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _method_names(method: list[str] | None) -> list[str] | None:
    if not method or method == ["auto"]:
        return None
    if "auto" in method:
        raise UsageError("--method auto tries everything that applies; leave the others out.")
    return method


def _cache_folder(cache: str | None, no_cache: bool) -> Path | None:
    from ..files import default_cache

    if no_cache:
        return None
    return Path(cache) if cache is not None else default_cache()


def _evidence_of_arrays(path: str, trained_with: str | None, force: bool) -> Evidence:
    from ..calibrate import read_npz
    from ..models.trained_with import resolve_trained_with

    told = resolve_trained_with(trained_with, "--trained-with")
    evidence = read_npz(Path(path), force=force)
    if told is None:
        return evidence
    return replace(evidence, context=replace(evidence.context, trained_with=told))


def _evidence_of_images(
    model: Classifier | OnnxClassifier,
    specs: tuple[str, str | None, str | None, str | None],
    trained_with: str | None,
    cache: Path | None,
    force: bool,
    output: Output,
) -> Evidence:
    from ..calibrate import DataSources, evidence_of_checkpoint
    from ..datasets import open_dataset, open_unlabelled

    val, train, target, root = specs
    data = DataSources(
        open_dataset(val, root=root, split="val"),
        None if train is None else open_dataset(train, root=root, split="train"),
        None if target is None else open_unlabelled(target, root=root),
    )
    return evidence_of_checkpoint(
        model,
        data,
        trained_with=trained_with,
        cache=cache,
        force=force,
        track=output.track,
        warn=output.warn,
    )


def _aim(
    objective: str | None,
    target_prior: str | None,
    max_head_loss: float | None,
    root: str | None,
    evidence: Evidence,
    output: Output,
) -> Aim:
    from ..calibrate import Aim, aim_for, prior_of_table
    from ..datasets import read_classes

    if target_prior == "uniform":
        chosen = "balanced" if objective in (None, "overall") else objective
        return Aim(chosen, None, max_head_loss)  # type: ignore[arg-type]
    prior = None
    if target_prior is not None:
        prior = prior_of_table(read_classes(target_prior, root), evidence.classes)
    aim = aim_for(evidence.context, objective, target_prior=prior, max_head_loss=max_head_loss)
    if aim.estimated and aim.target_prior is not None:
        shares = aim.target_prior
        top = sorted(range(len(shares)), key=lambda label: -shares[label])[:3]
        output.say(
            "Target   prior estimated without labels: most frequent "
            + ", ".join(f"{_named(evidence, c)} {100 * shares[c]:.1f} %" for c in top)
            + f"; the objective is {aim.objective}"
            + (", weighted to this estimate" if aim.objective == "overall" else "")
        )
    return aim
