"""What an item of the theory is: a statement, the verdict on it, and the checks that carry the verdict."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from influence_ssl_jax.theory.instances import Draw, Pool, pool

_FAST_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Every item is compiled once and run once, so compilation is all of its time."""

Scalar: TypeAlias = Float[Array, ""] | float | int
"""One real number: a Python number, or an array without axes, so that the closed forms differentiate and `vmap`."""
Status: TypeAlias = Literal["true", "true under conditions", "false as stated"]
Origin: TypeAlias = Literal["paper", "derived here"]
FEWEST = {"worst": 1, "median": 200, "mean": 200}
"""Draws that a statistic takes at least: a fraction of fewer would pass or fail by chance."""
Measure: TypeAlias = Callable[[Draw], Float[Array, ""]]
"""Draws one random instance and measures one number on it (an error, a ratio, a slope); `vmap`s over rows of a pool."""


@dataclasses.dataclass(frozen=True)
class AtMost:
    """Accepts if the statistic of the draws does not exceed a value.

    Attributes:
        value: The tolerance.
        statistic: Over the draws: the worst (largest), the median, or the mean.
    """

    value: float
    statistic: Literal["worst", "median", "mean"] = "worst"
    symbol: str = dataclasses.field(default="≤", init=False)

    def statistic_of(self, measured: np.ndarray) -> float:
        """The number that is compared; NaN if any draw is."""
        return float({"worst": np.max, "median": np.median, "mean": np.mean}[self.statistic](measured))

    def accepts(self, statistic: float) -> bool:
        """Whether it is within the tolerance; NaN never is."""
        return statistic <= self.value


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """Accepts if the statistic of the draws reaches a value: how a statement is shown to fail.

    Attributes:
        value: The least gap, ratio or fraction that counts as failing.
        statistic: Over the draws: the worst (smallest), the median, or the mean.
    """

    value: float
    statistic: Literal["worst", "median", "mean"] = "median"
    symbol: str = dataclasses.field(default="≥", init=False)

    def statistic_of(self, measured: np.ndarray) -> float:
        """The number that is compared; NaN if any draw is."""
        return float({"worst": np.min, "median": np.median, "mean": np.mean}[self.statistic](measured))

    def accepts(self, statistic: float) -> bool:
        """Whether it reaches the value; NaN never does."""
        return statistic >= self.value


@dataclasses.dataclass(frozen=True)
class Check:
    """A comparison on random instances.

    Attributes:
        name: What is compared, in words and plain symbols.
        measure: One instance to one number.
        limit: What the numbers of all draws must satisfy.
        most: Never more draws than this; 1 where the instance is fixed.

    A median or a mean is of 200 draws at least, whatever number is asked for: of fewer, it would pass or fail by chance.
    """

    name: str
    measure: Measure
    limit: AtMost | AtLeast
    most: int | None = None

    def draws(self, asked: int) -> int:
        """How many draws are counted where so many are asked for."""
        return min(max(asked, FEWEST[self.limit.statistic]), self.most or asked + FEWEST["mean"])

    def judge(self, measured: np.ndarray) -> "Outcome":
        """Compares the measured numbers, one per draw."""
        counted = measured[: self.most]
        statistic = self.limit.statistic_of(counted)
        return Outcome(self.name, statistic, self.limit, counted.size, self.limit.accepts(statistic))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        name: The check's name.
        statistic: The number that was compared.
        limit: What it was compared with.
        draws: How many random instances it covers.
        passed: The verdict.
    """

    name: str
    statistic: float
    limit: AtMost | AtLeast
    draws: int
    passed: bool


@dataclasses.dataclass(frozen=True)
class CounterExample:
    """An instance at which a statement fails.

    Attributes:
        instance: The instance and what happens there, with LaTeX between dollars.
        stated: The value, or the bound, of the statement, evaluated at the instance.
        actual: The value there.
        gap: `actual − stated` as the instance has it, with its sign: over an upper bound positive, and not zero.
    """

    instance: str
    stated: Callable[[], Float[Array, ""]]
    actual: Callable[[], Float[Array, ""]]
    gap: float

    def check(self) -> Check:
        """The comparison that keeps the statement refuted: `actual − stated` is the gap, on its side, to a thousandth.

        A closed form that is changed changes one of the two, so that nothing but the instance as it is written passes.
        """

        def error(draw: Draw) -> Float[Array, ""]:
            del draw
            return jnp.abs((self.actual() - self.stated()) / self.gap - 1)

        return Check(f"counter-example: actual − stated = {self.gap:.3g}, rel. error", error, AtMost(1e-3), most=1)


@dataclasses.dataclass(frozen=True)
class Item:
    """One statement of the theory.

    Attributes:
        name: Short and unique, for the command line.
        title: As in the paper, or a title of our own.
        source: Where it stands, and how sure the reconstruction is.
        statement: The statement, LaTeX between dollars.
        status: The verdict on the statement as given.
        origin: Whether the statement is the paper's; one that is derived here is no error of the paper's where it fails.
        checks: What carries the verdict.
        conditions: What the statement needs.
        correction: What holds instead, or in addition.
        counter_example: Where the statement fails.
    """

    name: str
    title: str
    source: str
    statement: str
    status: Status
    checks: tuple[Check, ...]
    conditions: str = ""
    correction: str = ""
    counter_example: CounterExample | None = None
    origin: Origin = "paper"

    def all_checks(self) -> tuple[Check, ...]:
        """The checks, the counter-example's first."""
        return (*(() if self.counter_example is None else (self.counter_example.check(),)), *self.checks)

    def run(self, key: Key[Array, ""], draws: int) -> tuple[Outcome, ...]:
        """All checks on `draws` instances each, or more (`Check.draws`), in one compiled call; needs float64."""
        checks = self.all_checks()
        counted = [check.draws(draws) for check in checks]

        def measure(row: Pool) -> list[Float[Array, ""]]:
            return [check.measure(Draw(row)) for check in checks]

        # One draw after another: on CPU, batched LAPACK calls that run side by side can wait for each other for ever.
        measured = jax.jit(lambda rows: jax.lax.map(measure, rows), compiler_options=_FAST_COMPILATION)(
            pool(key, max(counted))
        )
        every = zip(checks, measured, counted, strict=True)
        return tuple(check.judge(np.asarray(values)[:count]) for check, values, count in every)
