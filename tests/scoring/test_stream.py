"""What a row of the table says of a score: each thing that can be the matter, by itself and in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.data.loader import LoadedBatch
from influence_ssl_jax.scoring.scores import Columns
from influence_ssl_jax.scoring.stream import explain_rows, to_table
from influence_ssl_jax.types import Batch


def columns(count=1, **changes) -> Columns:
    """Good scores, but for what is changed."""
    whole = {
        "score": np.full(count, 2.0),
        "score_se": np.full(count, 0.5),
        "alignment_loss": np.full(count, 0.25),
        "gradient_norm": np.full(count, 1.5),
        "pixel_variance": np.full(count, 0.1),
        "brightness": np.full(count, 0.4),
        "contrast": np.full(count, 0.2),
        "residual": np.zeros(count),
        "degenerate": np.zeros(count, bool),
        "unresolved": np.zeros(count, bool),
        "embedding": np.ones((count, 3)),
    }
    return Columns(**(whole | {name: np.asarray(value) for name, value in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"residual": [0.0099]}, ""),
        ({"residual": [0.0234]}, "unconverged solve: relative residual 0.023"),
        ({"residual": [np.inf]}, "unconverged solve: relative residual inf"),
        ({"score": [np.nan]}, "the score is not finite: a gradient overflowed or the solve diverged"),
        (
            {"score": [np.inf], "residual": [1.0]},
            "the score is not finite: a gradient overflowed or the solve diverged",
        ),
        ({"alignment_loss": [np.nan], "score": [np.nan]}, "the alignment loss is not finite"),
        ({"degenerate": [True]}, "zero embedding: the cosine distance is undefined"),
        ({"embedding": [[1.0, np.nan, 0.0]], "degenerate": [True]}, "the network's embedding is not finite"),
    ],
)
def test_each_thing_that_can_be_the_matter_is_said(changes, said):
    assert explain_rows(columns(**changes)) == [said]


def test_a_row_without_a_score_has_nan_and_padding_has_no_row():
    valid, index = np.array([True, False, True, True]), np.array([8, -1, 10, 11])
    batch = Batch(jnp.zeros((4, 1, 1, 1)), jax.random.split(jax.random.key(0), 4), jnp.asarray(index), None)
    held = columns(4, score=[1.0, 7.0, np.inf, 3.0], degenerate=[False, False, False, True], residual=[0.5, 0, 0, 0])
    table = to_table(LoadedBatch(batch, ("a", "", "b", "c"), valid, (), (bytes(16), b"", bytes(16), bytes(16))), held)
    assert table["index"].to_pylist() == [8, 10, 11]
    assert table["id"].to_pylist() == ["a", "b", "c"]
    for name, kept in (("score", 1.0), ("score_se", 0.5)):
        np.testing.assert_array_equal(table[name].to_numpy(), [kept, np.nan, np.nan])
    first, second, third = table["reason"].to_pylist()
    assert first.startswith("unconverged solve")
    assert second.startswith("the score is not finite")
    assert third.startswith("zero embedding")
