"""The cosine distance of two encodings, its expansion in the perturbation, and its derivatives in W.

Proposition 3 of arXiv 2412.17170 (reconstructed) and what replaces it. `u = f(x)`, `v = f(a(x))`, `û`, `v̂` their
directions, `c = û·v̂`, `P = v̂ − cû`, `q = û − cv̂`; for a linear encoder `f(a(x)) = u + εm` with `m = Wδ`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, oracle
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item
from influence_ssl_jax.theory.scalars import Scalar


def distance(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """`1 − cos(u, v) = ½‖û − v̂‖²`: the half-chord form keeps the digits that `1 − û·v̂` loses at small angles."""
    chord = _unit(output) - _unit(perturbed)
    return chord @ chord / 2


def moved_distance(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Cosine distance of u and u + εm from their geometry alone.

    With `s = 1 + εa`, `a = u·m/‖u‖²`, `k = ε²‖m_⊥‖²/‖u‖²`, `h = √(s² + k)`: `1 − s/h`, written as `k/(h(h + s))` where
    s > 0. There it equals `1 − (1 + c)^(−1/2)` with `c = k/s² = tan²` of the angle.
    """
    along = 1 + eps * (output @ move) / (output @ output)
    across = eps**2 * perpendicular(output, move)
    length = jnp.sqrt(along**2 + across)
    return jnp.where(along > 0, across / (length + jnp.abs(along)), length - along) / length


def perpendicular(output: Float[Array, " d"], move: Float[Array, " d"]) -> Float[Array, ""]:
    """`‖P_⊥ m‖²/‖u‖²`: the part of the move that turns u, relative to its length."""
    direction = _unit(output)
    across = move - (move @ direction) * direction
    return (across @ across) / (output @ output)


def leading(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Proposition 3 corrected: `1 − cos = ε²‖P_⊥m‖²/(2‖u‖²) + O(ε³)`."""
    return eps**2 * perpendicular(output, move) / 2


def third_order(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """One term more: `ε²q/2 − ε³aq`, `q = ‖P_⊥m‖²/‖u‖²`, error O(ε⁴)."""
    along = (output @ move) / (output @ output)
    return leading(output, move, eps) - eps**3 * along * perpendicular(output, move)


def stated_leading(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Proposition 3 as stated: `ε²‖m‖²/(2‖u‖²)`. Too large by `1 + a²/q`: moves along u do not turn it."""
    return eps**2 * (move @ move) / (2 * (output @ output))


def expansion_bounds(tangent_squared: Scalar) -> Float[Array, "2"]:
    """`c/2 − 3c²/8 ≤ 1 − cos ≤ c/2` for `c = tan²` of an angle below a right angle."""
    half = jnp.asarray(tangent_squared) / 2
    return jnp.stack([half - 3 * half**2 / 2, half])


def full_limit(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """Per-point Gauss–Newton score as λ → 0, both branches differentiated: `2(1 − c)`, twice the loss (û ≠ −v̂)."""
    return 2 * distance(output, perturbed)


def stop_gradient_limit(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """The same with one branch held fixed: `1 − c² = sin²` of the angle."""
    half = distance(output, perturbed)
    return half * (2 - half)


def _unit(vector: Float[Array, " d"]) -> Float[Array, " d"]:
    return vector / jnp.linalg.norm(vector)


# Checks


def _drawn(draw: Draw, outputs: int = 3) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """An output Wx and its move Wδ."""
    drawn = instances.linear(draw, outputs, 4)
    delta = drawn.delta / jnp.linalg.norm(drawn.delta)
    return drawn.weight @ drawn.x, drawn.weight @ delta


def _exact(draw: Draw) -> Float[Array, ""]:
    """At ε in 0.1 … 10 against the definition, on both sides of a right angle."""
    output, move = _drawn(draw)
    eps = draw.log_uniform(0.1, 10.0)
    expected = oracle.cosine(output, output + eps * move)
    values = moved_distance(output, move, eps), distance(output, output + eps * move)
    return jnp.maximum(*(oracle.relative(value, expected) for value in values))


def _tiny(draw: Draw) -> Float[Array, ""]:
    """At ε = 1e-5 against two orders of the expansion, of an output twice as long as the move."""
    output, move = 2 * instances.unit(draw, 3), instances.unit(draw, 3)
    return oracle.relative(moved_distance(output, move, 1e-5), third_order(output, move, 1e-5))


def _slope(approximation):
    def slope(draw: Draw) -> Float[Array, ""]:
        output, move = _drawn(draw)
        move = move * jnp.linalg.norm(output) / jnp.linalg.norm(move)
        errors = [jnp.abs(approximation(output, move, eps) - moved_distance(output, move, eps)) for eps in (1e-3, 1e-4)]
        return jnp.log10(errors[0] / errors[1])

    return slope


def _distance_to(order: int, slope):
    return lambda draw: jnp.abs(slope(draw) - order)


def _bounds(draw: Draw) -> Float[Array, ""]:
    """Violation of the two-sided bounds, relative; and closeness of the lower one where c is small."""
    tangent = draw.log_uniform(1e-3, 1.5)
    lower, upper = expansion_bounds(tangent**2)
    value = moved_distance(jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0]), tangent)
    small, _ = expansion_bounds(1e-4)
    close = jnp.abs(small - moved_distance(jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0]), 1e-2)) / 1e-4
    return jnp.maximum(jnp.maximum(lower - value, value - upper) / upper, close - 1e-8)


def _overestimate(draw: Draw) -> Float[Array, ""]:
    output, move = _drawn(draw)
    ratio = stated_leading(output, move, 0.5) / leading(output, move, 0.5)
    along = (output @ move) / (output @ output)
    return oracle.relative(ratio, 1 + along**2 / perpendicular(output, move))


def _isotropic(draw: Draw) -> Float[Array, ""]:
    """Moves in a uniform direction of three: the stated constant is 4/3 too large in the median."""
    output, move = instances.unit(draw, 3), instances.unit(draw, 3)
    return stated_leading(output, move, 1.0) / leading(output, move, 1.0)


def _one_output(draw: Draw) -> Float[Array, ""]:
    """D = 1: 0, or 2 where the sign changes."""
    output, move = _drawn(draw, 1)
    value = distance(output, output + 3 * move)
    closed = moved_distance(output, move, 3.0)
    expected = jnp.where(output[0] * (output + 3 * move)[0] > 0, 0.0, 2.0)
    return jnp.maximum(jnp.abs(value - expected), jnp.abs(closed - expected))


def _single_precision(form):
    """Error in float32 at an angle of 7e-5."""

    def error(draw: Draw) -> Float[Array, ""]:
        output, move = instances.unit(draw, 3), instances.unit(draw, 3)
        across = move - (move @ output) * output
        perturbed = output + 7e-5 * across / jnp.linalg.norm(across)
        value = form(output.astype(jnp.float32), perturbed.astype(jnp.float32))
        return oracle.relative(value.astype(float), distance(output, perturbed))

    return error


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
)
