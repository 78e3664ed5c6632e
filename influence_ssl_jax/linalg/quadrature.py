"""Bound quadratic forms from both sides by Gauss and Gauss–Radau quadrature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.linalg.krylov import Rows


class Tridiagonal(NamedTuple):
    """The tridiagonal matrices T of n Lanczos runs in lockstep.

    Only the leading `taken` rows and columns of each are in use.

    Attributes:
        alpha: The diagonal.
        beta: The off-diagonal; the last entry in use couples T to the next Lanczos vector.
        taken: Number of steps taken.
    """

    alpha: Float[Array, "n steps"]
    beta: Float[Array, "n steps"]
    taken: Int[Array, ""]


def gauss(t: Tridiagonal, damping: Float[Array, " n"]) -> Float[Array, " n"]:
    """Compute the Gauss quadrature `e₁ᵀ(T + damping)⁻¹e₁`, a lower bound.

    Examples:
        T is the 1 × 1 matrix 3, and the damping is 1:

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.linalg.quadrature import Tridiagonal, gauss
        >>> t = Tridiagonal(alpha=jnp.asarray([[3.0]]), beta=jnp.asarray([[0.0]]), taken=jnp.asarray(1))
        >>> gauss(t, jnp.asarray([1.0])).tolist()
        [0.25]
    """
    return _corner_of_inverse(t, damping, jnp.zeros_like(damping))


def radau(t: Tridiagonal, damping: Float[Array, ""], slack: Float[Array, " n"]) -> Float[Array, " n"]:
    """Compute the Gauss–Radau quadrature, an upper bound.

    It is the form of `gauss` with damping − slack, where T is extended by one row such that −slack is its smallest
    eigenvalue. It is infinite if T + slack is not positive definite, or if the damping is at most twice the slack.

    Args:
        t: T.
        damping: λ.
        slack: η, a bound of the perturbation of C.
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
    """Bound ‖T‖ by Gershgorin's theorem."""
    before = jnp.concatenate([jnp.zeros_like(t.beta[:, :1]), t.beta[:, :-1]], axis=1)
    return jnp.max(jnp.abs(t.alpha) + t.beta + before, axis=1)


