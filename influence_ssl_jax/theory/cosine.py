"""State the cosine distance of two encodings, its expansion and derivatives.

The expansion is in the perturbation, the derivatives are in W. Proposition 3 of arXiv 2412.17170 (reconstructed) and
what replaces it; the gradient and the Hessian in W (row-major vec W) are derived for this project, because the paper
has no formula for them. Notation: `u = f(x)` and `v = f(a(x))` with directions `û` and `v̂`; the distance is
`l = 1 − c` with `c = û·v̂`; `P = v̂ − cû`, `q = û − cv̂`. For a linear encoder `f(a(x)) = u + εm` with `m = Wδ`. The
`stop_gradient` forms hold the branch of `v` fixed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import gauss_newton, homogeneous, instances, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar


class _Angles(NamedTuple):
    """Two directions, their cosine, and the lengths of the vectors."""

    left: Float[Array, " d"]
    right: Float[Array, " d"]
    cosine: Float[Array, ""]
    left_norm: Float[Array, ""]
    right_norm: Float[Array, ""]


def distance(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """Return `1 − cos(u, v) = ½‖û − v̂‖²`.

    The half-chord form keeps the digits that `1 − û·v̂` loses at small angles.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(distance(jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 2.0])))
        1.0
    """
    chord = _unit(output) - _unit(perturbed)
    return chord @ chord / 2


def moved_distance(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Return the cosine distance of u and `u + εm` from their geometry.

    With `s = 1 + εa`, `a = u·m/‖u‖²`, `k = ε²‖m_⊥‖²/‖u‖²`, `h = √(s² + k)` it is `1 − s/h`, computed as `k/(h(h + s))`
    for s > 0. There it equals `1 − (1 + c)^(−1/2)` with `c = k/s² = tan²` of the angle.
    """
    along = 1 + eps * (output @ move) / (output @ output)
    across = eps**2 * perpendicular(output, move)
    length = jnp.sqrt(along**2 + across)
    return jnp.where(along > 0, across / (length + jnp.abs(along)), length - along) / length


def perpendicular(output: Float[Array, " d"], move: Float[Array, " d"]) -> Float[Array, ""]:
    """Return `‖P_⊥ m‖²/‖u‖²`: the part of the move that turns u.

    It is relative to the length of u.
    """
    direction = _unit(output)
    across = move - (move @ direction) * direction
    return (across @ across) / (output @ output)


