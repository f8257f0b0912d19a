"""Maps and fix files as JSON: exact there and back, strict about what is read."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter, ValidationError

from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap, FixFile, FixSpec, parse_fix, read_fix_file, write_fix_file
from ltdeploy.fixes.encoding import ArrayEntry, MatrixEntry, MethodEntry, Step, decode, encode
from ltdeploy.fixes.fix_file import CheckpointEntry, FixSelection
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import Blend, LogSoftmax, NewHead, compose, steps_of

STEPS: TypeAdapter[tuple[Step, ...]] = TypeAdapter(tuple[Step, ...])
NUMBERS = st.floats(-1e300, 1e300, allow_subnormal=True)


def vectors(size: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, size, elements=NUMBERS)


@st.composite
def maps(draw: st.DrawFn) -> LogitMap:
    """Draw a single map of any kind, of 3 classes and 4 features."""
    vector = vectors(3)
    kind = draw(st.sampled_from(["diagonal", "full", "head", "l2", "log_softmax", "blend"]))
    match kind:
        case "diagonal":
            return AffineMap(draw(vector), draw(vector))
        case "full":
            return AffineMap(draw(vectors(9)).reshape(3, 3), draw(vector))
        case "head":
            return NewHead(draw(vectors(12)).reshape(3, 4), draw(vector))
        case "l2":
            return NewHead(draw(vectors(12)).reshape(3, 4), draw(vector), draw(vectors(4)), True)
        case "log_softmax":
            return LogSoftmax(3)
    return Blend(draw(vector), draw(vector), draw(vectors(4)), draw(NUMBERS))


def numbers_of(one: LogitMap) -> list[tuple[str, str, bytes]]:
    """Return every field of every step, arrays bit by bit."""
    return [
        (type(step).__name__, name, b"none" if value is None else np.asarray(value).tobytes())
        for step in steps_of(one)
        for name, value in vars(step).items()
    ]


@given(one=maps())
@settings(max_examples=200, deadline=None)
def test_a_map_comes_back_bit_by_bit(one: LogitMap) -> None:
    text = STEPS.dump_json(encode(one))
    for read in (STEPS.validate_json(text), STEPS.validate_python(json.loads(text))):
        assert numbers_of(decode(read)) == numbers_of(one)


def test_a_chain_comes_back_in_order() -> None:
    rng = np.random.default_rng(0)
    chain = compose(
        NewHead(rng.normal(size=(3, 4)), rng.normal(size=3), normalise=True),
        LogSoftmax(3),
        AffineMap(rng.normal(size=(3, 3)), rng.normal(size=3)),
        Blend(rng.normal(size=3), rng.normal(size=3), rng.normal(size=4), 0.1),
    )
    assert [step.kind for step in encode(chain)] == ["new_head", "log_softmax", "affine", "blend"]
    assert numbers_of(decode(encode(chain))) == numbers_of(chain)


def test_vectors_are_lists_and_matrices_base64() -> None:
    (step,) = json.loads(STEPS.dump_json(encode(AffineMap(np.array([0.1, 2.0]), np.zeros(2)))))
    assert step == {"kind": "affine", "scale": [0.1, 2.0], "shift": [0.0, 0.0]}
    rows = np.array([[0.1, 2.0], [3.0, 4.0]])
    (step,) = json.loads(STEPS.dump_json(encode(AffineMap(rows, np.zeros(2)))))
    assert (step["scale"]["dtype"], step["scale"]["shape"]) == ("<f8", [2, 2])
    content = base64.b64decode(step["scale"]["base64"])
    np.testing.assert_array_equal(np.frombuffer(content, "<f8").reshape(2, 2), rows)


def test_what_float32_holds_exactly_takes_half_the_room() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    (step,) = encode(NewHead(weight.astype(np.float64), np.zeros(3)))
    assert step.kind == "new_head"
    assert step.weight.dtype == "<f4"
    np.testing.assert_array_equal(step.weight.array(), weight)
    assert step.weight.array().dtype == np.float64


def test_an_array_may_be_big_endian_or_transposed() -> None:
    array = np.arange(6.0).reshape(2, 3)
    for same in (array.astype(">f8"), np.asfortranarray(array)):
        np.testing.assert_array_equal(ArrayEntry.of(same).array(), array)


def entry(**changed: Any) -> dict[str, Any]:
    content = base64.b64encode(np.arange(6, dtype="<f8").tobytes()).decode()
    return {"dtype": "<f8", "shape": [2, 3], "base64": content, **changed}


def packed(values: Any) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f8").tobytes()).decode()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (entry(shape=[2, 4]), "cannot hold shape"),
        (entry(shape=[2]), "shape"),
        (entry(shape=[2, -3]), "greater than or equal to 0"),
        (entry(shape=[1 << 31, 1 << 31]), "MiB; at most"),
        (entry(shape=["2", 3]), "valid integer"),
        (entry(dtype="<f4"), "cannot hold shape"),
        (entry(dtype="|O8"), "dtype"),
        (entry(dtype="<u8"), "dtype"),
        (entry(base64="!" * 64), "base64"),
        (entry(base64=packed([0, 1, 2, 3, 4, np.nan])), "NaN or infinity"),
        (entry(base64=packed([0, 1, 2, 3, 4, -np.inf])), "NaN or infinity"),
        (entry(pickle="x"), "pickle"),
        ("AAAA", "dictionary"),
    ],
)
def test_a_matrix_that_is_not_as_it_says_is_refused(content: Any, text: str) -> None:
    assert MatrixEntry.model_validate(entry()).array().shape == (2, 3)
    with pytest.raises(ValidationError, match=text):
        MatrixEntry.model_validate(content)


DIAGONAL: dict[str, Any] = {"kind": "affine", "scale": [1.0, 2.0], "shift": [0.0, 1.0]}


@pytest.mark.parametrize(
    "step",
    [
        {**DIAGONAL, "shift": [0.0, float("nan")]},
        {**DIAGONAL, "shift": ["0.0", 1.0]},
        {**DIAGONAL, "shift": [True, 1.0]},
        {**DIAGONAL, "shift": []},
        {**DIAGONAL, "scale": [[1.0, 0.0], [0.0, 1.0]]},
        {**DIAGONAL, "bias": [1.0]},
        {**DIAGONAL, "kind": "convolution"},
        {"scale": [1.0], "shift": [0.0]},
        {"kind": "log_softmax"},
        {"kind": "log_softmax", "classes": 0},
        {"kind": "new_head", "weight": entry(), "bias": [1.0, 2.0], "normalise": "yes"},
    ],
)
def test_steps_are_read_strictly(step: dict[str, Any]) -> None:
    assert decode(STEPS.validate_python([DIAGONAL])).classes == 2
    with pytest.raises(ValidationError):
        STEPS.validate_python([step])


def test_steps_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(FixError, match="2 and 3 classes"):
        decode(STEPS.validate_python([DIAGONAL, {"kind": "log_softmax", "classes": 3}]))
    with pytest.raises(FixError, match="needs A of shape"):
        decode(STEPS.validate_python([{**DIAGONAL, "shift": [0.0]}]))
    with pytest.raises(FixError, match="no map"):
        decode(())


def test_parameters_keep_their_kind_and_are_shown_short() -> None:
    told = {"tau": 0.75, "bias": "scale", "boost": [1, 2.5, 3]}
    method = MethodEntry.model_validate({"method": "x", "parameters": told})
    assert method.parameters == {"tau": 0.75, "bias": "scale", "boost": (1.0, 2.5, 3.0)}
    assert method.shown() == {"tau": "0.75", "bias": "scale", "boost": "[3 values]"}
    for value in (True, None, float("nan"), ["a"]):
        with pytest.raises(ValidationError):
            MethodEntry.model_validate({"method": "x", "parameters": {"tau": value}})


HASHES = np.array([2**64 - 1, 3, 0, 3], dtype=np.uint64)


first = {"kind": "affine", "scale": [1.0, 0.0], "shift": [0.0, 0.0]}
second = {"kind": "affine", "scale": [0.0, 1.0], "shift": [3.0, 0.0]}
huge = {"kind": "affine", "scale": [1e25, 1.0], "shift": [0.0, 0.0]}


def fitted_file() -> FixFile:
    return FixFile(
        methods=(MethodEntry(method="tau_norm", parameters={"tau": 0.7, "bias": "scale"}),),
        steps=encode(AffineMap(np.array([0.1, 2.0]), np.array([0.0, -1.0]))),
        checkpoint=CheckpointEntry(name="ckpt.pt", sha256="ab" * 32),
        selected_on=FixSelection(
            name="val",
            images=4,
            objective="balanced",
            balanced_before=30.0,
            balanced_after=40.5,
            notes=("τ is the strongest tried",),
            hashes=FixSelection.packed(HASHES),
        ),
        class_names=("moth", "beetle"),
        train_counts=(90, 10),
    )


def test_a_fix_file_comes_back_as_it_was(tmp_path: Path) -> None:
    written = fitted_file()
    write_fix_file(tmp_path / "fix.json", written)
    read = read_fix_file(tmp_path / "fix.json")
    assert read == written
    np.testing.assert_array_equal(read.hashes(), [0, 3, 2**64 - 1])
    assert read.hashes().dtype == np.uint64
    fix = read.logit_map()
    assert isinstance(fix, AffineMap)
    np.testing.assert_array_equal(fix.scale, [0.1, 2.0])
    assert read.selected_on is not None
    assert "hashes" not in read.selected_on.entry().model_dump()
    assert parse_fix(str(tmp_path / "fix.json")) == [read]
    content = json.loads((tmp_path / "fix.json").read_text(encoding="utf-8"))
    fitted = ["steps", "checkpoint", "selected_on", "class_names", "train_counts"]
    assert list(content) == ["schema", "methods", *fitted]
    assert content["selected_on"]["hashes"]["dtype"] == "<u8"


def test_a_file_without_steps_is_a_list_of_what_to_fit(tmp_path: Path) -> None:
    file = tmp_path / "fix.json"
    methods = [{"method": "logit_adjustment", "parameters": {"tau": "auto"}}]
    file.write_text(json.dumps({"schema": 1, "methods": methods}))
    assert parse_fix(str(file)) == [FixSpec("logit_adjustment", {"tau": "auto"})]
    assert read_fix_file(file).logit_map() is None
    assert len(read_fix_file(file).hashes()) == 0


def test_the_fix_file_of_the_specification_is_one(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "bundle.md"
    example = page.read_text(encoding="utf-8").partition("```jsonc\n")[2].partition("```")[0]
    (tmp_path / "fix.json").write_text(example)
    read = read_fix_file(tmp_path / "fix.json")
    np.testing.assert_array_equal(read.hashes(), [1, 2])
    assert read.model_dump(by_alias=True).keys() == json.loads(example).keys()


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    with pytest.raises(FixError, match="Cannot write the fix file"):
        write_fix_file(tmp_path / "absent" / "fix.json", fitted_file())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.pop("schema"), "lacks 'schema'"),
        (lambda c: c.pop("methods"), "lacks 'methods'"),
        (lambda c: c.update(schema=2), "schema 2; this version reads 1"),
        (lambda c: c.update(schema=True), "schema True"),
        (lambda c: c.update(stesp=1), "unknown key 'stesp'. Did you mean 'steps'"),
        (lambda c: c["methods"][0].update(method="tau_nrom"), "Did you mean 'tau_norm'"),
        (lambda c: c["methods"][0].pop("parameters"), r"methods\.0\.parameters"),
        (lambda c: c.update(methods="tau_norm"), "not valid at methods"),
        (lambda c: c.update(steps=[]), "not valid at steps"),
        (lambda c: c["steps"][0].update(shift=[0.0]), "needs A of shape"),
        (lambda c: c["steps"][0]["shift"].append(float("inf")), "finite"),
        (lambda c: c["checkpoint"].update(sha256="abc"), r"checkpoint\.sha256"),
        (lambda c: c["selected_on"]["hashes"].update(shape=[4]), "cannot hold shape"),
        (lambda c: c["selected_on"]["hashes"].update(dtype="<f8"), r"hashes\.dtype"),
        (lambda c: c["selected_on"].update(images=-1), r"selected_on\.images"),
        (lambda c: c.update(steps=None), "'checkpoint', which needs 'steps'"),
        (
            lambda c: c.update(steps=None, checkpoint=None, selected_on=None),
            "'class_names', which needs 'steps'",
        ),
        (lambda c: c.update(methods=[]), "'methods' nothing that made them"),
        (lambda c: c.update(steps=c["steps"] * 33), "has more than 32 steps"),
        (lambda c: c.update(methods=c["methods"] * 33), "has more than 32 methods"),
        (lambda c: c["steps"][0].update(scale=[0.0, 0.0]), "every image the same answer"),
        (lambda c: c.update(steps=[first, second]), "every image the same answer"),
        (lambda c: c["steps"][0].update(scale=[1e300, 1.0]), r"scale of the AffineMap.*1e\+300"),
        (lambda c: c["steps"][0].update(shift=[0.0, -1e39]), r"shift of the AffineMap.*1e\+39"),
        (lambda c: c.update(steps=[huge] * 2), r"scale of the AffineMap.*1e\+50"),
        (lambda c: c.update(steps=[huge] * 20), "not finite"),
        (lambda c: c["class_names"].append("ant"), "'class_names' has 3 entries"),
        (lambda c: c["train_counts"].pop(), "'train_counts' has 1 entries"),
        (lambda c: c["train_counts"].append(-1), r"train_counts\.2"),
        (lambda c: c.update(train_counts=[2**63, 1]), r"train_counts\.0"),
        (lambda c: c.update(train_counts=[0, 0]), "counts are zero"),
        (lambda c: c.update(class_names=["moth", "moth"]), "'moth' stands twice"),
        (lambda c: c.update(class_names=["moth", " "]), "empty name"),
    ],
)
def test_a_damaged_fix_file_says_where(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    file = tmp_path / "fix.json"
    write_fix_file(file, fitted_file())
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(FixError, match=text) as caught:
        read_fix_file(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "blind",
    [
        AffineMap(np.ones((3, 3)), np.arange(3.0)),
        NewHead(np.zeros((3, 4)), np.arange(3.0)),
        NewHead(np.tile(np.arange(4.0), (3, 1)), np.arange(3.0), normalise=True),
    ],
    ids=["equal rows", "head of zeros", "head of equal rows"],
)
def test_a_map_that_looks_at_nothing_is_refused(blind: LogitMap) -> None:
    methods = (MethodEntry(method="crt", parameters={"l2": 0.1}),)
    with pytest.raises(FixError, match="every image the same answer"):
        FixFile(methods=methods, steps=encode(blind))


@pytest.mark.parametrize(
    "seeing",
    [
        AffineMap(np.diag([1.0, 0.0, 0.0]), np.zeros(3)),
        AffineMap(np.array([1e30, 1.0, 1e-30]), np.array([-1e30, 0.0, 0.0])),
        NewHead(np.eye(3), np.zeros(3)),
        LogSoftmax(3),
        Blend(np.zeros(3), np.arange(3.0), np.ones(4), 0.0),
    ],
    ids=["one class", "at the limit", "head", "log-softmax", "blend"],
)
def test_a_map_that_looks_at_something_is_taken(seeing: LogitMap) -> None:
    methods = (MethodEntry(method="crt", parameters={"l2": 0.1}),)
    assert FixFile(methods=methods, steps=encode(seeing)).logit_map() is not None


def test_no_fix_at_all_may_be_written() -> None:
    none = FixFile(methods=(), steps=encode(AffineMap.identity(3)))
    fitted = none.logit_map()
    assert fitted is not None
    assert fitted.is_identity


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "not a JSON object"),
        ("\udcff", "is not JSON"),
    ],
    ids=["cut", "deep", "list", "bytes"],
)
def test_what_is_no_fix_file_is_said_so(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "fix.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(FixError, match=text):
        read_fix_file(file)
    with pytest.raises(FixError, match="Cannot read the fix file"):
        read_fix_file(tmp_path)