def _corner_of_inverse(t: Tridiagonal, damping: Float[Array, " n"], tail: Float[Array, " n"]) -> Float[Array, " n"]:
    """Compute `1 / (α₁ + λ − β₁² / (α₂ + λ − …  − tail))`.

    The continued fraction is evaluated from its end, which is stable against rounding of T.
    """

    def backward(pivot: Array, entry: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, alpha, beta = entry
        behind = jnp.where(i == t.taken - 1, tail, beta**2 / pivot)
        return jnp.where(i < t.taken, alpha + damping - behind, pivot), None

    entries = jnp.arange(t.alpha.shape[1]), t.alpha.T, t.beta.T
    pivot, _ = jax.lax.scan(backward, jnp.ones_like(t.alpha[:, 0]), entries, reverse=True)
    return 1 / pivot


_PROBES = 4
_FACTOR = 3.0
"""‖F‖ is taken to be at most 3 times the largest ‖F s‖ of 4 standard normal vectors s.

The worst F has rank one: then ‖F s‖ is |s₁| ‖F‖, and the assumption fails with probability P(|s₁| < ⅓)⁴ = 0.5 %. If a
rounding error is spread over many directions, ‖F s‖ is close to ‖F‖_F each time.
"""

_WIDTHS = (2.0, 0.5, 0.2, 0.1, 0.05, 0.02)
"""Widths at which the bounds are also computed if the requested width is not reached; 2 stands for any finite bound."""


class Bounds(NamedTuple):
    """Bounds `lower ≤ gᵀ(C + λI)⁻¹g ≤ upper` for each g.

    Attributes:
        lower: Gauss quadrature.
        upper: Gauss–Radau quadrature; infinite if the measured rounding error is as large as λ.
        slack: η, the perturbation of C that the bounds allow for after the last step.
        steps: Number of Lanczos steps taken.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    slack: Float[Array, " n"]
    steps: Int[Array, ""]


class Offset(NamedTuple):
    """The known part of every form.

    The starts are then what a projection leaves of the gradients g.

    Attributes:
        values: The value to add to `gᵀ(C + λI)⁻¹g`.
        error: A bound of its rounding error.
        doubt: A bound of the norm of the rounding error of g.
    """

    values: Float[Array, " n"]
    error: Float[Array, " n"]
    doubt: Float[Array, " n"]


class Density(NamedTuple):
    """Points that represent the eigenvalues of C: `tr f(C) ≈ Σ counts · f(values)`.

    Attributes:
        values: Ritz values of every probe.
        counts: Number of eigenvalues that each point represents; they sum to the size of C.
        t: The Lanczos run of every probe.
    """

    values: Float[Array, " points"]
    counts: Float[Array, " points"]
    t: Tridiagonal


class _Lanczos(NamedTuple):
    """Lanczos runs in lockstep, one for each start.

    `C Qᵀ = Qᵀ T + β q eᵀ`; the row q follows the rows Q.
    """

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
    """Bound `gᵀ(C + λI)⁻¹g` from both sides by Lanczos runs.

    Each run starts at one g, and all run in lockstep until every interval is narrow enough. With the tridiagonal
    matrix `T` of k steps, `‖g‖² e₁ᵀ(T + λI)⁻¹e₁` (Gauss) is a lower bound. The same with T extended by one row, such
    that 0 is an eigenvalue (Gauss–Radau; no eigenvalue of C is smaller), is an upper bound.

    In floating point, the recurrence is that of a nearby matrix: if `C Qᵀ = Qᵀ T + β q eᵀ + F` with orthonormal Q,
    then a symmetric `C' = C + Δ` with ‖Δ‖ ≤ 2‖F‖ satisfies it exactly. Since `C' − ηI ⪯ C ⪯ C' + ηI` for η ≥ ‖Δ‖, the
    lower bound holds with damping λ + η, and the upper bound holds with damping λ − η and the node at −η. η is
    measured after the last step and adds up three causes: the residual F, for whose norm three times the largest of
    four `‖F s‖` stands, s standard normal; the loss of orthogonality `‖QQᵀ − I‖_F`, which counts as a residual of
    that size times ‖T‖; and `rounding` unit roundoffs times ‖T‖ + λ for the rounding of C itself (of the point at
    which a network was linearised), which no product with C shows. g is assumed to be known up to `offset.doubt` or, without
    an offset, up to `rounding` unit roundoffs of its norm. So the bounds hold under these assumptions
    (`ihvp.rounding` states what they are for a network); they are not a theorem about floating point.

    A bound from k steps is valid with any η that is valid for more steps. The best bounds of all steps are returned:
    first with the η of the last step; and, if an interval is still wide, with the smaller η of the step at which a
    wider interval would have been sufficient. So further steps never make a bound worse than that of a shorter run.
    Reference: Golub & Meurant, Matrices, Moments and Quadrature, chapters 6 and 8; Δ: Parlett, The Symmetric
    Eigenvalue Problem, section 4.5.

    Args:
        products: V ↦ V C on rows V, C positive semi-definite.
        starts: The vectors g, as rows. The memory is (steps + 1) times theirs.
        damping: λ.
        key: Draws the vectors that measure the residual.
        width: Stop if (upper − lower) ≤ width · their mean for every g, and both are finite; or if `rounding` alone
            allows no upper bound.
        steps: Stop after this number of steps.
        rounding: Number of unit roundoffs to allow for in C and g.
        offset: The value to add to every form; widths are those of the sum. None for nothing.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> matrix, start = jnp.diag(jnp.asarray([1.0, 3.0])), jnp.asarray([[2.0, 4.0]])
        >>> bounds = quadratic_form_bounds(lambda rows: rows @ matrix, start, jnp.asarray(1.0), jax.random.key(0))
        >>> bool(bounds.lower[0] <= 2**2 / (1 + 1) + 4**2 / (3 + 1) <= bounds.upper[0])
        True
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

    def too_wide(lanczos: _Lanczos) -> Array:
        slack = nominal(lanczos.t)
        done = narrow(*bounds(lanczos.t, slack), width) | (damping <= 2 * slack) | ~jnp.isfinite(length)
        return (lanczos.t.taken < steps) & ((lanczos.t.taken == 0) | ~jnp.all(done))

    unit = starts / jnp.where(length > 0, length, 1.0)[:, None]
    zeros = jnp.zeros((starts.shape[0], steps), dtype)
    rows = jnp.zeros((starts.shape[0], steps + 1, starts.shape[1]), dtype).at[:, 0].set(unit)
    begin = _Lanczos(rows, Tridiagonal(zeros, zeros, jnp.zeros((), int)))
    lanczos = jax.lax.while_loop(too_wide, lambda lanczos: _step(products, lanczos), begin)
    after = 1 + jnp.arange(steps)

    def best(taken: Array) -> Bounds:
        """Compute the best bounds of the first `taken` steps.

        The slack is the one measured over these steps.
        """
        reached = _Lanczos(lanczos.rows, _leading(lanczos.t, taken))
        slack = nominal(reached.t) + _measured_slack(products, reached, key)
        low, high = jax.vmap(lambda k: bounds(_leading(lanczos.t, k), slack))(after)
        among = (after <= taken)[:, None]
        low, high = jnp.max(jnp.where(among, low, 0.0), axis=0), jnp.min(jnp.where(among, high, jnp.inf), axis=0)
        return Bounds(low, high, slack, taken)

    def with_earlier(last: Bounds) -> Bounds:
        low, high = jax.vmap(lambda k: bounds(_leading(lanczos.t, k), nominal(_leading(lanczos.t, k))))(after)
        enough = jnp.stack([jax.vmap(lambda a, b, asked=w: jnp.all(narrow(a, b, asked)))(low, high) for w in _WIDTHS])
        enough = enough & (after < last.steps)[None]
        every = jax.lax.map(best, jnp.where(jnp.any(enough, axis=1), after[jnp.argmax(enough, axis=1)], last.steps))
        return last._replace(
            lower=jnp.maximum(last.lower, jnp.max(every.lower, axis=0)),
            upper=jnp.minimum(last.upper, jnp.min(every.upper, axis=0)),
        )

    last = best(lanczos.t.taken)
    return jax.lax.cond(jnp.all(narrow(last.lower, last.upper, width)), lambda: last, lambda: with_earlier(last))


def _leading(t: Tridiagonal, count: Array) -> Tridiagonal:
    """Restrict the matrices to the first `count` steps."""
    used = (jnp.arange(t.alpha.shape[1]) < count)[None]
    return Tridiagonal(jnp.where(used, t.alpha, 0.0), jnp.where(used, t.beta, 0.0), jnp.asarray(count))


def spectral_density(
    products: Rows, key: Key[Array, ""], like: Float[Array, " size"], probes: int, steps: int
) -> Density:
    """Estimate the eigenvalues of C by stochastic Lanczos quadrature.

    This is Gauss quadrature from random signs. The estimate is unbiased except for the error of the quadrature. The
    quadrature is exact for polynomials of degree 2 steps − 1, and exact for all functions if `steps` reaches the number
    of different eigenvalues. The cost is `steps · probes` products with C; the memory is (steps + 1) vectors.
    Reference: Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017).

    Args:
        products: V ↦ V C on rows V, C positive semi-definite.
        key: Draws the signs.
        like: Any vector of C's size and dtype.
        probes: Number of random vectors.
        steps: Number of Lanczos steps for each.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> matrix = jnp.diag(jnp.asarray([1.0, 3.0]))
        >>> density = spectral_density(lambda rows: rows @ matrix, jax.random.key(0), matrix[0], probes=2, steps=2)
        >>> density.values.round(3).tolist()
        [1.0, 3.0, 1.0, 3.0]
    """
    size = like.shape[0]
    steps = min(steps, size)

    def of_probe(key: Key[Array, ""]) -> Density:
        start = randomness.signs(key, (1, size), like.dtype) / size**0.5
        zeros = jnp.zeros((1, steps), like.dtype)
        rows = jnp.zeros((1, steps + 1, size), like.dtype).at[:, 0].set(start)
        begin = _Lanczos(rows, Tridiagonal(zeros, zeros, jnp.zeros((), int)))
        t = jax.lax.fori_loop(0, steps, lambda _, lanczos: _step(products, lanczos), begin).t
        coupling = t.beta[0, :-1]
        matrix = jnp.diag(t.alpha[0]) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1)
        values, vectors = jnp.linalg.eigh(matrix)
        return Density(jnp.maximum(values, 0.0), vectors[0] ** 2 * (size / probes), t)

    values, counts, (alpha, beta, taken) = jax.lax.map(of_probe, jax.random.split(key, probes))
    return Density(values.reshape(-1), counts.reshape(-1), Tridiagonal(alpha[:, 0], beta[:, 0], taken[0]))


