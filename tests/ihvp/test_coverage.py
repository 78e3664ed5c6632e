"""Every backend takes every loss, curvature and measurement, or says why not; what no layer explains is never dropped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.errors import CurvatureError, StructureError
from influence_ssl_jax.ihvp import BACKENDS, CG, Arnoldi, Diagonal, Exact, Identity, LiSSA, LoGra
from influence_ssl_jax.losses import CosineDistance, SimCLR, SquaredEuclid
from tests.ihvp.fitted import SMALL

TAKE_HESSIANS = {Exact, CG, LiSSA, Arnoldi, Identity}
NEED_NO_LAYERS = {Exact, CG, LiSSA}
every = pytest.mark.parametrize("kind", BACKENDS, ids=lambda kind: kind.__name__)


class Free(nn.Module):
    """A weight that belongs to no layer."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        x = x.reshape(x.shape[0], -1)
        return x @ self.param("weight", nn.initializers.normal(), (x.shape[1], 2))


def scored_shapes(backend, problem, measurement):
    """Trace fit, forms, cross forms and solve, nothing compiled."""

    def whole(problem, damping):
        state = backend.fit(problem, jax.random.key(0))
        batch = problems.first_batch(problem)
        gradients = measured(measurement, problem.params, problem.frozen, batch, 2).gradients
        form = backend.draw_gram(state, gradients, damping)
        cross = backend.bilinear_form(state, gradients, gradients, damping)
        return form, cross, backend.solve(state, problem.params, damping)

    return jax.eval_shape(whole, problem, jnp.asarray(0.1))


@every
@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher", "hessian"])
def test_every_loss_curvature_and_measurement_is_taken(kind, curvature):
    """Every loss with the default curvature; every curvature with a separable and with a batch-coupled loss."""
    losses = problems.LOSSES if curvature == "ggn" else (CosineDistance(), SimCLR(0.5))
    for number, loss in enumerate(losses):
        problem = problems.problem(loss, curvature, module=problems.Small())
        measurement = problems.objective((CosineDistance(), SquaredEuclid())[number % 2], problems.Small())
        if curvature == "hessian" and kind not in TAKE_HESSIANS:
            with pytest.raises(CurvatureError, match=kind.__name__):
                scored_shapes(SMALL[kind], problem, measurement)
            continue
        form, cross, solved = scored_shapes(SMALL[kind], problem, measurement)
        assert form.values.shape == (4, 2, 2)
        assert form.residual.shape == (4,)
        assert cross.shape == (8, 8)
        assert jax.tree.map(jnp.shape, solved) == jax.tree.map(jnp.shape, problem.params)


@every
def test_what_needs_layers_says_so(kind):
    problem = problems.problem(CosineDistance(), module=Free(), image=2)
    if kind in NEED_NO_LAYERS:
        scored_shapes(SMALL[kind], problem, problem.objective)
        return
    with pytest.raises(StructureError, match=r"weight.*materialise"):
        scored_shapes(SMALL[kind], problem, problem.objective)


def test_arnoldi_without_complement_needs_no_layers():
    problem = problems.problem(CosineDistance(), module=Free(), image=2)
    scored_shapes(Arnoldi(4, 2, complement="drop"), problem, problem.objective)


@pytest.mark.parametrize("backend", [Diagonal(unexplained="materialise"), LoGra(rank=4, unexplained="materialise")])
def test_what_no_layer_explains_counts_when_asked_for(backend):
    """LoGra's block at full rank is C itself; the diagonal that of C."""
    problem = problems.problem(CosineDistance(), "empirical_fisher", module=Free(), image=2)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    exact = jax.jit(Exact().fit)(problem, jax.random.key(0))
    matrix = np.asarray((exact.eigenvectors * exact.eigenvalues[None]) @ exact.eigenvectors.T)
    kept = np.diag(np.diag(matrix)) if isinstance(backend, Diagonal) else matrix
    got = jax.jit(backend.solve)(state, problem.params, jnp.asarray(0.01))
    want = np.linalg.solve(kept + 0.01 * np.eye(len(matrix)), np.asarray(trees.ravel(problem.params)))
    np.testing.assert_allclose(trees.ravel(got), want, rtol=1e-9)