def leading(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Return the leading term (Proposition 3 corrected): `1 − cos = ε²‖P_⊥m‖²/(2‖u‖²) + O(ε³)`."""
    return eps**2 * perpendicular(output, move) / 2


def third_order(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Return two terms of the expansion: `ε²q/2 − ε³aq`, `q = ‖P_⊥m‖²/‖u‖²`, with an error O(ε⁴)."""
    along = (output @ move) / (output @ output)
    return leading(output, move, eps) - eps**3 * along * perpendicular(output, move)


def stated_leading(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Return the leading term of Proposition 3 as stated: `ε²‖m‖²/(2‖u‖²)`.

    It is too large by the factor `1 + a²/q`, because moves along u do not turn it.
    """
    return eps**2 * (move @ move) / (2 * (output @ output))


def expansion_bounds(tangent_squared: Scalar) -> Float[Array, "2"]:
    """Return `c/2 − 3c²/8 ≤ 1 − cos ≤ c/2` for `c = tan²` of an angle below a right angle."""
    half = jnp.asarray(tangent_squared) / 2
    return jnp.stack([half - 3 * half**2 / 2, half])


def full_limit(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """Return the per-point Gauss–Newton score as λ → 0: `2(1 − c)`.

    This is twice the loss. Both branches are differentiated; it holds for û ≠ −v̂.
    """
    return 2 * distance(output, perturbed)


def stop_gradient_limit(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """Return the same limit with one branch held fixed: `1 − c²`.

    This is sin² of the angle.
    """
    half = distance(output, perturbed)
    return half * (2 - half)


def gradient(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, "d p"]:
    """Return the gradient `G = −P xᵀ/‖u‖ − q x′ᵀ/‖v‖`: O(ε²), because the branches cancel.

    `⟨G, W⟩ = 0` and `GWᵀ` is symmetric.
    """
    return stop_gradient(weight, x, perturbed) + stop_gradient(weight, perturbed, x)


def stop_gradient(weight: Float[Array, "d p"], x: Float[Array, " p"], fixed: Float[Array, " p"]) -> Float[Array, "d p"]:
    """Return the gradient `G = −P xᵀ/‖u‖` with the branch of `fixed` held fixed.

    It is O(ε), an order larger than `gradient`.
    """
    angles = _angles(weight, x, fixed)
    return -jnp.outer(angles.right - angles.cosine * angles.left, x) / angles.left_norm


def squared_norm(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, ""]:
    """Return the squared norm of `gradient`, free of cancellation at small angles.

    `‖G‖² = (1 − c²)·‖x/‖u‖ − x′/‖v‖‖² + 2(1 − c²)(1 − c) x·x′/(‖u‖‖v‖)`.
    """
    angles = _angles(weight, x, perturbed)
    left, right = x / angles.left_norm, perturbed / angles.right_norm
    chord = angles.left - angles.right
    half = chord @ chord / 2
    return half * (2 - half) * (jnp.sum((left - right) ** 2) + 2 * half * (left @ right))


def stop_gradient_squared_norm(
    weight: Float[Array, "d p"], x: Float[Array, " p"], fixed: Float[Array, " p"]
) -> Float[Array, ""]:
    """Return the squared norm of `stop_gradient`: `‖G‖² = (1 − c²)‖x‖²/‖u‖²`."""
    angles = _angles(weight, x, fixed)
    chord = angles.left - angles.right
    half = chord @ chord / 2
    return half * (2 - half) * (x @ x) / angles.left_norm**2


def jacobian(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, "d dp"]:
    """Return the Jacobian `J = P_u ⊗ xᵀ/‖u‖ − P_v ⊗ x′ᵀ/‖v‖` of the residual `r = û − v̂`, with `P_u = I − ûûᵀ`.

    `G = Jᵀr`, and the Gauss–Newton matrix is `JᵀJ`.
    """
    return stop_gradient_jacobian(weight, x) - stop_gradient_jacobian(weight, perturbed)


def stop_gradient_jacobian(weight: Float[Array, "d p"], x: Float[Array, " p"]) -> Float[Array, "d dp"]:
    """Return the Jacobian `J = P_u ⊗ xᵀ/‖u‖`, for any branch that is held fixed."""
    angles = _angles(weight, x, x)
    across = jnp.eye(angles.left.size) - jnp.outer(angles.left, angles.left)
    return jnp.kron(across, x[None]) / angles.left_norm


def hessian(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, "dp dp"]:
    """Return the Hessian `B_uu ⊗ xxᵀ + B_uv ⊗ xx′ᵀ + B_uvᵀ ⊗ x′xᵀ + B_vv ⊗ x′x′ᵀ`.

    `B_uv = −(I − v̂v̂ᵀ − ûqᵀ)/(‖u‖‖v‖)`. `H vec W = −vec G`: H is indefinite if G ≠ 0, and `gᵀH⁺g = 0` everywhere.
    """
    angles = _angles(weight, x, perturbed)
    left, right = angles.left, angles.right
    tangent = left - angles.cosine * right
    mixed = jnp.outer(right, right) + jnp.outer(left, tangent) - jnp.eye(left.size)
    cross = jnp.kron(mixed / (angles.left_norm * angles.right_norm), jnp.outer(x, perturbed))
    return stop_gradient_hessian(weight, x, perturbed) + stop_gradient_hessian(weight, perturbed, x) + cross + cross.T


def stop_gradient_hessian(
    weight: Float[Array, "d p"], x: Float[Array, " p"], fixed: Float[Array, " p"]
) -> Float[Array, "dp dp"]:
    """Return the Hessian with one branch held fixed: `B_uu ⊗ xxᵀ` with `B_uu = (Pûᵀ + ûPᵀ + c(I − ûûᵀ))/‖u‖²`."""
    angles = _angles(weight, x, fixed)
    turn = jnp.outer(angles.right - angles.cosine * angles.left, angles.left)
    across = jnp.eye(angles.left.size) - jnp.outer(angles.left, angles.left)
    return jnp.kron((turn + turn.T + angles.cosine * across) / angles.left_norm**2, jnp.outer(x, x))


def _angles(weight: Float[Array, "d p"], x: Float[Array, " p"], other: Float[Array, " p"]) -> _Angles:
    """Return the directions and lengths of Wx and the other output."""
    u, v = weight @ x, weight @ other
    left_norm, right_norm = jnp.linalg.norm(u), jnp.linalg.norm(v)
    left, right = u / left_norm, v / right_norm
    return _Angles(left=left, right=right, cosine=left @ right, left_norm=left_norm, right_norm=right_norm)


def _unit(vector: Float[Array, " d"]) -> Float[Array, " d"]:
    """Return the direction of a vector."""
    return vector / jnp.linalg.norm(vector)


# Checks


def _drawn(draw: Draw, outputs: int = 3) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Draw an output Wx and its move Wδ."""
    drawn = instances.linear(draw, outputs, 4)
    delta = drawn.delta / jnp.linalg.norm(drawn.delta)
    return drawn.weight @ drawn.x, drawn.weight @ delta


def _exact(draw: Draw) -> Float[Array, ""]:
    """Compare with the definition at ε in 0.1 … 10.

    These moves lie on both sides of a right angle.
    """
    output, move = _drawn(draw)
    eps = draw.log_uniform(0.1, 10.0)
    expected = oracle.cosine(output, output + eps * move)
    values = moved_distance(output, move, eps), distance(output, output + eps * move)
    return jnp.maximum(*(oracle.relative(value, expected) for value in values))


def _tiny(draw: Draw) -> Float[Array, ""]:
    """Compare at ε = 1e-5 with two orders of the expansion.

    The output is twice as long as the move.
    """
    output, move = 2 * instances.unit(draw, 3), instances.unit(draw, 3)
    return oracle.relative(moved_distance(output, move, 1e-5), third_order(output, move, 1e-5))


def _slope(approximation):
    """Return a function that measures the order of an approximation's error."""

    def slope(draw: Draw) -> Float[Array, ""]:
        output, move = _drawn(draw)
        move = move * jnp.linalg.norm(output) / jnp.linalg.norm(move)
        errors = [jnp.abs(approximation(output, move, eps) - moved_distance(output, move, eps)) for eps in (1e-3, 1e-4)]
        return jnp.log10(errors[0] / errors[1])

    return slope


def _distance_to(order: int, slope):
    """Return a function that measures a slope's distance from an order."""
    return lambda draw: jnp.abs(slope(draw) - order)


def _bounds(draw: Draw) -> Float[Array, ""]:
    """Return the bounds' relative violation, and the lower one's distance.

    The distance is that from the value at small c.
    """
    tangent = draw.log_uniform(1e-3, 1.5)
    lower, upper = expansion_bounds(tangent**2)
    value = moved_distance(jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0]), tangent)
    small, _ = expansion_bounds(1e-4)
    close = jnp.abs(small - moved_distance(jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0]), 1e-2)) / 1e-4
    return jnp.maximum(jnp.maximum(lower - value, value - upper) / upper, close - 1e-8)