def anchor_at_zero(t: Tridiagonal, size: float) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Return Gauss–Radau points with one at zero for every probe.

    For every probe and λ > 0, the sum of `counts · x/(x + λ)` over these points is at most the probe's exact value, and
    that over the points of `spectral_density` is at least this value. The count at zero is at least the number of zero
    eigenvalues, as the probe sees it. The rounding of the Lanczos run itself is not part of these bounds. Reference:
    Golub & Meurant, Matrices, Moments and Quadrature, 2010, section 6.2.

    Args:
        t: The Lanczos run of every probe.
        size: Number of rows of C, which the counts sum to.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> matrix = jnp.diag(jnp.asarray([0.0, 3.0]))
        >>> density = spectral_density(lambda rows: rows @ matrix, jax.random.key(0), matrix[0], probes=1, steps=1)
        >>> values, counts = anchor_at_zero(density.t, 2.0)
        >>> values.round(3).tolist(), counts.round(3).tolist()
        ([0.0, 3.0], [1.0, 1.0])
    """
    alphas, betas = (np.asarray(each, np.float64) for each in t[:2])
    eps = float(jnp.finfo(t.alpha.dtype).eps)
    points, counts = [], []
    for alpha, beta in zip(alphas, betas, strict=True):
        coupling = beta[:-1]
        matrix = np.diag(alpha) + np.diag(coupling, 1) + np.diag(coupling, -1)
        values = np.linalg.eigvalsh(matrix)
        anchor = min(values[0], 0.0) - eps * values[-1]  # zero, but for the rounding of T
        pivot = alpha[0] - anchor
        for following, coupled in zip(alpha[1:], coupling, strict=True):
            pivot = following - anchor - coupled**2 / pivot
        extended = np.pad(matrix, (0, 1))
        extended[-1, -1] = anchor + beta[-1] ** 2 / pivot if beta[-1] > 0 else 0.0
        extended[-1, -2] = extended[-2, -1] = beta[-1]
        values, vectors = np.linalg.eigh(extended)
        points.append(np.where(values > -4 * anchor, values, 0.0))
        counts.append(vectors[0] ** 2 * (size / len(alphas)))
    return np.concatenate(points), np.concatenate(counts)


def _step(products: Rows, lanczos: _Lanczos) -> _Lanczos:
    """Take one step with full reorthogonalisation, twice; write zeros after a breakdown."""
    alphas, betas, i = lanczos.t
    vector = lanczos.rows[:, i]
    product = products(vector)
    alpha = jnp.sum(vector * product, axis=1)
    lengths = []
    for _ in range(2):
        coefficients = jnp.einsum("nkp,np->nk", lanczos.rows, product)
        product = product - jnp.einsum("nk,nkp->np", coefficients, lanczos.rows)
        lengths.append(jnp.linalg.norm(product, axis=1))
    first, beta = lengths
    floor = 10 * jnp.finfo(product.dtype).eps * jnp.maximum(norm_bound(lanczos.t), jnp.abs(alpha))
    # If the second pass removes most of a vector, the vector is rounding error: normalised, it would not be orthogonal.
    beta = jnp.where((beta > floor) & (beta > first / 2), beta, 0.0)
    following = jnp.where(beta > 0, 1 / jnp.where(beta > 0, beta, 1.0), 0.0)[:, None] * product
    grown = Tridiagonal(alphas.at[:, i].set(alpha), betas.at[:, i].set(beta), i + 1)
    return _Lanczos(lanczos.rows.at[:, i + 1].set(following), grown)


def _measured_slack(products: Rows, lanczos: _Lanczos, key: Key[Array, ""]) -> Float[Array, " n"]:
    """Compute η = `2 (3 ‖F s‖ + 2 √2 ‖T‖ ‖QQᵀ − I‖_F)`, see `quadratic_form_bounds`."""
    (alpha, beta, taken), (n, steps) = lanczos.t, lanczos.t.alpha.shape
    used = jnp.arange(steps) < taken
    coupling = jnp.where(used, beta, 0.0)

    def residual(key: Key[Array, ""]) -> Float[Array, " n"]:
        drawn = jnp.where(used, randomness.normal(key, (n, steps), alpha.dtype), 0.0)
        onward = jnp.pad(coupling * drawn, ((0, 0), (1, 0)))
        back = jnp.pad((coupling * jnp.pad(drawn[:, 1:], ((0, 0), (0, 1)))), ((0, 0), (0, 1)))
        expected = jnp.pad(alpha * drawn, ((0, 0), (0, 1))) + onward + back
        product = products(jnp.einsum("nk,nkp->np", drawn, lanczos.rows[:, :steps]))
        return jnp.linalg.norm(product - jnp.einsum("nk,nkp->np", expected, lanczos.rows), axis=1)

    worst = jnp.max(jax.lax.map(residual, jax.random.split(key, _PROBES)), axis=0)
    reached = jnp.where((jnp.arange(steps + 1) <= taken)[None, :, None], lanczos.rows, 0.0)
    gram = jnp.einsum("nkp,nlp->nkl", reached, reached)
    alive = jnp.any(reached != 0, axis=2)
    identity = jnp.eye(steps + 1, dtype=gram.dtype)[None] * alive[:, :, None]
    orthogonality = jnp.linalg.norm(gram - identity, axis=(1, 2))
    return 2 * _FACTOR * worst + 2 * 8**0.5 * norm_bound(lanczos.t) * orthogonality
