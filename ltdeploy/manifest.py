"""The bundle's manifest as typed models; docs/bundle.md is the written specification."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from .canvas import Canvas
from .classes import ClassTable, GroupRule
from .errors import BundleError
from .fixes.encoding import MethodEntry, SelectionEntry, Step, Strict, decode
from .fixes.logit_map import LogitMap
from .postprocess import KeepRule, ScoreRule
from .preprocessing import Preprocessing

__all__ = [
    "PRECISIONS",
    "SCHEMA_VERSION",
    "CalibrationEntry",
    "ClassEntry",
    "DetectionEntry",
    "FileEntry",
    "FixEntry",
    "GateEntry",
    "GraphEntry",
    "HeadEntry",
    "LoweringEntry",
    "Manifest",
    "MethodEntry",
    "Precision",
    "SelectionEntry",
    "SourceEntry",
    "TensorEntry",
]

SCHEMA_VERSION: Literal[3] = 3  # 1 had float32 graphs only, 2 only classifiers; both are read

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class ClassEntry(Strict):
    """One class, in label order."""

    name: str
    train_count: Count
    group: str


class GroupEntry(Strict):
    """How training counts make groups: a class is in ``names[i]`` above ``above[i]`` images."""

    names: tuple[str, ...]
    above: tuple[int, ...]


class HeadEntry(Strict):
    """The last linear map as it was in the checkpoint, without its weights."""

    kind: Literal["linear", "cosine"]
    path: str
    features: Annotated[int, Field(ge=1)]
    bias: bool
    scale: Finite
    background: int | None
    activation: Literal["softmax", "sigmoid", "seesaw", "eqlv2"]


class DetectionEntry(Strict):
    """How the raw outputs of a detector become detections: scores, and which of them are kept."""

    scores: dict[str, Any]
    keep: dict[str, Any]

    def score_rule(self) -> ScoreRule:
        """Return how rows of logits become scores."""
        rule: ScoreRule = _rule(ScoreRule, self.scores)
        return rule

    def keep_rule(self) -> KeepRule:
        """Return which candidates become detections."""
        rule: KeepRule = _rule(KeepRule, self.keep)
        return rule


def _rule(kind: Any, values: dict[str, Any]) -> Any:
    """Build a rule from JSON values, which have no tuples; a wrong key or type is a ValueError."""
    try:
        return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except TypeError as error:
        raise ValueError(str(error)) from error


class FixEntry(Strict):
    """What was done to the logits: by name, and as the steps of the map that all of it makes."""

    methods: tuple[MethodEntry, ...]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    folded: Literal["weights", "nodes", "none"]
    selected_on: SelectionEntry | None = None
    notes: tuple[str, ...] = ()

    def logit_map(self) -> LogitMap:
        """Return the map; the identity where nothing was done."""
        return decode(self.steps)


class TensorEntry(Strict):
    """A graph input or output; a text in ``shape`` is an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class CalibrationEntry(Strict):
    """The images that ranges were measured on, and how many classes they show."""

    name: str
    images: Count
    classes: Count


class GateEntry(Strict):
    """The images that precision was chosen on, and what the gate said there."""

    name: str
    images: Count
    margin: Finite
    verdict: Literal["pass", "inconclusive", "fail"]
    engine: str


class LoweringEntry(Strict):
    """How a graph of low precision was made.

    Attributes
    ----------
    restored : layers that the search put back into float32; the head, and in int8 the first layer,
        always are.
    low_share : share of the multiply-adds in low precision.
    calibration : what ranges were measured on: int8's training images; for fp16 training images or,
        without any, images of the gate. None for bf16, and for fp16 whose range was checked on the
        golden samples alone.
    gate : None where none was run.
    """

    restored: tuple[str, ...]
    low_share: Annotated[float, Field(ge=0, le=1)]
    calibration: CalibrationEntry | None
    gate: GateEntry | None


class GraphEntry(Strict):
    """One executable file of the bundle.

    Attributes
    ----------
    golden_difference : largest difference from the golden logits when it was exported, relative to
        the largest of them.
    lowering : None for float32.
    """

    file: str
    precision: Precision
    opset: int
    nodes: int
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    golden_difference: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    lowering: LoweringEntry | None = None


class SourceEntry(Strict):
    """The checkpoint that the bundle was made from; ``path`` is relative to the bundle's parent.

    ``settings`` is a digest of what else decided on how it computes, such as a config beside it.
    """

    path: str
    sha256: Sha256
    layout: str
    trained_with: str | None
    notes: tuple[str, ...] = ()
    settings: str | None = None


class FileEntry(Strict):
    """Hash and size of one file."""

    sha256: Sha256
    bytes: Count


class Manifest(Strict):
    """Everything that is true of a bundle and is not an array.

    Attributes
    ----------
    preprocessing : fields of :class:`~ltdeploy.preprocessing.Preprocessing`, or of a detector's
        :class:`~ltdeploy.canvas.Canvas`.
    detection : of detectors only.
    """

    schema_version: Literal[1, 2, 3] = Field(alias="schema")
    task: Literal["classification", "detection"]
    name: str
    created: str
    arch: str
    classes: tuple[ClassEntry, ...]
    groups: GroupEntry
    head: HeadEntry
    fix: FixEntry
    preprocessing: dict[str, Any]
    detection: DetectionEntry | None = None
    graphs: Annotated[tuple[GraphEntry, ...], Field(min_length=1)]
    source: SourceEntry
    versions: dict[str, str]
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        table = self.class_table()
        stated = tuple(entry.group for entry in self.classes)
        if table.groups != stated:
            raise ValueError("the classes' groups contradict their counts and the group rule")
        if (self.task == "detection") != (self.detection is not None):
            raise ValueError(f"the task is {self.task!r}; detectors alone have 'detection'")
        fixed = self.fix.logit_map().classes
        if self.detection is not None:
            self.canvas()
            self.detection.keep_rule()
            fixed = len(self.detection.score_rule().foreground(fixed))
        else:
            self.image_preprocessing()
        if fixed != len(table):
            raise ValueError(f"the fix is for {fixed} of {len(table)} classes")
        for name in [*self.files, *(graph.file for graph in self.graphs)]:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
                raise ValueError(f"the file name {name!r} leaves the bundle's folder")
        for graph in self.graphs:
            if graph.file not in self.files:
                raise ValueError(f"the graph {graph.file!r} is not among the hashed files")
        return self

    def class_table(self) -> ClassTable:
        """Return names, counts and group rule."""
        return ClassTable(
            tuple(entry.name for entry in self.classes),
            tuple(entry.train_count for entry in self.classes),
            GroupRule(self.groups.names, self.groups.above),
        )

    def image_preprocessing(self) -> Preprocessing:
        """Return how photographs are made ready for a classifier's graph.

        Raises
        ------
        BundleError
            If it is a detector's.
        """
        if self.task == "detection":
            raise BundleError(
                f"{self.name} is a detector, and a classifier was expected: what was asked for is "
                "not there for detectors yet."
            )
        return Preprocessing.from_dict(self.preprocessing)

    def canvas(self) -> Canvas:
        """Return how photographs come onto a detector's canvas.

        Raises
        ------
        BundleError
            If it is a classifier's.
        """
        if self.task != "detection":
            raise BundleError(f"{self.name} is a classifier, and a detector was expected.")
        return Canvas.from_dict(self.preprocessing)

    def to_json(self) -> str:
        """Return the file's text."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"