def _overestimate(draw: Draw) -> Float[Array, ""]:
    """Check that the stated term over the leading one is `1 + a²/q`."""
    output, move = _drawn(draw)
    ratio = stated_leading(output, move, 0.5) / leading(output, move, 0.5)
    along = (output @ move) / (output @ output)
    return oracle.relative(ratio, 1 + along**2 / perpendicular(output, move))


def _isotropic(draw: Draw) -> Float[Array, ""]:
    """Compare moves in a uniform direction of three.

    In the median the stated constant is 4/3 of the right one.
    """
    output, move = instances.unit(draw, 3), instances.unit(draw, 3)
    return stated_leading(output, move, 1.0) / leading(output, move, 1.0)


def _one_output(draw: Draw) -> Float[Array, ""]:
    """Check `D = 1`: the distance is 0, or 2 if the sign changes."""
    output, move = _drawn(draw, 1)
    value = distance(output, output + 3 * move)
    closed = moved_distance(output, move, 3.0)
    expected = jnp.where(output[0] * (output + 3 * move)[0] > 0, 0.0, 2.0)
    return jnp.maximum(jnp.abs(value - expected), jnp.abs(closed - expected))


def _single_precision(form):
    """Return a check of float32's error at an angle of 7e-5."""

    def error(draw: Draw) -> Float[Array, ""]:
        output, move = instances.unit(draw, 3), instances.unit(draw, 3)
        across = move - (move @ output) * output
        perturbed = output + 7e-5 * across / jnp.linalg.norm(across)
        value = form(output.astype(jnp.float32), perturbed.astype(jnp.float32))
        return oracle.relative(value.astype(float), distance(output, perturbed))

    return error


