"""What do second-order products cost, as multiples of one plain gradient of the same framework?

    python -m benchmarks.primitives --setting.width 16

The mean cosine distance of one batch through the shared ResNet-18. All operations of both frameworks take turns, and a
ratio is the median over repetitions of neighbours' times. A few minutes on two cores, most of it compiling. Expected at
width 16: HVP at most 2, Gauss–Newton product at most 1.4, each vector of a block at most 1.2 gradients.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tyro

from benchmarks.measure import Compiled, Operation, rows, times
from benchmarks.results import write
from benchmarks.shared import MEAN, STD, Setting, Shared, random_vector, shared
from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.curvature.products import block_matvec, matvec
from influence_ssl_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        setting: Network and images; one batch of them.
        blocks: Numbers of vectors.
        repeats: Repetitions.
        patience: Seconds of repetitions after which an operation is not repeated again.
        largest_peer_block: The largest block that curvlinops is given.
        peers: Whether torch takes part.
    """

    setting: Setting = dataclasses.field(default_factory=lambda: Setting(examples=64, batch=64))
    blocks: tuple[int, ...] = (1, 8, 32)
    repeats: int = 3
    patience: float = 60.0
    largest_peer_block: int = 8
    peers: bool = True

    @classmethod
    def tiny(cls) -> "Config":
        """Return settings with one repetition of a linear network, without torch."""
        return cls(Setting("linear", width=4, examples=2, batch=2, size=4), blocks=(2,), repeats=1, peers=False)


def forms(given: Shared) -> dict[str, Callable[[Params, Params], object]]:
    """Return the package's products and their alternatives, by name."""
    problem, batch = given.problem(), jax.tree.map(lambda leaf: leaf[0], given.batches)
    loss = given.objective.loss

    def value(params: Params) -> jax.Array:
        return given.objective(params, given.frozen, batch)

    def outputs(params: Params) -> jax.Array:
        return given.objective.outputs(params, given.frozen, batch)

    def package(kind: str) -> Callable[[Params, Params], object]:
        curved = dataclasses.replace(problem, curvature=kind)
        return lambda params, vector: matvec(dataclasses.replace(curved, params=params))(vector)

    def along(params: Params, vector: Params) -> jax.Array:
        return jax.jvp(value, (params,), (vector,))[1]

    def two_passes(params: Params, vector: Params) -> Params:
        y, pushed = jax.jvp(outputs, (params,), (vector,))
        return jax.vjp(outputs, params)[1](jax.jvp(jax.grad(loss.head), (y,), (pushed,))[1])[0]

    return {
        "forward": lambda params, _: value(params),
        "gradient": lambda params, _: jax.grad(value)(params),
        "Hessian × vector, forward over reverse": package("hessian"),
        "Hessian × vector, reverse over forward": lambda params, vector: jax.grad(along)(params, vector),
        "Hessian × vector, reverse over reverse": lambda params, vector: jax.vjp(jax.grad(value), params)[1](vector)[0],
        "Gauss–Newton × vector, linearised and transposed": package("ggn"),
        "Gauss–Newton × vector, jvp and vjp": two_passes,
    }


def jax_operations(given: Shared, blocks: tuple[int, ...]) -> dict[str, Operation]:
    """Return compiled operations by name."""
    vector = random_vector(given.params)
    operations = {name: compiled(form, given.params, vector) for name, form in forms(given).items()}
    for kind, words in (("hessian", "Hessian"), ("ggn", "Gauss–Newton")):
        curved = dataclasses.replace(given.problem(), curvature=kind)
        for count in blocks:
            block = jax.tree.map(lambda leaf, n=count: jnp.stack([leaf * (1 + i) for i in range(n)]), vector)
            name = f"{words} × block of {count}"
            operations[name] = compiled(
                lambda p, v, c=curved: block_matvec(dataclasses.replace(c, params=p))(v), given.params, block
            )
    return operations


def compiled(function: Callable[[Params, Params], object], params: Params, vector: Params) -> Compiled:
    """Compile a function and call it once."""
    return Compiled(jax.jit(function), ((params, vector),))


def run(config: Config) -> dict:
    """Measure every operation in seconds and in gradients, by framework."""
    given = shared(config.setting)
    sides = {"jax": jax_operations(given, config.blocks)}
    if config.peers:
        from benchmarks.peers.operations import primitives  # torch is an extra

        # curvlinops holds the activations of every vector of a block at once: 32 of them do not fit
        small = tuple(count for count in config.blocks if count <= config.largest_peer_block)
        sides["torch"] = primitives(given, (MEAN, STD), small)
    return {"data": given.data, "operations": rows(sides, config.repeats, patience=config.patience)}


def main() -> None:
    """Measure, print, write."""
    config = tyro.cli(Config)
    keep_convolutions_whole()
    record = run(config)
    for row in record["operations"]:
        print(f"{row['framework']:6} {row['operation']:50} {row.get('failed') or times(row)}")
    write(f"primitives_w{config.setting.width}", config, record)


if __name__ == "__main__":
    main()
