"""What ``export --precision`` says of the precision: what it cost, and what was put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError, did_you_mean
from .output import Output

if TYPE_CHECKING:
    from ltdeploy.export import Exported

    from ..manifest import Precision

__all__ = ["report_precision", "require_precision"]


def require_precision(
    precision: str, *, calibration: str | None, html: str | None, gated: bool
) -> Precision:
    """Return the precision; raise :class:`UsageError` unless its options go together."""
    from ..manifest import PRECISIONS

    named = next((name for name in PRECISIONS if name == precision), None)
    if named is None:
        raise UsageError(
            f"--precision is {precision!r}; expected one of {', '.join(PRECISIONS)}."
            f"{did_you_mean(precision, PRECISIONS)}"
        )
    if precision in ("fp32", "bf16") and calibration is not None:
        raise UsageError(
            "--calibration measures the ranges that int8 and fp16 need, and --precision is "
            f"{precision}; leave it out, or say --precision int8."
        )
    if html is not None and not (gated and precision != "fp32"):
        raise UsageError(
            "--html shows what a --precision below fp32 costs each group, which --val DATA "
            "measures; add both, or leave it out."
        )
    return named


def report_precision(output: Output, exported: Exported) -> None:
    """Print how the precision came about, and every division of the layers that was tried."""
    from ..verify.result import name_some

    lowered = exported.lowered
    if lowered is None:
        return
    graph = exported.bundle.manifest.graphs[0]
    entry = lowered.entry
    line = f"Lowered  {graph.precision}: {100 * entry.low_share:.1f} % of the multiply-adds"
    if entry.calibration is not None:
        told = entry.calibration
        line += f"; ranges from {told.images} images of {told.classes} classes of {told.name}"
    output.say(line)
    for tensor in lowered.large[:5]:
        output.say(
            f"         float32 around {tensor.tensor}: values up to {tensor.largest:.3g}, more "
            "than fp16 holds with room to spare"
        )
    if not lowered.checked:
        output.warn(
            f"{lowered.engine} computes {graph.precision} in float32 on this processor, so no gate "
            f"can say here what {graph.precision} costs: verify the bundle where it will run"
        )
        return
    if lowered.found is None:
        output.say("         not gated: with --val DATA the layers that hurt the tail are restored")
        return
    found, trade = lowered.found, lowered.trade
    groups = [name for name in exported.bundle.classes.rule.names if name in found.chosen.groups]
    output.table(
        ("fp32 layers", "low", *groups, "overall", "flips", "MB", "speed", "gate"),
        [
            (
                f"{'▸ ' if row.trial is found.chosen else ''}{len(row.trial.restored)}",
                f"{100 * row.low_share:.1f} %",
                *(_loss(row.trial.groups[name].difference) for name in (*groups, "overall")),
                f"{row.trial.flips:,}",
                f"{row.trial.size_bytes / 1e6:.1f}",
                f"{row.speed:.2f} ×",
                row.trial.verdict,
            )
            for row in trade
        ],
    )
    output.say(
        f"Differences from float32 in points of class-averaged accuracy, on {entry.gate.images:,} "
        f"images of {entry.gate.name}; speed against the float32 graph on "
        f"{lowered.engine}, measured here."
        if entry.gate is not None
        else ""
    )
    chosen = next(row for row in trade if row.trial is found.chosen)
    if chosen.speed < 1.0:
        output.warn(
            f"{graph.precision} is slower than float32 on {lowered.engine} here "
            f"({chosen.speed:.2f} ×); try --engine openvino, or keep fp32 for this engine"
        )
    if found.chosen.restored:
        output.say(f"Restored {name_some(found.chosen.restored)}; the report and --json name all")
    if not found.fewest:
        output.say("         time ran out before fewer were ruled out; run again to go on")
    if found.chosen.verdict == "inconclusive":
        output.say(
            "         the gate cannot decide on so few images: what is restored may follow "
            "single ones. Give --val more of them"
        )


def _loss(points: float | None) -> str:
    return "–" if points is None else f"{points:+.2f}"
