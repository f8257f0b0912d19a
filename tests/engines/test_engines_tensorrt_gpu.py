"""TensorRT end to end: runs where a GPU, its driver and TensorRT's library are."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.engines.tensorrt_doctor import diagnose_tensorrt
from ltdeploy.engines.tensorrt_engine import open_tensorrt
from ltdeploy.errors import EngineError
from ltdeploy.export import export_bundle
from ltdeploy.fixes import FixSpec
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.predictor import Predictor

pytestmark = pytest.mark.tensorrt

TOLERANCE = 1e-3  # TF32 is off: float32 sums in another order


@pytest.fixture(scope="module", autouse=True)
def _tensorrt() -> None:
    """Skip, with the reason, where TensorRT does not work."""
    try:
        diagnose_tensorrt()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def bundle(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(bundle_path, tmp_path / "model.ltd")
    return open_bundle(tmp_path / "model.ltd")


def images(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("cuda_graph", ["off", "on"])
def test_answers_as_onnxruntime_does_for_every_batch(bundle: Bundle, cuda_graph: str) -> None:
    reference = OnnxRuntimeEngine(bundle.graph_path)
    engine = open_tensorrt(bundle, {"max_batch": "8", "cuda_graph": cuda_graph})
    for count in (1, 2, 5, 8, 5, 19, 0, 1):
        feeds = {"images": images(count)}
        expected = reference.run(feeds)["logits"]
        found = engine.run(feeds)["logits"]
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    engine.close()


def test_threads_share_it(bundle: Bundle) -> None:
    engine = open_tensorrt(bundle, {"max_batch": "8", "contexts": "3", "cuda_graph": "on"})
    batches = [images(1 + place % 9) for place in range(30)]
    expected = [engine.run({"images": batch})["logits"] for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda batch: engine.run({"images": batch})["logits"], batches))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    engine.close()


def test_a_kept_plan_is_taken_up_and_a_changed_one_is_not(bundle: Bundle) -> None:
    open_tensorrt(bundle).close()
    open_tensorrt(bundle, {"rebuild": "off"}).close()
    (plan,) = (bundle.path / "engines").glob("*.plan")
    plan.write_bytes(plan.read_bytes() + b"\0")
    with pytest.raises(EngineError, match="changed after it was built"):
        open_tensorrt(bundle, {"rebuild": "off"})


@pytest.mark.parametrize(
    "options",
    [{"version_compatible": "on"}, {"hardware_compatible": "ampere_plus"}, {"workspace_mib": "64"}],
    ids=lambda options: next(iter(options)),
)
def test_every_way_to_build_gives_the_golden_answers(
    bundle: Bundle, options: dict[str, str]
) -> None:
    with Predictor(bundle, open_tensorrt(bundle, options)) as predictor:
        predictor.replay_golden()


def test_another_fix_takes_the_place_of_a_build(
    bundle: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    model = load_checkpoint(checkpoint)
    fixes = [FixSpec("tau_norm", {"tau": 0.2})]
    other = export_bundle(model, fixes, tmp_path / "other.ltd").bundle
    engine = open_tensorrt(bundle, {"refit": "on"})
    Predictor(bundle, engine).replay_golden()
    engine.refit_head(other)
    with Predictor(other, engine) as predictor:
        predictor.replay_golden()
