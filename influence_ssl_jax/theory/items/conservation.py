"""Claim 5: what is conserved over a basis of perturbations."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import groups, instances, linear, oracle
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtMost, Check, CounterExample, Item


def _conserved(draw: Draw) -> Float[Array, ""]:
    drawn = instances.linear(draw, 3, 5)
    total = groups.sum_of_influences(drawn.weight, instances.orthogonal(draw, 5, 5), drawn.eps, drawn.damping)
    return oracle.relative(groups.total_over_basis(drawn.weight, drawn.eps, drawn.damping), total)


def _inside_span(draw: Draw) -> Float[Array, ""]:
    drawn = instances.linear(draw, 3, 5)
    basis = instances.orthogonal(draw, 5, 2).T
    total = groups.sum_of_influences(drawn.weight, basis, drawn.eps, drawn.damping)
    return oracle.relative(
        groups.sum_of_influences(drawn.weight, instances.orthogonal(draw, 2, 2) @ basis, drawn.eps, drawn.damping),
        total,
    )


def _ky_fan(draw: Draw) -> Float[Array, ""]:
    """How far outside the bounds, relative to them; the bounds themselves are reached by singular vectors."""
    drawn = instances.linear(draw, 3, 5)
    lower, upper = groups.ky_fan_bounds(drawn.weight, drawn.eps, 4)
    total = groups.sum_of_influences(drawn.weight, instances.orthogonal(draw, 5, 4).T, drawn.eps, 0.0)
    _, _, vectors = jnp.linalg.svd(drawn.weight, full_matrices=True)
    reached = [groups.sum_of_influences(drawn.weight, rows, drawn.eps, 0.0) for rows in (vectors[1:], vectors[:4])]
    missed = jnp.maximum(jnp.abs(reached[0] - lower), jnp.abs(reached[1] - upper))
    return jnp.maximum(missed, jnp.maximum(lower - total, total - upper)) / upper


ITEMS = (
    Item(
        name="claim-5",
        title="Claim 5 · conservation",
        source="App. C.3, confidence medium",
        statement=r"For orthonormal $\delta_1 \ldots \delta_k$, $\sum_i I(\delta_i) = -2\varepsilon^2\,"
        r"\mathrm{tr}(W^\top W P)$ is invariant under orthogonal transformations.",
        status="true under conditions",
        conditions=r"$k = p$, or transformations inside the span, or $W \to QW$.",
        correction=r"$k = p$: $\sum_i I_\lambda = \frac{4\varepsilon^4}{\lambda + 2\varepsilon^2}\|W\|_F^2$. $k < p$: "
        r"the sum lies between $2\varepsilon^2$ times the $k$ smallest and the $k$ largest eigenvalues of $W^\top W$.",
        counter_example=CounterExample(
            instance=r"$W = [1, 0]$, $\varepsilon = 1$, $k = 1$: $\delta = e_1$ gives $2$, $\delta = e_2$ gives $0$.",
            stated=lambda: linear.influence_limit(jnp.asarray([[1.0, 0.0]]), jnp.asarray([1.0, 0.0]), 1.0),
            actual=lambda: linear.influence_limit(jnp.asarray([[1.0, 0.0]]), jnp.asarray([0.0, 1.0]), 1.0),
            gap=-2.0,
        ),
        checks=(
            Check("complete basis, any λ: rel. error", _conserved, AtMost(1e-12)),
            Check("rotation inside the span: rel. error", _inside_span, AtMost(1e-11)),
            Check("Ky Fan bounds: violation, or distance where reached, relative", _ky_fan, AtMost(1e-12)),
        ),
    ),
)
