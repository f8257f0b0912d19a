"""What ``calibrate`` tries: each method with the values of its tunable parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..fixes import FIXES, Fix, FixContext, FixSpec, parse_spec

__all__ = ["AUTO", "Candidate", "Skipped", "candidates", "parse_candidate"]

# Everything that applies to classifiers, simplest first; what lacks its evidence is left out with
# the reason.
AUTO = (
    "temperature",
    "logit_adjustment",
    "tau_norm",
    "tau_norm:bias=drop",
    "group_boost",
    "lws",
    "bias_corrected_temperature",
    "vector",
    "disalign",
    "ncm",
    "ncm:variant=l2",
    "ncm:variant=centred_l2",
    "crt",
    "matrix",
    "dirichlet",
    "platt",
    "bias_corrected_temperature+label_shift:source=validation",
)
# What is defined for the independent scores of a sigmoid head too.
_OF_SIGMOID = ("temperature", "tau_norm", "platt")
# ``auto`` does not try to learn ten times as many numbers as there are images, nor what takes
# longer than everything else together; a method that the user names is tried.
_MOST_FREEDOM = 10
_MOST_CLASSES_SQUARED = 200**2
_SHORTEST_SWEEP = 5


@dataclass(frozen=True)
class Candidate:
    """A method at each value of its tunable parameter, or a chain of methods.

    Parameters
    ----------
    name : as the user would type it, without the tunable parameter.
    chains : the fixes to apply in order, one chain per value, mildest first; an empty chain leaves
        the decisions as they are.
    parameter : name of the tunable parameter, None where there is none.
    values : its values, as many as chains; empty where there is none.
    """

    name: str
    chains: tuple[tuple[Fix, ...], ...]
    parameter: str | None = None
    values: tuple[float, ...] = ()

    @property
    def changes_decisions(self) -> bool:
        """Whether anything but the confidence can change."""
        return any(self.chains)

    @property
    def is_sweep(self) -> bool:
        """Whether its values are many enough for a curve over them."""
        return len(self.values) >= _SHORTEST_SWEEP

    @property
    def learns_from_validation(self) -> bool:
        """Whether fitting looks at validation images, so that each fold needs its own fit."""
        return any(fix.learns_from_validation for fix in self.chains[0])

    @property
    def calibrates(self) -> bool:
        """Whether the last fix sets the confidence itself."""
        return bool(self.chains[0]) and self.chains[0][-1].calibrates

    def freedom(self, context: FixContext) -> int:
        """Return how many numbers are learnt from data."""
        return sum(fix.freedom(context) for fix in self.chains[0])


@dataclass(frozen=True)
class Skipped:
    """A method that was not tried, and why."""

    method: str
    reason: str


def candidates(
    names: Sequence[str] | None, context: FixContext
) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
    """Return what is to be tried, and what is not, with reasons.

    Parameters
    ----------
    names : ``NAME[:k=v,…]``, or several joined by ``+``; None takes all of :data:`AUTO` that can be
        learnt from as many images as there are.

    Raises
    ------
    FixError
        For unknown names or parameters.
    """
    if names is not None:
        return tuple(parse_candidate(name) for name in dict.fromkeys(names)), ()
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    for candidate in map(parse_candidate, AUTO):
        reason = _hopeless(candidate, context)
        if reason is None:
            found.append(candidate)
        else:
            skipped.append(Skipped(candidate.name, reason))
    return tuple(found), tuple(skipped)


def parse_candidate(name: str) -> Candidate:
    """Read ``NAME[:k=v,…]``; of several joined by ``+`` the first one is tuned.

    Raises
    ------
    FixError
        For unknown names or parameters, or a later method without a value that it needs.
    """
    first, *rest = name.split("+")
    later = tuple(parse_spec(part).fixed() for part in rest)
    spec = _open_spec(first)
    if spec.is_auto and not FIXES[spec.method].grid:
        return Candidate(name, (later,))  # temperature alone: what follows every method anyway
    if not spec.is_auto:
        return Candidate(name, ((spec.fixed(), *later),))
    grid = FIXES[spec.method].grid
    chains = tuple((spec.build(value), *later) for value in grid)
    return Candidate(name, chains, spec.tunable, grid)


def _open_spec(text: str) -> FixSpec:
    """Return a spec whose tunable parameter is ``auto`` unless the text gives it a value."""
    method = text.partition(":")[0].strip()
    tunable = FIXES[method].tunable if method in FIXES else None
    if tunable is None or f"{tunable}=" in text:
        return parse_spec(text)
    return parse_spec(f"{text}{',' if ':' in text else ':'}{tunable}=auto")


def _hopeless(candidate: Candidate, context: FixContext) -> str | None:
    assert context.labels is not None
    missing = {need for fix in candidate.chains[0] for need in fix.needs} - context.evidence()
    sigmoid = context.head is not None and context.head.activation == "sigmoid"
    if sigmoid and candidate.name.split(":")[0] not in _OF_SIGMOID:
        return "is defined for softmax heads; this one's activation is sigmoid"
    if missing or not candidate.learns_from_validation:
        return None  # fitting says what is missing
    freedom = candidate.freedom(context)
    if freedom > _MOST_FREEDOM * len(context.labels):
        return (
            f"it learns {freedom:,} numbers, too many for {len(context.labels):,} images; name it "
            f"with --method {candidate.name} to try all the same"
        )
    if freedom > _MOST_CLASSES_SQUARED + 1000:
        return (
            f"it learns {freedom:,} numbers, which takes long; name it with --method "
            f"{candidate.name} to try all the same"
        )
    return None
