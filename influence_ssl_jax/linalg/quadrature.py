"""Two-sided bounds of quadratic forms by Gauss and Gauss–Radau quadrature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.linalg.krylov import Rows


class Tridiagonal(NamedTuple):
    """The matrices T of n Lanczos runs in lockstep, the leading `taken` rows and columns of each.

    Attributes:
        alpha: The diagonal.
        beta: The off-diagonal; the last entry in use couples T to what comes next.
        taken: Steps taken.
    """

    alpha: Float[Array, "n steps"]
    beta: Float[Array, "n steps"]
    taken: Int[Array, ""]


def gauss(t: Tridiagonal, damping: Float[Array, " n"]) -> Float[Array, " n"]:
    """`e₁ᵀ(T + damping)⁻¹e₁`."""
    return _corner_of_inverse(t, damping, jnp.zeros_like(damping))


def radau(t: Tridiagonal, damping: Float[Array, ""], slack: Float[Array, " n"]) -> Float[Array, " n"]:
    """The same with damping − slack and T extended by a row so that −slack is its smallest eigenvalue.

    Infinite where T + slack is not positive definite, or damping no larger than twice the slack.
    """

    def forward(pivot: Array, entry: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        i, alpha, coupled = entry
        pivot = jnp.where(i < t.taken, alpha + slack - coupled / pivot, pivot)
        return pivot, pivot

    before = jnp.concatenate([jnp.zeros_like(t.beta[:, :1]), t.beta[:, :-1]], axis=1) ** 2
    entries = jnp.arange(t.alpha.shape[1]), t.alpha.T, before.T
    last, pivots = jax.lax.scan(forward, jnp.ones_like(slack), entries)
    coupled = t.beta[:, jnp.maximum(t.taken - 1, 0)] ** 2
    extended = coupled / last - slack + damping - slack
    value = _corner_of_inverse(t, damping - slack, coupled / extended)
    definite = jnp.all(pivots > 0, axis=0) & (damping > 2 * slack) & (value > 0)
    return jnp.where(definite, value, jnp.inf)


def norm_bound(t: Tridiagonal) -> Float[Array, " n"]:
    """Gershgorin's bound of ‖T‖."""
    before = jnp.concatenate([jnp.zeros_like(t.beta[:, :1]), t.beta[:, :-1]], axis=1)
    return jnp.max(jnp.abs(t.alpha) + t.beta + before, axis=1)


