"""Small numeric helpers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ltdeploy.arrays import top_k


@given(
    scores=arrays.arrays(
        np.float32, st.tuples(st.integers(0, 4), st.integers(1, 12)), elements=st.integers(-2, 2)
    ),
    k=st.integers(1, 15),
)
def test_top_k_is_the_head_of_a_stable_sort(scores: np.ndarray, k: int) -> None:
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = top_k(scores, k)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)
