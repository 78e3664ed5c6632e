"""What a layer is: how its parameters' gradient follows from what it read and what came back."""

import abc

import jax.numpy as jnp
from jaxtyping import Array, Float


class Layer(abc.ABC):
    """One call of one module: how its parameters' gradient follows from what it read and what came back.

    Subclasses are frozen dataclasses with the module's `path` in the parameter tree, hashable and static under `jit`.
    """

    path: tuple[str, ...]

    @property
    @abc.abstractmethod
    def leaves(self) -> tuple[str, ...]:
        """Names of the parameters that this layer explains."""


class MatrixLayer(Layer):
    """`y_t = W̄ᵀ ā_t` at every position t, with `ā` the inputs of the position and, where there is a bias, a last 1.

    The gradient of an example is `Σ_t ā_t s_tᵀ`, [groups, inputs, outputs], `s` the gradient with respect to `y`.
    """

    groups: int
    inputs: int
    outputs: int

    @abc.abstractmethod
    def project_inputs(
        self, inputs: Float[Array, "images *pixels"], basis: Float[Array, "groups inputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """`ā_tᵀ basis` at every position, without forming `ā`."""

    @abc.abstractmethod
    def input_rows(self, inputs: Float[Array, "images *pixels"]) -> Float[Array, "images positions groups inputs"]:
        """`ā_t` at every position."""

    @abc.abstractmethod
    def to_matrix(self, leaves: dict[str, Array]) -> Float[Array, "groups inputs outputs"]:
        """The layer's parameters (or a vector of their structure) as `W̄`."""

    @abc.abstractmethod
    def from_matrix(self, matrix: Float[Array, "groups inputs outputs"]) -> dict[str, Array]:
        """The inverse of `to_matrix`."""

    @abc.abstractmethod
    def gradient(
        self, inputs: Float[Array, "images *pixels"], gradients: Float[Array, "images *written"]
    ) -> Float[Array, "images groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` of every image."""

    def output_rows(
        self, gradients: Float[Array, "images *written"]
    ) -> Float[Array, "images positions groups outputs"]:
        """`s_t` at every position."""
        return gradients.reshape(gradients.shape[0], -1, self.groups, self.outputs)

    def project_outputs(
        self, gradients: Float[Array, "images *written"], basis: Float[Array, "groups outputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """`s_tᵀ basis` at every position.

        Rows times a matrix: of an einsum XLA makes the transposed product, from a transposed copy of the whole map.
        """
        return (self.output_rows(gradients)[..., None, :] @ basis)[..., 0, :]


def with_one(rows: Float[Array, "*rows inputs"]) -> Float[Array, "*rows inputs_and_one"]:
    """Homogeneous coordinates: a last 1, whose weight is the bias."""
    return jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)


def outer_products(
    inputs: Float[Array, "images positions groups inputs"], outputs: Float[Array, "images positions groups outputs"]
) -> Float[Array, "images groups inputs outputs"]:
    """`Σ_t a_t s_tᵀ` of every image, from rows."""
    return jnp.einsum("ntgi,ntgo->ngio", inputs, outputs)
