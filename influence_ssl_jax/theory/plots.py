"""Draw one picture for each family of statements, from the closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from influence_ssl_jax.theory import (
    background,
    cosine,
    deviation,
    gauss_newton,
    gaussian,
    groups,
    leave_out,
    leverage,
    linear,
    oracle,
    properties,
)


def remainder(axes: Axes) -> None:
    """Draw the remainder of Eq. 3 against the weight of the example.

    With one parameter, `θ(e) = (1 + e)/(2 + e)`.
    """
    weights = np.logspace(-4, 0, 30)
    response = background.response(2 * jnp.ones((1, 1)), -jnp.ones(1) / 2)
    first_order = [background.extrapolation(jnp.ones(1) / 2, response, weight)[0] for weight in weights]
    axes.loglog(weights, np.abs((1 + weights) / (2 + weights) - np.asarray(first_order)), label="remainder")
    axes.loglog(weights, weights**2 / 8, "--", label="$e^2/8$")
    axes.set(xlabel="weight $e$ of the example", ylabel=r"$|\theta(e) - \theta^* - e\,\theta'|$")


def limit_gap(axes: Axes) -> None:
    """Draw Theorem 1 at finite damping.

    The lines are one layer, its limit, and the exact two-layer score with its pole.
    """
    damping = np.logspace(-3, 3, 400)
    first, second, delta = 2 * jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1)
    one = jax.vmap(lambda d: linear.influence(second @ first, delta, 1.0, d))(damping)
    axes.semilogx(damping, one / 4, label="in $W$")
    two = jax.vmap(
        lambda d: gauss_newton.two_layer_influence(2 * jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), 1.0, d)
    )(damping)
    axes.semilogx(damping, two / 4, label="in $(W_1, W_2)$, Gauss–Newton")
    derivatives = oracle.derivatives(lambda w: jnp.prod(w) ** 2, jnp.asarray([2.0, 1.0]))
    exact = np.asarray(jax.vmap(lambda d: oracle.quadratic(derivatives.hessian, derivatives.gradient, d))(damping))
    pole = -np.linalg.eigvalsh(np.asarray(derivatives.hessian))[0]
    for side in (damping < pole, damping > pole):
        axes.semilogx(damping[side], exact[side] / 4, color="C3", label="in $(W_1, W_2)$, exact" if side[0] else None)
    axes.axhline(2, color="0.6", lw=0.8, ls=":")
    axes.set(xlabel=r"damping $\lambda$", ylabel=r"$I_\lambda / l$", ylim=(-3, 5))


def any_encoder(axes: Axes) -> None:
    """Draw a tanh network's score over its loss, for both distances."""
    keys = jax.random.split(jax.random.key(0), 3)
    first, second = jax.random.normal(keys[0], (8, 3)), jax.random.normal(keys[1], (2, 8))
    x = jax.random.normal(keys[2], (3,))
    damping = np.logspace(-5, 3, 60)
    residuals = {"squared Euclidean": gauss_newton.euclidean_residual, "cosine": gauss_newton.cosine_residual}
    for name, form in residuals.items():

        def residual(weights, form=form):
            return form(weights[1] @ jnp.tanh(weights[0] @ x), weights[1] @ jnp.tanh(weights[0] @ (x + 0.3)))

        jacobian = jnp.concatenate([j.reshape(2, -1) for j in jax.jacrev(residual)([first, second])], axis=1)
        value = residual([first, second])
        gram = jacobian @ jacobian.T
        scores = jax.vmap(lambda d, value=value, gram=gram: gauss_newton.influence(value, gram, d))(damping)
        axes.semilogx(damping, scores / (value @ value / 2), label=name)
    axes.axhline(2, color="0.6", lw=0.8, ls=":")
    axes.set(xlabel=r"damping $\lambda$", ylabel=r"$I_\lambda / l$")


def exponent(axes: Axes) -> None:
    """Draw the local power of ε (Claim 3)."""
    ratio = np.logspace(-3, 3, 100)
    slopes = jax.vmap(lambda r: properties.exponent(jnp.ones(1), jnp.sqrt(r), 1.0))(ratio)
    axes.semilogx(ratio, slopes, label="corrected")
    axes.axhline(2, color="C3", ls="--", label="as stated")
    axes.set(xlabel=r"$\varepsilon^2\|\delta\|^2/\lambda$", ylabel=r"$d\log I_\lambda / d\log\varepsilon$")