class _Pair:
    """A linear encoder and two inputs, with derivatives of their distance.

    The derivatives of the cosine distance are with and without stop-gradient.
    """

    def __init__(self, draw: Draw, outputs: int = 3, inputs: int = 4):
        self.weight = draw.normal(outputs, inputs)
        self.x = draw.normal(inputs)
        self.perturbed = self.x + 0.5 * instances.unit(draw, inputs)
        self.arguments = self.weight, self.x, self.perturbed
        self.outputs = self.weight @ self.x, self.weight @ self.perturbed
        held = self.outputs[1]
        self.full = oracle.derivatives(lambda w: oracle.cosine(w @ self.x, w @ self.perturbed), self.weight)
        self.stopped = oracle.derivatives(lambda w: oracle.cosine(w @ self.x, held), self.weight)
        self.jacobian = _differentiate(
            lambda w: gauss_newton.cosine_residual(w @ self.x, w @ self.perturbed), self.weight
        )
        self.held_jacobian = _differentiate(lambda w: gauss_newton.cosine_residual(w @ self.x, held), self.weight)
        self.residual = gauss_newton.cosine_residual(*self.outputs)


def _differentiate(residual, weight: Float[Array, "d p"]) -> Float[Array, "d k"]:
    """Differentiate a residual in vec W automatically."""
    return jax.jacrev(residual)(weight).reshape(weight.shape[0], -1)


def _worst(*pairs: tuple[Float[Array, "..."], Float[Array, "..."]]) -> Float[Array, ""]:
    """Return the largest relative error of pairs (actual, expected)."""
    return jnp.max(jnp.stack([oracle.relative(actual, expected) for actual, expected in pairs]))


def _gradients(draw: Draw) -> Float[Array, ""]:
    """Compare both gradients with automatic differentiation."""
    pair = _Pair(draw)
    return _worst(
        (gradient(*pair.arguments).ravel(), pair.full.gradient),
        (stop_gradient(*pair.arguments).ravel(), pair.stopped.gradient),
    )


def _jacobians(draw: Draw) -> Float[Array, ""]:
    """Compare both Jacobians, and `Jᵀr`, with automatic differentiation."""
    pair = _Pair(draw)
    full = jacobian(*pair.arguments)
    return _worst(
        (full, pair.jacobian),
        (stop_gradient_jacobian(pair.weight, pair.x), pair.held_jacobian),
        (pair.residual @ full, pair.full.gradient),
    )


