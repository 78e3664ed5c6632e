"""State the exact effect of leaving examples out.

Influence functions are exact here up to a known factor. Anchored objective
`F(W) = (1/n) Σ ε²‖Wδ_i‖² + (λ/2)‖W − W₀‖_F²`; its Hessian is `I_d ⊗ A`, `A = 2ε²S + λI`: damping is not an approximation
here and the minimiser is stationary. `h_i` are the leverages of `leverage`. Derived for this project.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, leverage, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar


def optimum(
    anchor: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, "d p"]:
    """Return the minimiser `W* = λW₀A⁻¹`."""
    damped = leverage.hessian(deltas, eps) + damping * jnp.eye(deltas.shape[1])
    return damping * jnp.linalg.solve(damped, anchor.T).T


def predicted_steps(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, "n d p"]:
    """Return the predicted step for removing point i: `(1/n) G_i A⁻¹`.

    Influence functions predict it; `G_i = 2ε²W*δ_iδ_iᵀ`.
    """
    perturbations = eps * deltas
    damped = leverage.hessian(deltas, eps) + damping * jnp.eye(deltas.shape[1])
    directions = 2 * jnp.linalg.solve(damped, perturbations.T).T / deltas.shape[0]
    return jnp.einsum("nd,np->ndp", perturbations @ weight.T, directions)


def exact_steps(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, "n d p"]:
    """Return the exact step: `W₋ᵢ − W* = (1/(1 − h_i))·(1/n) G_i A⁻¹`.

    Args:
        weight: W* of `optimum`.
        deltas: All perturbations, one in each row.
        eps: ε.
        damping: λ > 0.
    """
    keep = 1 - leverage.leverages(deltas, eps, damping)
    return predicted_steps(weight, deltas, eps, damping) / keep[:, None, None]


def exact_loss_change(loss: Float[Array, " n"], leverages: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the exact change of the loss: `l_i(W₋ᵢ) − l_i(W*) = l_i h(2 − h)/(1 − h)²`."""
    return loss * leverages * (2 - leverages) / (1 - leverages) ** 2