def violation(axes: Axes) -> None:
    """Draw random changes of W over the two bounds of Claim 4.

    One bound is the stated one, the other the corrected one.
    """
    keys = jax.random.split(jax.random.key(1), 2)
    shift = np.logspace(-2, 2, 400)
    weights = jax.random.normal(keys[0], (400, 2, 3))
    shifts = jax.random.normal(keys[1], (400, 2, 3)) * shift[:, None, None]
    delta = jnp.asarray([1.0, 0.0, 0.0])
    changes = jax.vmap(lambda w, e: jnp.abs(properties.change(w, e, delta, 1.0, 0.0)))(weights, shifts)
    norms = jnp.linalg.norm(weights, axis=(1, 2)), jnp.linalg.norm(shifts, axis=(1, 2))
    stated = jax.vmap(lambda w, e: properties.stated_change_bound(w, e, delta, 1.0))(*norms)
    corrected = jax.vmap(lambda w, e: properties.change_bound(w, e, delta, 1.0))(*norms)
    axes.loglog(norms[1] / norms[0], changes / stated, ".", ms=3, color="C3", label="change / stated bound")
    axes.loglog(norms[1] / norms[0], changes / corrected, ".", ms=3, color="C0", label="change / corrected bound")
    axes.axhline(1, color="0.3", lw=0.8)
    axes.set(xlabel=r"$\|E\| / \|W\|$", ylabel="ratio, at most 1", ylim=(1e-3, None))


def interaction(axes: Axes) -> None:
    """Draw two unit perturbations' remainder against their angle (Claims 6–7)."""
    angles = np.linspace(0, np.pi, 100)
    weight = jnp.asarray([[2.0, 0.0], [0.0, 1.0]])
    pairs = jnp.stack([jnp.tile(jnp.asarray([1.0, 0.0]), (100, 1)), jnp.stack([np.cos(angles), np.sin(angles)], 1)], 1)
    axes.plot(np.degrees(angles), jax.vmap(lambda d: groups.pooled_remainder(weight, d, 1.0))(pairs), label="remainder")
    bounds = jax.vmap(lambda d: groups.pooled_remainder_bound(weight, d, 1.0))(pairs)
    axes.plot(np.degrees(angles), bounds, "--", color="C3", label="bound of Claim 7")
    ranges = jax.vmap(lambda d: groups.pooled_remainder_range(weight, d, 1.0))(pairs)
    axes.fill_between(np.degrees(angles), ranges[:, 0], ranges[:, 1], alpha=0.15, label="sharpened range")
    axes.set(xlabel="angle between the perturbations (degrees)", ylabel="$R(S)$")


def reliability(axes: Axes) -> None:
    """Draw the reliability against the number of draws."""
    draws = np.arange(1, 65)
    for ratio in (1, 0.25, 0.05):
        axes.semilogx(draws, [deviation.reliability(ratio, 1.0, int(k)) for k in draws], label=f"$V_b/V_w = {ratio}$")
    axes.set(xlabel="draws $K$", ylabel="correlation of two scorings", ylim=(0, 1))


def expansion(axes: Axes) -> None:
    """Draw the relative error of the three versions of Proposition 3."""
    eps = np.logspace(-4, 0, 60)
    output, move = jnp.asarray([1.0, 0.5]), jnp.asarray([0.4, 0.7])
    truth = jax.vmap(lambda e: cosine.moved_distance(output, move, e))(eps)
    forms = {"as stated": cosine.stated_leading, "leading term": cosine.leading, "two terms": cosine.third_order}
    for (name, form), colour in zip(forms.items(), ("C3", "C0", "C2"), strict=True):
        values = jax.vmap(lambda e, form=form: form(output, move, e))(eps)
        axes.loglog(eps, jnp.abs(values / truth - 1), label=name, color=colour)
    axes.set(xlabel=r"$\varepsilon$", ylabel="relative error")


def duplicates(axes: Axes) -> None:
    """Draw the score of each of k copies among 100 examples.

    The Hessian is that of the data set.
    """
    copies = np.arange(1, 41)
    for alone in (1.0, 0.1, 0.02):
        scores = 2 * 100 * np.asarray([leverage.duplicate_leverage(alone, int(k)) for k in copies])
        axes.loglog(copies, scores, label=f"$s = {alone}$")
    axes.loglog(
        copies, [leverage.duplicate_influence_bound(1.0, 100, int(k)) for k in copies], "k--", lw=1, label="$2n/k$"
    )
    axes.axhline(2, color="C3", ls=":", label="Theorem 1")
    axes.set(xlabel="number of copies $k$", ylabel="$I_i / l_i$, $n = 100$")


def shortfall(axes: Axes) -> None:
    """Draw the loss's exact change over the change that influence predicts."""
    leverages = jnp.linspace(0.0, 0.95, 100)
    axes.semilogy(leverages, leave_out.underestimate(leverages), label="exact / influence")
    axes.set(xlabel="leverage $h$", ylabel=r"$\Delta l$ over $I/n$")


def estimators(axes: Axes) -> None:
    """Draw the score of averaged gradients over that of the expected one.

    A gradient is averaged over K draws.
    """
    draws = np.logspace(0, 5, 60)
    for inputs in (3, 192, 3072):
        single = gaussian.isotropic_ratio(inputs)
        ratio = [gaussian.averaged_gradient_score(single, 1.0, float(k)) for k in draws]
        axes.loglog(draws, ratio, label=f"$p = {inputs}$")
    axes.set(xlabel="draws $K$", ylabel="expected score / target")