def _norms(draw: Draw) -> Float[Array, ""]:
    """Compare both squared norms with automatic differentiation."""
    pair = _Pair(draw)
    return _worst(
        (squared_norm(*pair.arguments), jnp.sum(pair.full.gradient**2)),
        (stop_gradient_squared_norm(*pair.arguments), jnp.sum(pair.stopped.gradient**2)),
    )


def _geometry(draw: Draw) -> Float[Array, ""]:
    """Check `⟨G, W⟩ = 0`, and the symmetry of GWᵀ.

    The first holds for both gradients, the second for the full one.
    """
    pair = _Pair(draw)
    full, stopped = (form(*pair.arguments) for form in (gradient, stop_gradient))
    product = full @ pair.weight.T
    euler = [jnp.abs(jnp.sum(g * pair.weight)) / jnp.linalg.norm(g) for g in (full, stopped)]
    return jnp.max(jnp.stack([*euler, jnp.max(jnp.abs(product - product.T)) / jnp.linalg.norm(full)]))


def _order(form, order: int):
    """Return a check of the order in ε of a gradient's norm."""

    def distance(draw: Draw) -> Float[Array, ""]:
        pair = _Pair(draw)
        step = pair.perturbed - pair.x
        # So small that a form with cancellation has no digits left.
        norms = [jnp.sqrt(form(pair.weight, pair.x, pair.x + eps * step)) for eps in (1e-5, 1e-8)]
        return jnp.abs(jnp.log10(norms[0] / norms[1]) / 3 - order)

    return distance


def _hessians(draw: Draw) -> Float[Array, ""]:
    """Compare both Hessians with automatic differentiation."""
    pair = _Pair(draw)
    return _worst(
        (hessian(*pair.arguments), pair.full.hessian),
        (stop_gradient_hessian(*pair.arguments), pair.stopped.hessian),
    )


def _euler(draw: Draw) -> Float[Array, ""]:
    """Check `H vec W = −vec G` with and without stop-gradient."""
    pair = _Pair(draw)
    params = pair.weight.ravel()
    return jnp.max(
        jnp.stack(
            [
                jnp.max(jnp.abs(homogeneous.euler_gradient(d.hessian, params, 0) - d.gradient))
                / (jnp.linalg.norm(d.hessian) * jnp.linalg.norm(params))
                for d in (pair.full, pair.stopped)
            ]
        )
    )


def _lowest(draw: Draw) -> Float[Array, ""]:
    """Return the higher of both Hessians' lowest eigenvalues, over their norms."""
    pair = _Pair(draw)
    lowest = [jnp.linalg.eigvalsh(d.hessian)[0] / jnp.linalg.norm(d.hessian) for d in (pair.full, pair.stopped)]
    return jnp.maximum(*lowest)


def _exact_limit(draw: Draw) -> Float[Array, ""]:
    """Check that the limit with the exact Hessian is 0."""
    pair = _Pair(draw)
    loss = distance(*pair.outputs)
    closed = homogeneous.influence_limit(loss, 0)
    limits = [oracle.pseudo_quadratic(d.hessian, d.gradient) for d in (pair.full, pair.stopped)]
    return jnp.maximum(*(jnp.abs(limit - closed) for limit in limits)) / loss


def _gauss_newton_limits(draw: Draw) -> Float[Array, ""]:
    """Compare both closed limits with those of their Jacobians."""
    pair = _Pair(draw)
    return _worst(
        (full_limit(*pair.outputs), gauss_newton.influence_limit(pair.residual, pair.jacobian)),
        (stop_gradient_limit(*pair.outputs), gauss_newton.influence_limit(pair.residual, pair.held_jacobian)),
    )


