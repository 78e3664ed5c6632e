"""State Definition 2, Lemmas 1–2 and Theorem 1 for two linear layers.

`W = W₂W₁`, in the parameters (W₁, W₂). arXiv 2412.17170, Appendix C.1; reconstructed. Regression loss
`L = ½‖W₂W₁x − y‖²`, error `e = W₂W₁x − y`; row-major.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from influence_ssl_jax.theory import homogeneous, instances, linear, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item


class Gradients(NamedTuple):
    """Gradients of the regression loss in the two layers."""

    first: Float[Array, "h p"]
    second: Float[Array, "d h"]


class HessianBlocks(NamedTuple):
    """Blocks of the regression Hessian in (vec W₁, vec W₂)."""

    first: Float[Array, "hp hp"]
    cross: Float[Array, "hp dh"]
    second: Float[Array, "dh dh"]


def gradients(
    first: Float[Array, "h p"], second: Float[Array, "d h"], x: Float[Array, " p"], y: Float[Array, " d"]
) -> Gradients:
    """Return the gradients of Lemma 1: `∇W₁ = W₂ᵀ e xᵀ`, `∇W₂ = e (W₁x)ᵀ`."""
    hidden = first @ x
    error = second @ hidden - y
    return Gradients(first=jnp.outer(second.T @ error, x), second=jnp.outer(error, hidden))


def hessian(
    first: Float[Array, "h p"], second: Float[Array, "d h"], x: Float[Array, " p"], y: Float[Array, " d"]
) -> HessianBlocks:
    """Return the Hessian of Lemma 2, block by block.

    `H₁₁ = W₂ᵀW₂ ⊗ xxᵀ`, `H₂₂ = I_d ⊗ zzᵀ` with `z = W₁x`, and `H₁₂[(b,i),(a,c)] = W₂[a,b] x_i z_c + e_a 1{b=c} x_i`:
    the Gauss–Newton term and the residual curvature.
    """
    hidden = first @ x
    residual = jnp.einsum("a,bc,i->biac", second @ hidden - y, jnp.eye(hidden.size), x).reshape(first.size, second.size)
    gauss_newton = gauss_newton_hessian(first, second, x)
    return gauss_newton._replace(cross=gauss_newton.cross + residual)


def gauss_newton_hessian(
    first: Float[Array, "h p"], second: Float[Array, "d h"], x: Float[Array, " p"]
) -> HessianBlocks:
    """Return Lemma 2 without the residual term: the Gauss–Newton matrix.

    It is the Hessian if `e = 0`.
    """
    hidden = first @ x
    return HessianBlocks(
        first=jnp.kron(second.T @ second, jnp.outer(x, x)),
        cross=jnp.einsum("ab,i,c->biac", second, x, hidden).reshape(first.size, second.size),
        second=jnp.kron(jnp.eye(second.shape[0]), jnp.outer(hidden, hidden)),
    )


def joint(blocks: HessianBlocks) -> Float[Array, "all all"]:
    """Return the blocks as one symmetric matrix."""
    return jnp.block([[blocks.first, blocks.cross], [blocks.cross.T, blocks.second]])


# Checks


_SIZES = ((2, 3, 4), (1, 4, 3), (3, 2, 2))
"""(d, h, p), all with h ≥ 2."""
_DEPTHS = ((4, 2), (4, 3, 2), (4, 3, 1), (3, 3, 2, 2))
"""Widths of deep linear networks, input first."""


def _regression(drawn: instances.TwoLayer) -> oracle.Derivatives:
    """Differentiate the squared error of two layers automatically."""
    vector, unravel = ravel_pytree((drawn.first, drawn.second))

    def loss(params: Float[Array, " k"]) -> Float[Array, ""]:
        return jnp.sum((oracle.deep(unravel(params), drawn.x) - drawn.y) ** 2) / 2

    return oracle.derivatives(loss, vector)


def _gradients(draw: Draw) -> Float[Array, ""]:
    """Compare the closed gradients with automatic differentiation."""
    errors = []
    for sizes in _SIZES:
        drawn = instances.two_layer(draw, *sizes)
        closed, _ = ravel_pytree(tuple(gradients(*drawn[:4])))
        errors.append(oracle.relative(closed, _regression(drawn).gradient))
    return jnp.max(jnp.stack(errors))


def _blocks(draw: Draw) -> Float[Array, ""]:
    """Compare the closed Hessian with automatic differentiation."""
    errors = []
    for sizes in _SIZES:
        drawn = instances.two_layer(draw, *sizes)
        errors.append(oracle.relative(joint(hessian(*drawn[:4])), _regression(drawn).hessian))
    return jnp.max(jnp.stack(errors))


def _without_residual(draw: Draw) -> Float[Array, ""]:
    """Measure how far the Hessian is off without its residual term."""
    drawn = instances.two_layer(draw, *_SIZES[0])
    dropped = joint(gauss_newton_hessian(drawn.first, drawn.second, drawn.x))
    return oracle.relative(dropped, _regression(drawn).hessian)


def _interpolating(draw: Draw) -> Float[Array, ""]:
    """Check that at e = 0 the Hessian is positive semi-definite.

    The residual term vanishes there.
    """
    drawn = instances.two_layer(draw, *_SIZES[0])
    drawn = drawn._replace(y=drawn.second @ (drawn.first @ drawn.x))
    hessian = _regression(drawn).hessian
    dropped = joint(gauss_newton_hessian(drawn.first, drawn.second, drawn.x))
    values = jnp.linalg.eigvalsh(hessian)
    return jnp.maximum(oracle.relative(dropped, hessian), -values[0] / values[-1])


def _lowest_eigenvalue(draw: Draw) -> Float[Array, ""]:
    """Return the highest of the Hessians' lowest eigenvalues."""
    lowest = [jnp.linalg.eigvalsh(_regression(instances.two_layer(draw, *sizes)).hessian)[0] for sizes in _SIZES]
    return jnp.max(jnp.stack(lowest))


