"""Define an item of theory: a statement, its verdict and checks."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from influence_ssl_jax.theory.instances import Draw, Pool, pool

_FAST_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of fast compilation: every item is compiled once and run once, so compiling is nearly all of its time."""

Scalar: TypeAlias = Float[Array, ""] | float | int
"""One real number: a Python number, or an array without axes, so that the closed forms differentiate and `vmap`."""
Status: TypeAlias = Literal["true", "true under conditions", "false as stated"]
Origin: TypeAlias = Literal["paper", "derived here"]
FEWEST = {"worst": 1, "median": 200, "mean": 200}
"""Least number of draws of each statistic: a fraction of fewer draws would pass or fail by chance."""
Measure: TypeAlias = Callable[[Draw], Float[Array, ""]]
"""A function that draws one random instance and measures one number on it: an error, a ratio, a slope."""


@dataclasses.dataclass(frozen=True)
class AtMost:
    """A limit that the statistic of the draws must not exceed.

    Attributes:
        value: The tolerance.
        statistic: The statistic over draws: the worst (largest), the median, or the mean.
        symbol: The relation, as it is printed.
    """

    value: float
    statistic: Literal["worst", "median", "mean"] = "worst"
    symbol: str = dataclasses.field(default="≤", init=False)

    def statistic_of(self, measured: np.ndarray) -> float:
        """Return the number that is compared; NaN if any draw is."""
        return float({"worst": np.max, "median": np.median, "mean": np.mean}[self.statistic](measured))

    def accepts(self, statistic: float) -> bool:
        """Test whether a statistic is within the tolerance; NaN never is."""
        return statistic <= self.value


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """A limit that the draws' statistic must reach if a statement fails.

    Attributes:
        value: The least gap, ratio or fraction that counts as a failure of the statement.
        statistic: The statistic over draws: the worst (smallest), the median, or the mean.
        symbol: The relation, as it is printed.
    """

    value: float
    statistic: Literal["worst", "median", "mean"] = "median"
    symbol: str = dataclasses.field(default="≥", init=False)

    def statistic_of(self, measured: np.ndarray) -> float:
        """Return the number that is compared; NaN if any draw is."""
        return float({"worst": np.min, "median": np.median, "mean": np.mean}[self.statistic](measured))

    def accepts(self, statistic: float) -> bool:
        """Test whether a statistic reaches the value; NaN never does."""
        return statistic >= self.value


@dataclasses.dataclass(frozen=True)
class Check:
    """A comparison on random instances.

    A median or a mean is over 200 draws at least, even if fewer are requested: with fewer, it would pass or fail by
    chance.

    Attributes:
        name: What is compared, in words and plain symbols.
        measure: The function from an instance to a number.
        limit: What the numbers of all draws must satisfy.
        most: Largest number of draws; 1 if the instance is fixed, None for no limit.
    """

    name: str
    measure: Measure
    limit: AtMost | AtLeast
    most: int | None = None

    def draws(self, asked: int) -> int:
        """Return the number of draws that are counted if `asked` are requested."""
        return min(max(asked, FEWEST[self.limit.statistic]), self.most or asked + FEWEST["mean"])

    def judge(self, measured: np.ndarray) -> "Outcome":
        """Compare the numbers of all draws with the limit."""
        counted = measured[: self.most]
        statistic = self.limit.statistic_of(counted)
        return Outcome(self.name, statistic, self.limit, counted.size, self.limit.accepts(statistic))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Attributes:
        name: The check's name.
        statistic: The number that was compared.
        limit: What it was compared with.
        draws: Number of random instances.
        passed: Whether the limit accepts it.
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
        stated: The value, or the bound, of the statement at the instance.
        actual: The true value there.
        gap: `actual − stated` at the instance, with its sign; it is positive if an upper bound fails, and never zero.
    """

    instance: str
    stated: Callable[[], Float[Array, ""]]
    actual: Callable[[], Float[Array, ""]]
    gap: float

    def check(self) -> Check:
        """Return the check that the statement fails.

        `actual − stated` equals the gap to a thousandth. A change of either closed form changes the gap, so only the
        instance as it is written passes.
        """

        def error(draw: Draw) -> Float[Array, ""]:
            del draw
            return jnp.abs((self.actual() - self.stated()) / self.gap - 1)

        return Check(f"counter-example: actual − stated = {self.gap:.3g}, rel. error", error, AtMost(1e-3), most=1)


@dataclasses.dataclass(frozen=True)
class Item:
    """One statement of the theory.

    Attributes:
        name: A short unique name, for the command line.
        title: The title in the paper, or one of this project.
        source: Where it is stated, and how certain the reconstruction is.
        statement: The statement, with LaTeX between dollars.
        status: The verdict on the statement as given.
        checks: The checks that support the verdict.
        conditions: What the statement needs.
        correction: What holds instead, or in addition.
        counter_example: An instance at which the statement fails.
        origin: Whether the paper makes the statement. If one that is derived here is false, the paper is not wrong.
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
        """Return the checks, that of the counter-example first."""
        return (*(() if self.counter_example is None else (self.counter_example.check(),)), *self.checks)

    def run(self, key: Key[Array, ""], draws: int) -> tuple[Outcome, ...]:
        """Run all checks on `draws` instances in one compiled call.

        A check may take more instances (`Check.draws`). All need float64.

        Args:
            key: The key of the instances.
            draws: Number of instances.
        """
        checks = self.all_checks()
        counted = [check.draws(draws) for check in checks]

        def measure(row: Pool) -> list[Float[Array, ""]]:
            return [check.measure(Draw(row)) for check in checks]

        # One draw after another: on CPU, batched LAPACK calls that run at the same time can deadlock.
        measured = jax.jit(lambda rows: jax.lax.map(measure, rows), compiler_options=_FAST_COMPILATION)(
            pool(key, max(counted))
        )
        every = zip(checks, measured, counted, strict=True)
        return tuple(check.judge(np.asarray(values)[:count]) for check, values, count in every)
