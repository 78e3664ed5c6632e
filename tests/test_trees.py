"""Sums of trees against float64."""

import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax.trees import LONG, sum_over


def test_a_long_sum_in_float32_loses_no_digit_to_its_length():
    """A tenth, 20,000 times: added up one after the other it would be 1e-4 off."""
    tenth, count = np.float32(0.1), 20_000
    plain = np.cumsum(np.full(count, tenth), dtype=np.float32)[-1]
    total = jax.jit(lambda items: sum_over(lambda item: item, items, lambda item: item > 0))(jnp.full(count, tenth))
    assert abs(plain / (count * float(tenth)) - 1) > 1e-5
    assert total.dtype == jnp.float32
    assert abs(float(total) / (count * float(tenth)) - 1) < 1e-7
    assert float(sum_over(lambda item: item, jnp.arange(LONG, dtype=jnp.float32))) == LONG * (LONG - 1) / 2