def _narrow_definite(draw: Draw) -> Float[Array, ""]:
    """Check one hidden unit and `y = 2W₂W₁x`.

    Then e ≠ 0, but there is no negative eigenvalue.
    """
    drawn = instances.two_layer(draw, 2, 1, 3)
    drawn = drawn._replace(y=2 * drawn.second @ (drawn.first @ drawn.x))
    values = jnp.linalg.eigvalsh(joint(hessian(*drawn[:4])))
    return -values[0] / values[-1]


class _Deep:
    """Alignment loss of a deep linear network, of all its layers.

    The perturbation has unit length, and ε = 1.
    """

    def __init__(self, draw: Draw, widths: tuple[int, ...]):
        layers = [draw.normal(rows, columns) for rows, columns in zip(widths[1:], widths[:-1], strict=True)]
        delta = instances.unit(draw, widths[0])
        self.params, unravel = ravel_pytree(layers)
        self.degree = 2 * len(layers)

        def loss(params: Float[Array, " k"]) -> Float[Array, ""]:
            return jnp.sum(oracle.deep(unravel(params), delta) ** 2)

        self.loss = loss(self.params)
        self.gradient, self.hessian = oracle.derivatives(loss, self.params)
        _, self.scaled_hessian = oracle.derivatives(loss, 2 * self.params)


def _limit(draw: Draw) -> Float[Array, ""]:
    """Compare the limit with the pseudo-inverse at every depth."""
    errors = []
    for widths in _DEPTHS:
        deep = _Deep(draw, widths)
        expected = oracle.pseudo_quadratic(deep.hessian, deep.gradient)
        errors.append(oracle.relative(homogeneous.influence_limit(deep.loss, deep.degree), expected))
    return jnp.max(jnp.stack(errors))


def _euler(draw: Draw) -> Float[Array, ""]:
    """Check Euler's identities of gradient and Hessian."""
    deep = _Deep(draw, _DEPTHS[1])
    gradient = homogeneous.euler_gradient(deep.hessian, deep.params, deep.degree)
    return jnp.maximum(
        oracle.relative(gradient, deep.gradient), oracle.relative(deep.gradient @ deep.params, deep.degree * deep.loss)
    )


def _rescaled(draw: Draw) -> Float[Array, ""]:
    """Check that θ → 2θ multiplies influence by 2^m.

    The damping is above the poles, and is rescaled too.
    """
    deep = _Deep(draw, _DEPTHS[1])
    damping = 2 * jnp.linalg.norm(deep.hessian)
    influence = oracle.quadratic(deep.hessian, deep.gradient, damping)
    scaled = oracle.quadratic(
        deep.scaled_hessian,
        2.0 ** (deep.degree - 1) * deep.gradient,
        homogeneous.rescale_damping(damping, 2.0, deep.degree),
    )
    return oracle.relative(homogeneous.rescale_influence(influence, 2.0, deep.degree), scaled)


def _negative_eigenvalue(draw: Draw) -> Float[Array, ""]:
    """Return the lowest eigenvalue of a two-layer network's Hessian."""
    return jnp.linalg.eigvalsh(_Deep(draw, _DEPTHS[1]).hessian)[0]


def _scalar_influence(first: float, second: float, damping: float) -> Float[Array, ""]:
    """Return the exact-Hessian score of the two-layer scalar network, `l = (w₁w₂)²`."""
    derivatives = oracle.derivatives(lambda weights: jnp.prod(weights) ** 2, jnp.asarray([first, second]))
    return oracle.quadratic(derivatives.hessian, derivatives.gradient, damping)