def _scores(draw: Draw, damping) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return Gauss–Newton scores at W and at 3W.

    λ is 0.1 at W, and the given damping at 3W.
    """
    pair = _Pair(draw)
    gram = pair.jacobian @ pair.jacobian.T
    scaled = _differentiate(lambda w: gauss_newton.cosine_residual(w @ pair.x, w @ pair.perturbed), 3 * pair.weight)
    return (
        gauss_newton.influence(pair.residual, gram, 0.1),
        gauss_newton.influence(pair.residual, scaled @ scaled.T, damping),
    )


def _rescaled(draw: Draw) -> Float[Array, ""]:
    """Check that the score at 3W with λ/9 is as predicted."""
    here, there = _scores(draw, homogeneous.rescale_damping(0.1, 3.0, 0))
    return oracle.relative(homogeneous.rescale_influence(here, 3.0, 0), there)


def _fixed_damping_ratio(draw: Draw) -> Float[Array, ""]:
    """Return the score at 3W over that at W, at one damping."""
    here, there = _scores(draw, 0.1)
    return there / here


ITEMS = (
    Item(
        name="proposition-3",
        title="Proposition 3 · Euclid and cosine",
        source="Sec. 4.3 and App. C.5, confidence medium",
        statement=r"$1 - \cos(Wx, W(x + \varepsilon\delta)) \approx \frac{\varepsilon^2 \|W\delta\|^2}{2\|Wx\|^2}$: "
        r"the two losses are proportional.",
        status="false as stated",
        correction=r"$1 - \cos = \frac{\varepsilon^2}{2} q - \varepsilon^3 a q + O(\varepsilon^4)$, $q = "
        r"\|P_\perp W\delta\|^2 / \|Wx\|^2$, $a = Wx \cdot W\delta / \|Wx\|^2$; exactly $1 - (1 + c)^{-1/2}$ with $c = "
        r"\frac{\varepsilon^2 q}{(1 + \varepsilon a)^2}$ while $1 + \varepsilon a > 0$. The stated constant is too "
        r"large by $1 + a^2/q$ and varies with $x$. For $d = 1$ the cosine distance is $0$ or $2$ always.",
        counter_example=CounterExample(
            instance=r"$Wx = (1, 2)$, $\varepsilon W\delta = (0.1, 0.2)$: $\varepsilon^2\|W\delta\|^2 = 0.05$ and the "
            r"cosine distance is $0$; the stated value is $0.005$.",
            stated=lambda: stated_leading(jnp.asarray([1.0, 2.0]), jnp.asarray([0.1, 0.2]), 1.0),
            actual=lambda: moved_distance(jnp.asarray([1.0, 2.0]), jnp.asarray([0.1, 0.2]), 1.0),
            gap=-0.005,
        ),
        checks=(
            Check("exact form and half-chord form against the definition: rel. error", _exact, AtMost(1e-9)),
            Check("exact form at ε = 1e-5 keeps its digits: rel. error", _tiny, AtMost(1e-8)),
            Check("leading term, |order of error − 3|", _distance_to(3, _slope(leading)), AtMost(0.05, "median")),
            Check("two terms, |order of error − 4|", _distance_to(4, _slope(third_order)), AtMost(0.05, "median")),
            Check(
                "stated term, |order of error − 2|",
                _distance_to(2, _slope(stated_leading)),
                AtMost(0.05, "median"),
            ),
            Check("c/2 − 3c²/8 ≤ 1 − cos ≤ c/2: violation, relative", _bounds, AtMost(1e-12)),
            Check("stated/leading = 1 + a²/q: rel. error", _overestimate, AtMost(1e-9)),
            Check("stated/leading, uniform directions in three dimensions", _isotropic, AtLeast(1.2)),
            Check("d = 1: distance to 0 or 2", _one_output, AtMost(1e-12)),
            Check("float32 at an angle of 7e-5, half-chord: rel. error", _single_precision(distance), AtMost(1e-2)),
            Check("float32 at an angle of 7e-5, 1 − û·v̂: rel. error", _single_precision(oracle.cosine), AtLeast(0.5)),
        ),
    ),
    Item(
        name="cosine-gradient",
        title="Cosine distance · gradient",
        source="derived here",
        origin="derived here",
        statement=r"$G = -P x^\top / \|u\| - q\, x'^\top / \|v\|$ with $u = Wx$, $v = Wx'$, $P = \hat v - c\,\hat u$, $q "
        r"= \hat u - c\,\hat v$, $c = \hat u \cdot \hat v$; with the branch of $x'$ held fixed, the first term alone.",
        status="true",
        correction=r"$\langle G, W\rangle = 0$; $GW^\top$ is symmetric for the full gradient. $\|G\|$ is "
        r"$O(\varepsilon^2)$ in full and $O(\varepsilon)$ with stop-gradient: two different scores. $G = J^\top r$ with "
        r"$r = \hat u - \hat v$, $J = (I - \hat u\hat u^\top) \otimes x^\top / \|u\| - (I - \hat v\hat v^\top) \otimes "
        r"x'^\top / \|v\|$.",
        checks=(
            Check("automatic differentiation, both variants: rel. error", _gradients, AtMost(1e-9)),
            Check("J, both variants, and G = Jᵀr: rel. error", _jacobians, AtMost(1e-9)),
            Check("‖G‖², both variants: rel. error", _norms, AtMost(1e-9)),
            Check("⟨G, W⟩ = 0 and GWᵀ symmetric: relative", _geometry, AtMost(1e-9)),
            Check("full: |order of ‖G‖ in ε − 2|", _order(squared_norm, 2), AtMost(0.05, "median")),
            Check(
                "stop-gradient: |order of ‖G‖ in ε − 1|",
                _order(stop_gradient_squared_norm, 1),
                AtMost(0.05, "median"),
            ),
        ),
    ),
    Item(
        name="cosine-hessian",
        title="Cosine distance · Hessian",
        source="derived here",
        origin="derived here",
        statement=r"$H = B_{uu} \otimes xx^\top + B_{uv} \otimes xx'^\top + B_{uv}^\top \otimes x'x^\top + B_{vv} \otimes "
        r"x'x'^\top$ with $B_{uu} = (P\hat u^\top + \hat u P^\top + c(I - \hat u\hat u^\top))/\|u\|^2$ and $B_{uv} = "
        r"-(I - \hat v\hat v^\top - \hat u q^\top)/(\|u\|\|v\|)$.",
        status="true",
        correction=r"$H\,\mathrm{vec}\,W = -\mathrm{vec}\,G$, so $H$ is indefinite wherever $G \neq 0$.",
        checks=(
            Check("automatic differentiation, both variants: rel. error", _hessians, AtMost(1e-9)),
            Check("H vec W = −vec G: relative", _euler, AtMost(1e-9)),
            Check("highest lowest eigenvalue, relative", _lowest, AtMost(-1e-9)),
        ),
    ),
    Item(
        name="cosine-limits",
        title="Theorem 1 for the cosine distance",
        source="Sec. 4 uses the cosine distance, App. C.1 proves the Euclidean case; derived here",
        statement=r"Theorem 1 carries over to the cosine distance: $I_0 = 2\,l$.",
        status="true under conditions",
        conditions=r"With the Gauss–Newton matrix, both branches differentiated and $\hat u \neq \pm\hat v$.",
        correction=r"Gauss–Newton: $2(1 - c)$ in full, $1 - c^2$ with stop-gradient. Exact Hessian: $g^\top H^{+} g = 0$ "
        r"identically. $I_{\lambda/c^2}(cW) = I_\lambda(W)$ in place of Claim 3.",
        checks=(
            Check("exact Hessian: |gᵀH⁺g|/l, both variants", _exact_limit, AtMost(1e-6)),
            Check("Gauss–Newton: 2(1 − c) and 1 − c², rel. error", _gauss_newton_limits, AtMost(1e-6)),
            Check("3W with λ/9: rel. error", _rescaled, AtMost(1e-9)),
            Check("3W at fixed λ: I(3W)/I(W), 9 by Claim 3", _fixed_damping_ratio, AtMost(1.0)),
            Check("3W at fixed λ: I(3W)/I(W)", _fixed_damping_ratio, AtLeast(1 / 9, "worst")),
        ),
    ),
)
