"""Drawn inputs for the closed forms: shapes 1–6, scales 1e-3–1e3, damping over six decades, degenerate ones included."""

import functools
import inspect
import types
from typing import NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st

# Few shapes, so that few are compiled: (d, p) with dimensions from 1 to 6, wide, tall and square.
SHAPES = ((1, 1), (1, 6), (4, 2), (3, 5))


@functools.cache
def compiled(module):
    """A module's functions, each one program a shape: operation by operation there are ten times as many to compile.

    Functions of counts stay as they are.
    """
    functions = {name: value for name, value in vars(module).items() if inspect.isfunction(value)}
    counts = {name for name, value in functions.items() if int in inspect.get_annotations(value).values()}
    return types.SimpleNamespace(**{n: value if n in counts else jax.jit(value) for n, value in functions.items()})


class Case(NamedTuple):
    weight: np.ndarray
    delta: np.ndarray
    eps: float
    damping: float


def decades(low: int, high: int):
    return st.floats(low, high).map(lambda power: 10.0**power)


generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def cases(draw, shapes=SHAPES):
    """Generic, and with δ = 0, W = 0, one non-zero coordinate, δ along or across the first row of W."""
    outputs, inputs = draw(st.sampled_from(shapes))
    generator = draw(generators)
    weight = generator.normal(size=(outputs, inputs)) * draw(decades(-3, 3))
    delta = generator.normal(size=inputs)
    kind = draw(st.sampled_from(["generic", "generic", "no delta", "no weight", "axis", "parallel", "orthogonal"]))
    if kind == "no delta":
        delta = np.zeros(inputs)
    elif kind == "no weight":
        weight = np.zeros_like(weight)
    elif kind == "axis":
        delta = np.eye(inputs)[0]
    elif kind == "parallel":
        delta = weight[0].copy()
    elif kind == "orthogonal":
        delta = delta - weight[0] * (delta @ weight[0]) / (weight[0] @ weight[0])
    length = np.linalg.norm(delta)
    delta = delta * draw(decades(-2, 1)) / (length if length > 1e-12 else 1.0)
    return Case(weight, delta, draw(decades(-3, 1)), draw(decades(-4, 2)))


class Population(NamedTuple):
    weight: np.ndarray
    deltas: np.ndarray
    eps: float
    damping: float


@st.composite
def populations(draw, shapes=((3, 1, 2), (5, 2, 3), (4, 3, 6))):
    """n perturbations; some rows repeated, zero, or orthogonal to each other."""
    examples, outputs, inputs = draw(st.sampled_from(shapes))
    generator = draw(generators)
    deltas = generator.normal(size=(examples, inputs)) * draw(decades(-1, 1))
    kind = draw(st.sampled_from(["generic", "repeated", "zero row", "orthogonal"]))
    if kind == "repeated":
        deltas[1] = deltas[0]
    elif kind == "zero row":
        deltas[0] = 0
    elif kind == "orthogonal":
        deltas[1] -= deltas[0] * (deltas[1] @ deltas[0]) / (deltas[0] @ deltas[0])
    weight = generator.normal(size=(outputs, inputs)) * draw(decades(-3, 3))
    return Population(weight, deltas, draw(decades(-1, 1)), draw(decades(-3, 3)))


def quadratic(matrix: np.ndarray, vector: np.ndarray, damping: float) -> float:
    """`vᵀ(M + λI)⁻¹v`, by the pseudo-inverse at λ = 0."""
    if damping == 0:
        return float(vector @ np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ vector)
    return float(vector @ np.linalg.solve(matrix + damping * np.eye(vector.size), vector))


def alignment(weight: np.ndarray, delta: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian of `ε²‖Wδ‖²`, entry by entry."""
    outputs, inputs = weight.shape
    gradient = np.zeros((outputs, inputs))
    hessian = np.zeros((outputs, inputs, outputs, inputs))
    for a in range(outputs):
        for i in range(inputs):
            gradient[a, i] = 2 * eps**2 * sum(weight[a, j] * delta[j] for j in range(inputs)) * delta[i]
            for j in range(inputs):
                hessian[a, i, a, j] = 2 * eps**2 * delta[i] * delta[j]
    return gradient.ravel(), hessian.reshape(outputs * inputs, -1)