def _pole(draw: Draw) -> Float[Array, ""]:
    """Check `w₁ = 2`, `w₂ = 1` on both sides of the pole.

    The score is −32 below the pole at 3.544, and +33.33 above it.
    """
    del draw
    below, above = _scalar_influence(2.0, 1.0, 3.5), _scalar_influence(2.0, 1.0, 3.6)
    return jnp.maximum(jnp.abs(below + 32.0), jnp.abs(above - 100 / 3))


ITEMS = (
    Item(
        name="lemma-1",
        title="Lemma 1 · two-layer gradients",
        source="Definition 2 and Lemma 1, confidence high up to the ½",
        statement=r"$\nabla_{W_1} L = W_2^\top e\, x^\top$, $\nabla_{W_2} L = e\,(W_1 x)^\top$ for "
        r"$L = \frac{1}{2}\|e\|^2$, $e = W_2 W_1 x - y$.",
        status="true",
        checks=(Check("automatic differentiation: rel. error", _gradients, AtMost(1e-12)),),
    ),
    Item(
        name="lemma-2",
        title="Lemma 2 · two-layer Hessian",
        source="Lemma 2, diagonal blocks sure, off-diagonal block inferred",
        statement=r"$H_{11} = W_2^\top W_2 \otimes xx^\top$, $H_{22} = I_d \otimes zz^\top$ with $z = W_1 x$, and "
        r"$H_{12}[(b,i),(a,c)] = W_2[a,b]\, x_i z_c$.",
        status="true under conditions",
        conditions=r"$e = 0$.",
        correction=r"$H_{12}[(b,i),(a,c)] = W_2[a,b]\, x_i z_c + e_a\, 1\{b=c\}\, x_i$. With the residual term the "
        r"Hessian is indefinite wherever $e \neq 0$, $x \neq 0$ and there are at least two hidden units; with one, it "
        r"is so exactly where $\|e + z W_2\| > |z|\,\|W_2\|$.",
        counter_example=CounterExample(
            instance=r"$p = h = d = 1$, $x = 1$, $y = 0$, $w_1 = w_2 = 1$: the off-diagonal entry is $1 + 1 = 2$ and "
            r"the eigenvalues are $3$ and $-1$.",
            stated=lambda: jnp.ones(()),
            actual=lambda: hessian(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), jnp.zeros(1)).cross[0, 0],
            gap=1.0,
        ),
        checks=(
            Check("automatic differentiation, all blocks: rel. error", _blocks, AtMost(1e-12)),
            Check("without the residual term: rel. gap", _without_residual, AtLeast(0.01, "worst")),
            Check("e = 0: rel. error without it, and −lowest eigenvalue", _interpolating, AtMost(1e-9)),
            Check("h ≥ 2: highest lowest eigenvalue", _lowest_eigenvalue, AtMost(-1e-9)),
            Check("h = 1, y = 2W₂W₁x: −lowest eigenvalue, relative", _narrow_definite, AtMost(1e-12)),
        ),
    ),
    Item(
        name="theorem-1-two-layer",
        title="Theorem 1 in the parameters (W₁, W₂)",
        source="Theorem 1 speaks of (W₁, W₂), its closed form of W; the correction is derived here",
        statement=r"With the exact Hessian in $(W_1, W_2)$, $I_\lambda \to 2\,l$ as $\lambda \to 0$.",
        status="false as stated",
        correction=r"$g^\top H^{+} g = \frac{m}{m-1}\, l$ for a loss of degree $m$ in the parameters: $2\,l$ for one "
        r"layer, $\frac{4}{3}\, l$ for two, $0$ for the cosine distance. At $\lambda > 0$ there is a pole at "
        r"$\lambda = -\mu$ for every negative eigenvalue $\mu$ with $g$ not orthogonal to its eigenvectors.",
        counter_example=CounterExample(
            instance=r"$w_1 = w_2 = \delta = \varepsilon = 1$: the limit is $4/3$, and $2\,l = 2$.",
            stated=lambda: linear.influence_limit(jnp.ones((1, 1)), jnp.ones(1), 1.0),
            actual=lambda: _scalar_influence(1.0, 1.0, 1e-9),
            gap=-2 / 3,
        ),
        checks=(
            Check("one to three layers: gᵀH⁺g = m/(m − 1)·l, rel. error", _limit, AtMost(1e-9)),
            Check("Euler: Hθ = (m − 1)g and gᵀθ = ml, rel. error", _euler, AtMost(1e-9)),
            Check("I at 2θ with damping rescaled: rel. error", _rescaled, AtMost(1e-9)),
            Check("two layers: highest lowest eigenvalue", _negative_eigenvalue, AtMost(-1e-9)),
            Check("w₁ = 2, w₂ = 1: I(3.5) = −32, I(3.6) = 33.3, abs. error", _pole, AtMost(1e-8), most=1),
        ),
    ),
)