def _corner_of_inverse(t: Tridiagonal, damping: Float[Array, " n"], tail: Float[Array, " n"]) -> Float[Array, " n"]:
    """`1 / (α₁ + λ − β₁² / (α₂ + λ − …  − tail))`: a continued fraction from its end, stable to rounding in T."""

    def backward(pivot: Array, entry: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, alpha, beta = entry
        behind = jnp.where(i == t.taken - 1, tail, beta**2 / pivot)
        return jnp.where(i < t.taken, alpha + damping - behind, pivot), None

    entries = jnp.arange(t.alpha.shape[1]), t.alpha.T, t.beta.T
    pivot, _ = jax.lax.scan(backward, jnp.ones_like(t.alpha[:, 0]), entries, reverse=True)
    return 1 / pivot


_PROBES = 4
_FACTOR = 3.0
"""‖F‖ is taken to be at most 3 times the largest ‖F s‖ of 4 standard normal s. The worst F has rank one, for which ‖F s‖ is
|s₁| ‖F‖: it is larger with probability P(|s₁| < ⅓)⁴ = 0.5 %. Of a rounding error spread over many directions, ‖F s‖ is
near ‖F‖_F each time."""

_WIDTHS = (2.0, 0.5, 0.2, 0.1, 0.05, 0.02)
"""Where the width asked for is not reached, the bounds are also taken where these would have been; 2 is any finite bound."""


class Bounds(NamedTuple):
    """`lower ≤ gᵀ(C + λI)⁻¹g ≤ upper` for each g.

    Attributes:
        lower: Gauss quadrature.
        upper: Gauss–Radau quadrature; infinite where rounding, as measured, is as large as λ.
        slack: η, the perturbation of C that the bounds allow for after the last step.
        steps: Lanczos steps taken.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    slack: Float[Array, " n"]
    steps: Int[Array, ""]


class Offset(NamedTuple):
    """A part of every form that is known beforehand, when starts are what is left of gradients.

    Attributes:
        values: What is added to `gᵀ(C + λI)⁻¹g`.
        error: Bound of its rounding error.
        doubt: Bound of the rounding error of g, in norm.
    """

    values: Float[Array, " n"]
    error: Float[Array, " n"]
    doubt: Float[Array, " n"]


class Density(NamedTuple):
    """Points that stand for the eigenvalues of C: `tr f(C) ≈ Σ counts · f(values)`.

    Attributes:
        values: Ritz values of every probe.
        counts: How many eigenvalues stand at each; they add up to the size of C.
    """

    values: Float[Array, " points"]
    counts: Float[Array, " points"]


class _Lanczos(NamedTuple):
    """`C Qᵀ = Qᵀ T + β q eᵀ` of every start in lockstep; q stands after Q."""

    rows: Float[Array, "n rows size"]
    t: Tridiagonal


def quadratic_form_bounds(
    products: Rows,
    starts: Float[Array, "n size"],
    damping: Float[Array, ""],
    key: Key[Array, ""],
    width: float | Float[Array, ""] = 0.05,
    steps: int = 60,
    rounding: float = 32.0,
    offset: Offset | None = None,
) -> Bounds:
    """Bound `gᵀ(C + λI)⁻¹g` by Lanczos started at each g, all in lockstep, until every interval is narrow enough.

    With `T` the tridiagonal matrix of k steps, `‖g‖² e₁ᵀ(T + λI)⁻¹e₁` (Gauss) is a lower bound, and the same with T
    extended by one row so that 0 is an eigenvalue (Gauss–Radau; no eigenvalue of C is smaller) an upper bound.

    In floating point the recurrence is that of a nearby matrix: if `C Qᵀ = Qᵀ T + β q eᵀ + F` with orthonormal Q, then
    some symmetric `C' = C + Δ` with ‖Δ‖ ≤ 2‖F‖ satisfies it exactly. From `C' − ηI ⪯ C ⪯ C' + ηI` for η ≥ ‖Δ‖ the
    bounds hold with damping λ + η below, and damping λ − η with the node moved to −η above. η is measured after the
    last step: `‖F s‖`, s standard normal, stands for ‖F‖ (three times the largest of four); the loss of orthogonality
    `‖QQᵀ − I‖_F` counts as a residual of that size times ‖T‖; and `rounding` unit roundoffs times ‖T‖ + λ stand for
    the rounding of C itself (the point at which a network was linearised), which no product with C shows. g is taken to
    be known up to `offset.doubt`, or, without an offset, up to `rounding` unit roundoffs of its norm. So the bounds hold
    under these assumptions (`ihvp.rounding` says what they are for a network), not by a theorem about floating point.

    A bound from k steps holds with any η that holds for more of them. Of all steps the best bounds are returned, first at
    the η of the last one; and where that leaves an interval wide, at the smaller η of where a wider one would have been
    enough. So going on does not lose what a shorter run has found.
    Reference: Golub & Meurant, Matrices, Moments and Quadrature, chapters 6 and 8; Δ: Parlett, The Symmetric
    Eigenvalue Problem, section 4.5.

    Args:
        products: V ↦ V C for rows V, C positive semi-definite.
        starts: The vectors g, as rows. Memory: (steps + 1) times as much.
        damping: λ.
        key: Draws what measures the residual.
        width: Stop where (upper − lower) ≤ width · their mean for every g, and both are finite; or where `rounding` alone
            leaves no upper bound.
        steps: Stop after so many.
        rounding: Unit roundoffs to allow for in C and g.
        offset: What to add to every form; widths are those of the sum. Nothing where None.
    """
    length = jnp.linalg.norm(starts, axis=1)
    dtype, steps = starts.dtype, min(steps, starts.shape[1])
    eps = jnp.asarray(jnp.finfo(dtype).eps, dtype)
    nothing = Offset(jnp.zeros_like(length), jnp.zeros_like(length), rounding * eps * length)
    known = nothing if offset is None else offset

    def bounds(t: Tridiagonal, slack: Array) -> tuple[Array, Array]:
        off = known.doubt / jnp.sqrt(damping)  # ‖δg‖ in the norm of (C + λI)⁻¹
        low = jnp.maximum(jnp.sqrt(gauss(t, damping + slack)) * length * (1 - 8 * eps) - off, 0.0) ** 2
        high = (jnp.sqrt(radau(t, damping, slack)) * length * (1 + 8 * eps) + off) ** 2
        high = jnp.where(length + off > 0, high, 0.0)
        return jnp.maximum(known.values - known.error + low, 0.0), known.values + known.error + high

    def nominal(t: Tridiagonal) -> Array:
        return rounding * eps * (norm_bound(t) + damping)

    def narrow(low: Array, high: Array, asked: float | Array) -> Array:
        return (jnp.isfinite(high) & (high - low <= asked * (high + low) / 2)) | (length == 0)

    def too_wide(found: _Lanczos) -> Array:
        slack = nominal(found.t)
        done = narrow(*bounds(found.t, slack), width) | (damping <= 2 * slack) | ~jnp.isfinite(length)
        return (found.t.taken < steps) & ((found.t.taken == 0) | ~jnp.all(done))

    unit = starts / jnp.where(length > 0, length, 1.0)[:, None]
    zeros = jnp.zeros((starts.shape[0], steps), dtype)
    rows = jnp.zeros((starts.shape[0], steps + 1, starts.shape[1]), dtype).at[:, 0].set(unit)
    begin = _Lanczos(rows, Tridiagonal(zeros, zeros, jnp.zeros((), int)))
    found = jax.lax.while_loop(too_wide, lambda found: _step(products, found), begin)
    after = 1 + jnp.arange(steps)

    def best(taken: Array) -> Bounds:
        """The best of the first so many steps, at the slack that is measured over them."""
        reached = _Lanczos(found.rows, _leading(found.t, taken))
        slack = nominal(reached.t) + _measured_slack(products, reached, key)
        low, high = jax.vmap(lambda k: bounds(_leading(found.t, k), slack))(after)
        among = (after <= taken)[:, None]
        low, high = jnp.max(jnp.where(among, low, 0.0), axis=0), jnp.min(jnp.where(among, high, jnp.inf), axis=0)
        return Bounds(low, high, slack, taken)

    def with_earlier(last: Bounds) -> Bounds:
        low, high = jax.vmap(lambda k: bounds(_leading(found.t, k), nominal(_leading(found.t, k))))(after)
        enough = jnp.stack([jax.vmap(lambda a, b, asked=w: jnp.all(narrow(a, b, asked)))(low, high) for w in _WIDTHS])
        enough = enough & (after < last.steps)[None]
        every = jax.lax.map(best, jnp.where(jnp.any(enough, axis=1), after[jnp.argmax(enough, axis=1)], last.steps))
        return last._replace(
            lower=jnp.maximum(last.lower, jnp.max(every.lower, axis=0)),
            upper=jnp.minimum(last.upper, jnp.min(every.upper, axis=0)),
        )

    last = best(found.t.taken)
    return jax.lax.cond(jnp.all(narrow(last.lower, last.upper, width)), lambda: last, lambda: with_earlier(last))


def _leading(t: Tridiagonal, count: Array) -> Tridiagonal:
    """The matrices of the first `count` steps."""
    used = (jnp.arange(t.alpha.shape[1]) < count)[None]
    return Tridiagonal(jnp.where(used, t.alpha, 0.0), jnp.where(used, t.beta, 0.0), jnp.asarray(count))


def spectral_density(
    products: Rows, key: Key[Array, ""], like: Float[Array, " size"], probes: int, steps: int
) -> Density:
    """The eigenvalues of C as Gauss quadrature sees them from random signs (stochastic Lanczos quadrature).

    Unbiased but for the quadrature, which is exact for polynomials of degree 2 steps − 1 and once `steps` reaches the
    number of different eigenvalues. Memory: (steps + 1) vectors; `steps · probes` products with C.
    Reference: Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017).
    """
    size = like.shape[0]
    steps = min(steps, size)

    def of_probe(key: Key[Array, ""]) -> Density:
        start = randomness.signs(key, (1, size), like.dtype) / size**0.5
        zeros = jnp.zeros((1, steps), like.dtype)
        rows = jnp.zeros((1, steps + 1, size), like.dtype).at[:, 0].set(start)
        begin = _Lanczos(rows, Tridiagonal(zeros, zeros, jnp.zeros((), int)))
        found = jax.lax.fori_loop(0, steps, lambda _, found: _step(products, found), begin).t
        coupling = found.beta[0, :-1]
        matrix = jnp.diag(found.alpha[0]) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1)
        values, vectors = jnp.linalg.eigh(matrix)
        return Density(jnp.maximum(values, 0.0), vectors[0] ** 2 * (size / probes))

    found = jax.lax.map(of_probe, jax.random.split(key, probes))
    return Density(found.values.reshape(-1), found.counts.reshape(-1))


def _step(products: Rows, found: _Lanczos) -> _Lanczos:
    """One step with full reorthogonalisation, twice; zeros after a breakdown."""
    alphas, betas, i = found.t
    vector = found.rows[:, i]
    product = products(vector)
    alpha = jnp.sum(vector * product, axis=1)
    lengths = []
    for _ in range(2):
        coefficients = jnp.einsum("nkp,np->nk", found.rows, product)
        product = product - jnp.einsum("nk,nkp->np", coefficients, found.rows)
        lengths.append(jnp.linalg.norm(product, axis=1))
    first, beta = lengths
    floor = 10 * jnp.finfo(product.dtype).eps * jnp.maximum(norm_bound(found.t), jnp.abs(alpha))
    # What the second pass takes most of is rounding: made long, it would not be orthogonal to the rest.
    beta = jnp.where((beta > floor) & (beta > first / 2), beta, 0.0)
    following = jnp.where(beta > 0, 1 / jnp.where(beta > 0, beta, 1.0), 0.0)[:, None] * product
    grown = Tridiagonal(alphas.at[:, i].set(alpha), betas.at[:, i].set(beta), i + 1)
    return _Lanczos(found.rows.at[:, i + 1].set(following), grown)


def _measured_slack(products: Rows, found: _Lanczos, key: Key[Array, ""]) -> Float[Array, " n"]:
    """`2 (3 ‖F s‖ + 2 √2 ‖T‖ ‖QQᵀ − I‖_F)`, see `quadratic_form_bounds`."""
    (alpha, beta, taken), (n, steps) = found.t, found.t.alpha.shape
    used = jnp.arange(steps) < taken
    coupling = jnp.where(used, beta, 0.0)

    def residual(key: Key[Array, ""]) -> Float[Array, " n"]:
        drawn = jnp.where(used, randomness.normal(key, (n, steps), alpha.dtype), 0.0)
        onward = jnp.pad(coupling * drawn, ((0, 0), (1, 0)))
        back = jnp.pad((coupling * jnp.pad(drawn[:, 1:], ((0, 0), (0, 1)))), ((0, 0), (0, 1)))
        expected = jnp.pad(alpha * drawn, ((0, 0), (0, 1))) + onward + back
        product = products(jnp.einsum("nk,nkp->np", drawn, found.rows[:, :steps]))
        return jnp.linalg.norm(product - jnp.einsum("nk,nkp->np", expected, found.rows), axis=1)

    worst = jnp.max(jax.lax.map(residual, jax.random.split(key, _PROBES)), axis=0)
    reached = jnp.where((jnp.arange(steps + 1) <= taken)[None, :, None], found.rows, 0.0)
    gram = jnp.einsum("nkp,nlp->nkl", reached, reached)
    alive = jnp.any(reached != 0, axis=2)
    identity = jnp.eye(steps + 1, dtype=gram.dtype)[None] * alive[:, :, None]
    orthogonality = jnp.linalg.norm(gram - identity, axis=(1, 2))
    return 2 * _FACTOR * worst + 2 * 8**0.5 * norm_bound(found.t) * orthogonality
