"""What measuring a batch gives beside its gradients."""

import jax
import numpy as np

from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.losses import CosineDistance
from tests import problems


def test_the_embedding_that_is_kept_is_that_of_the_clean_image():
    problem = problems.problem(CosineDistance(), module=problems.Linear(), image=3)
    batch = problems.first_batch(problem)
    found = jax.jit(measured, static_argnums=(0, 4))(problem.objective, problem.params, problem.frozen, batch, 2)
    inputs = (np.asarray(batch.image).reshape(4, -1) - 0.4) / 0.5
    np.testing.assert_allclose(found.embeddings, inputs @ np.asarray(problem.params["linear"]["kernel"]), rtol=1e-12)
    assert found.values.shape == (2, 4)
    assert not np.any(found.degenerate)
