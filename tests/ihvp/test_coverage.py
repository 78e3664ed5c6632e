"""Every backend takes every loss, curvature and measurement, or says why not; what no layer explains is never dropped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.errors import CurvatureError, StructureError
from influence_ssl_jax.ihvp import BACKENDS, CG, EKFAC, Arnoldi, Diagonal, Exact, Gram, Identity, LiSSA, LoGra
from influence_ssl_jax.losses import CosineDistance, SimCLR, SquaredEuclid
from tests import problems
from tests.ihvp.fitted import SMALL, fitted

TAKE_HESSIANS = {Exact, CG, LiSSA, Arnoldi, Identity}
NEED_NO_LAYERS = {Exact, CG, LiSSA}
READINGS = (Exact, Gram, EKFAC)
"""One backend for every way to read a problem; what a backend does with what it read knows no loss and no curvature."""
every = pytest.mark.parametrize("kind", BACKENDS, ids=lambda kind: kind.__name__)


class Free(nn.Module):
    """A weight that the network transforms before rows meet it."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        x = x.reshape(x.shape[0], -1)
        return x @ jnp.sinh(self.param("weight", nn.initializers.normal(), (x.shape[1], 2)))


def fitted_shapes(backend, problem):
    """Trace the fit, nothing compiled."""
    return jax.eval_shape(lambda problem, key: jax.tree.leaves(backend.fit(problem, key)), problem, jax.random.key(0))


@pytest.mark.parametrize("kind", READINGS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("loss", problems.LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_loss_is_taken(kind, loss):
    """By every way to read a problem: products, rows of every draw, moments of random draws."""
    fitted_shapes(SMALL[kind], problems.problem(loss, module=problems.Linear(), image=3))


@every
@pytest.mark.parametrize("curvature", ["fisher", "empirical_fisher", "hessian"])
def test_every_curvature_is_taken(kind, curvature):
    """With a loss that couples examples; with a separable one by every way to read a problem.

    `test_contract.py` fits all of them to the default curvature, of layers of every kind.
    """
    losses = (SimCLR(0.5), CosineDistance()) if kind in READINGS else (SimCLR(0.5),)
    for loss in losses:
        problem = problems.problem(loss, curvature, module=problems.Linear(), image=3)
        if curvature == "hessian" and kind not in TAKE_HESSIANS:
            with pytest.raises(CurvatureError, match=kind.__name__):
                fitted_shapes(SMALL[kind], problem)
        else:
            fitted_shapes(SMALL[kind], problem)


@every
@pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py`
def test_every_measurement_is_taken(kind):
    """`test_contract.py` measures the cosine distance; gradients of another measurement have the same types."""
    backend, problem, state, _ = fitted(kind, "coupled")
    objective = problems.objective(SquaredEuclid(), problem.objective.network.module)

    def forms(problem, state, damping):
        batch = problems.first_batch(problem)
        gradients = measure(objective, problem.params, problem.frozen, batch, 2).gradients
        return tuple(backend.draw_gram(state, gradients, damping))

    values, residual = jax.eval_shape(forms, problem, state, jnp.asarray(0.1))
    assert (values.shape, residual.shape) == ((4, 2, 2), (4,))


@every
def test_what_needs_layers_says_so(kind):
    problem = problems.problem(CosineDistance(), module=Free(), image=2)
    if kind in NEED_NO_LAYERS:
        fitted_shapes(SMALL[kind], problem)
        return
    with pytest.raises(StructureError, match=r"weight.*materialise"):
        fitted_shapes(SMALL[kind], problem)


def test_arnoldi_without_complement_needs_no_layers():
    problem = problems.problem(CosineDistance(), module=Free(), image=2)
    fitted_shapes(Arnoldi(4, 2, complement="drop"), problem)


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