def predicted_loss_change(loss: Float[Array, " n"], leverages: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the change that influence functions predict: `I_i/n = 2h_i l_i`."""
    return 2 * leverages * loss


def underestimate(leverages: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the exact over the predicted change: `(1 − h/2)/(1 − h)²`.

    It is at least 1, and unbounded as h → 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> underestimate(jnp.asarray([0.0, 0.5])).tolist()
        [1.0, 3.0]
    """
    return (1 - leverages / 2) / (1 - leverages) ** 2


def group_outputs(outputs: Float[Array, "d k"], group_gram: Float[Array, "k k"]) -> Float[Array, "d k"]:
    """Return the outputs after a group S is removed: `W₋S D_S = W* D_S (I − H_SS)⁻¹`.

    The columns of D_S are the δ_i of the group. It is additive over the members if `H_SS` is diagonal: the exact
    analogue of Claim 6.

    Args:
        outputs: `W* D_S`.
        group_gram: `H_SS = (2ε²/n) D_Sᵀ A⁻¹ D_S`, the group's block of `leverage.gram`.
    """
    return jnp.linalg.solve(jnp.eye(group_gram.shape[0]) - group_gram.T, outputs.T).T


def renormalised_damping(damping: Scalar, examples: Scalar) -> Scalar:
    """Return the damping `λ(n − 1)/n` of retraining without an example.

    At it, the problem with weights 1/n equals retraining with weights 1/(n − 1) at λ.
    """
    return damping * (examples - 1) / examples


# Checks


def _refit(
    drawn: instances.Population, kept: Float[Array, " n"], damping: Scalar, examples: int
) -> Float[Array, "d p"]:
    """Minimise the anchored objective over the kept examples.

    One Newton step is exact.
    """

    def objective(weight: Float[Array, "d p"]) -> Float[Array, ""]:
        losses = jnp.sum((drawn.eps * drawn.deltas @ weight.T) ** 2, axis=1)
        return kept @ losses / examples + damping / 2 * jnp.sum((weight - drawn.weight) ** 2)

    gradient, hessian = oracle.derivatives(objective, drawn.weight)
    return drawn.weight - jnp.linalg.solve(hessian, gradient).reshape(drawn.weight.shape)


class _LeaveOneOut:
    """An anchored problem of six examples, and its six refits.

    Each refit has one of the examples removed.
    """

    def __init__(self, draw: Draw):
        self.drawn = instances.population(draw, 6, 2, 3)
        anchor, deltas, eps, damping = self.drawn
        self.setting = deltas, eps, damping
        self.full = _refit(self.drawn, jnp.ones(6), damping, 6)
        self.without = jax.vmap(lambda kept: _refit(self.drawn, kept, damping, 6))(1 - jnp.eye(6))
        self.optimum = optimum(anchor, *self.setting)
        self.leverages = leverage.leverages(*self.setting)

    def losses(self, weight: Float[Array, "d p"]) -> Float[Array, " n"]:
        """Return the loss of every example."""
        return jnp.sum((self.drawn.eps * self.drawn.deltas @ weight.T) ** 2, axis=1)


def _optimum(draw: Draw) -> Float[Array, ""]:
    """Compare the closed optimum with a refit."""
    problem = _LeaveOneOut(draw)
    return oracle.relative(problem.optimum, problem.full)


def _steps(draw: Draw) -> Float[Array, ""]:
    """Compare each example's step on its own scale.

    Rounding in W* limits the accuracy.
    """
    problem = _LeaveOneOut(draw)
    steps = problem.without - problem.full[None]
    closed = exact_steps(problem.optimum, *problem.setting)
    scale = jnp.linalg.norm(problem.without, axis=(1, 2)) + jnp.linalg.norm(steps, axis=(1, 2))
    return jnp.max(jnp.linalg.norm(closed - steps, axis=(1, 2)) / scale)


def _loss_change(draw: Draw) -> Float[Array, ""]:
    """Compare the closed change of the loss with six refits."""
    problem = _LeaveOneOut(draw)
    before = problem.losses(problem.full)
    after = jnp.diagonal(jax.vmap(problem.losses)(problem.without))
    closed = exact_loss_change(before, problem.leverages)
    return jnp.max(jnp.abs(closed - (after - before)) / after)


def _prediction(draw: Draw) -> Float[Array, ""]:
    """Check influence over n at the optimum, and its shortfall.

    The shortfall is the factor by which it is too small.
    """
    problem = _LeaveOneOut(draw)
    losses = problem.losses(problem.optimum)
    predicted = predicted_loss_change(losses, problem.leverages)
    exact = exact_loss_change(losses, problem.leverages)
    influences = leverage.influences(problem.optimum, *problem.setting)
    return jnp.maximum(
        oracle.relative(predicted, influences / 6),
        oracle.relative(underestimate(problem.leverages) * predicted, exact),
    )


def _first_order(draw: Draw) -> Float[Array, ""]:
    """Compare with the response of Eq. 2.

    The refit is differentiated in the weight of each example.
    """
    problem = _LeaveOneOut(draw)

    def moved(removed: Float[Array, " n"]) -> Float[Array, "d p"]:
        return _refit(problem.drawn, 1 - removed, problem.drawn.damping, 6)

    slopes = jnp.moveaxis(jax.jacfwd(moved)(jnp.zeros(6)), -1, 0)
    return oracle.relative(predicted_steps(problem.optimum, *problem.setting), slopes)


def _shortfall(draw: Draw) -> Float[Array, ""]:
    """Return the largest underestimate of the six examples."""
    problem = _LeaveOneOut(draw)
    return jnp.max(underestimate(problem.leverages))


def _renormalised(draw: Draw) -> Float[Array, ""]:
    """Compare a refit at renormalised damping with retraining on five examples."""
    drawn = instances.population(draw, 6, 2, 3)
    kept = jnp.ones(6).at[0].set(0.0)
    retrained = _refit(drawn, kept, drawn.damping, 5)
    return oracle.relative(_refit(drawn, kept, renormalised_damping(drawn.damping, 6), 6), retrained)


def _group(draw: Draw) -> Float[Array, ""]:
    """Compare the closed outputs without three examples with a refit."""
    problem = _LeaveOneOut(draw)
    deltas = problem.drawn.deltas[:3].T
    without = _refit(problem.drawn, jnp.ones(6).at[:3].set(0.0), problem.drawn.damping, 6)
    gram = leverage.gram(*problem.setting)[:3, :3]
    return oracle.relative(group_outputs(problem.optimum @ deltas, gram), without @ deltas)


def _additive(draw: Draw) -> Float[Array, ""]:
    """Check that single steps add up for a diagonal H_SS.

    The group is orthogonal, the rest isotropic.
    """
    problem = _LeaveOneOut(draw)
    basis = instances.orthogonal(draw, 3, 3)
    drawn = problem.drawn._replace(deltas=jnp.concatenate([basis, basis]))
    setting = drawn.deltas, drawn.eps, drawn.damping
    minimiser = optimum(drawn.weight, *setting)
    without = _refit(drawn, jnp.ones(6).at[:2].set(0.0), drawn.damping, 6)
    return oracle.relative(jnp.sum(exact_steps(minimiser, *setting)[:2], axis=0), without - minimiser)


ITEMS = (
    Item(
        name="leave-one-out",
        title="Leave-one-out, exactly",
        source="derived here",
        origin="derived here",
        statement=r"Self-influence is the loss that removing an example adds to it: $l_i(W_{-i}) - l_i(W^*) = "
        r"\frac{1}{n} I_i = 2 h_i l_i$.",
        status="false as stated",
        correction=r"For the anchored objective $F(W) = \frac{1}{n}\sum_i l_i + \frac{\lambda}{2}\|W - W_0\|_F^2$: "
        r"$W_{-i} - W^* = \frac{1}{1 - h_i}$ times the prediction and $l_i(W_{-i}) - l_i(W^*) = l_i\,\frac{h_i(2 - "
        r"h_i)}{(1 - h_i)^2}$. Influence falls short by $\frac{1 - h_i/2}{(1 - h_i)^2}$; at equal $l$ both rank alike.",
        conditions=r"$h_i \to 0$. Weights $1/n$ are kept; retraining with $1/(n-1)$ is the same at $\lambda (n-1)/n$.",
        counter_example=CounterExample(
            instance=r"$l = 1$, $h = 1/2$: the loss grows by $3$, influence says $1$.",
            stated=lambda: predicted_loss_change(jnp.ones(1), jnp.ones(1) / 2)[0],
            actual=lambda: exact_loss_change(jnp.ones(1), jnp.ones(1) / 2)[0],
            gap=2.0,
        ),
        checks=(
            Check("W* against a refit: rel. error", _optimum, AtMost(1e-9)),
            Check("W₋ᵢ − W* against six refits: rel. error", _steps, AtMost(1e-7)),
            Check("l(W₋ᵢ) − l(W*) against six refits: rel. error", _loss_change, AtMost(1e-7)),
            Check("influence prediction against the derivative of the refit: rel. error", _first_order, AtMost(1e-9)),
            Check("I/n = 2hl, and its shortfall: rel. error", _prediction, AtMost(1e-9)),
            Check("retraining with weight 1/(n − 1): rel. error", _renormalised, AtMost(1e-9)),
            Check("worst shortfall of a draw, median", _shortfall, AtLeast(1.5)),
        ),
    ),
    Item(
        name="leave-group-out",
        title="Leave-group-out, exactly",
        source="derived here",
        origin="derived here",
        statement=r"$W_{-S} D_S = W^* D_S (I - H_{SS})^{-1}$ with $H_{SS} = \frac{2\varepsilon^2}{n} D_S^\top A^{-1} D_S$, "
        r"$A = 2\varepsilon^2 S + \lambda I$, the columns of $D_S$ being the $\delta_i$ of the group.",
        status="true",
        correction=r"The exact analogue of Claim 6. If $H_{SS}$ is diagonal the members add up; the converse needs the "
        r"columns of $W^* D_S$ to be linearly independent.",
        checks=(
            Check("against a refit without three of six: rel. error", _group, AtMost(1e-7)),
            Check("H_SS diagonal: sum of the single steps, rel. error", _additive, AtMost(1e-7)),
        ),
    ),
)
