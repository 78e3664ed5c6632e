"""Evaluate networks as pure functions `(parameters, frozen, images) -> embeddings`.

A network is a linen module, an nnx model or any function.
"""

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from influence_ssl_jax import trees
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.nets.convolution import canonical_convolutions, with_canonical_convolutions
from influence_ssl_jax.types import Frozen, Params, PyTree

EmbeddingFunction: TypeAlias = Callable[[Params, Frozen, Float[Array, "batch height width channels"]], Any]
"""A hashable function from parameters, frozen state and pixels in [0, 1] to embeddings [batch, width]."""

Pool: TypeAlias = Literal["mean", "first"]
"""The pooling of features at several positions: their mean, or the first of a sequence (a class token)."""

FIXED = "fixed"
"""The entry of `frozen` with the parameters that are not trained."""


def standardise_pixels(
    images: Float[Array, "batch height width channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "batch height width channels"]:
    """Return `(images − mean) / std`, channel by channel."""
    shifts, scales = (jnp.asarray(value, images.dtype).reshape(1, 1, 1, -1) for value in (mean, std))
    return (images - shifts) / scales


def select_embedding(
    outputs: PyTree, output: str | int | None, pool: Pool | None, name: str, dtype: jax.typing.DTypeLike
) -> Float[Array, "batch width"]:
    """Select one embedding for each image from the outputs of a network.

    Args:
        outputs: An array, or several in a dict, tuple or object with named fields.
        output: Name or position of the output, if there are several.
        pool: How [batch, *positions, width] becomes [batch, width].
        name: Name of the network, for errors.
        dtype: Type of the images; an embedding of fewer bits is converted to it.

    Raises:
        StructureError: If there are several outputs and none is chosen, if the chosen output or pooling does not exist,
            or if an output is not [batch, width] and no pooling is chosen.
    """
    if pool not in (None, *get_args(Pool)):
        raise StructureError(f"pool must be one of {', '.join(map(repr, get_args(Pool)))}, or None; got {pool!r}.")
    if output is not None:
        outputs = _entry(outputs, output, name)
    elif not isinstance(outputs, jax.Array):
        raise StructureError(
            f"{name} must return one embedding per image, an array [batch, width]; it returns "
            f"{_entries(outputs)}. Pass output= with one of them."
        )
    if not isinstance(outputs, jax.Array):
        raise StructureError(
            f"The output {output!r} of {name} is a {type(outputs).__name__}, not an array; name another one."
        )
    if pool is not None and outputs.ndim > 2:
        positions = tuple(range(1, outputs.ndim - 1))
        if pool == "first" and outputs.ndim != 3:
            raise StructureError(f"pool='first' reads [batch, tokens, width], got {outputs.shape}; pass pool='mean'.")
        outputs = outputs[:, 0] if pool == "first" else jnp.mean(outputs, axis=positions)
    if outputs.ndim != 2:
        raise StructureError(
            f"{name} must return one embedding per image, an array [batch, width]; got {outputs.shape}. "
            "Pool or flatten the features (pool='mean' averages positions, pool='first' takes the first token), or name "
            "another method or output."
        )
    floating = jnp.issubdtype(outputs.dtype, jnp.floating)
    return outputs.astype(jnp.promote_types(outputs.dtype, dtype)) if floating else outputs


def _entry(outputs: PyTree, output: str | int, name: str) -> Any:
    """Return one of several outputs.

    It is an entry of a dict, a field of an object, or a position in a tuple.
    """
    named = _named_entries(outputs)
    if output in named:
        return named[output]
    if isinstance(outputs, tuple | list) and isinstance(output, int) and -len(outputs) <= output < len(outputs):
        return outputs[output]
    if isinstance(outputs, jax.Array):
        raise StructureError(f"{name} returns a single array, so it has no output {output!r}; leave output= out.")
    raise StructureError(f"{name} has no output {output!r}; it returns {_entries(outputs)}.")


def _named_entries(outputs: PyTree) -> Mapping[Any, Any]:
    """Return the entries of a dict or the fields of an object."""
    if isinstance(outputs, Mapping):
        return outputs
    fields = [field.name for field in dataclasses.fields(outputs)] if dataclasses.is_dataclass(outputs) else []
    return {name: getattr(outputs, name) for name in fields or getattr(outputs, "_fields", ())}


def _entries(outputs: PyTree) -> str:
    """Describe several outputs, for errors."""
    named = _named_entries(outputs)
    if named:
        kind = "dict" if isinstance(outputs, Mapping) else type(outputs).__name__
        return f"a {kind} of {', '.join(map(repr, named))}"
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} of positions 0 … {len(outputs) - 1}"
    return f"a {type(outputs).__name__}"


@dataclasses.dataclass(frozen=True)
class Network:
    """A linen module as a function `network(params, frozen, images) -> embeddings`.

    It standardises pixels, then applies the module with its running statistics. BatchNorm is always in evaluation mode:
    statistics are constants from `frozen`, and the embedding of an example does not depend on the other examples of its
    batch.

    Attributes:
        module: A linen module from images to embeddings.
        method: The method of the module to call.
        arguments: Keyword arguments of that method, which put it into evaluation mode.
        mean: Mean of each channel, subtracted from pixels in [0, 1].
        std: Standard deviation of each channel, by which they are divided.
        output: Name or position of the embedding, if the method returns several outputs.
        pool: How features at several positions become one embedding.

    Examples:
        The pixel 1 is standardised to (1 − 0.5) / 0.25 = 2, then multiplied by the weight 3.

        >>> import jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> network = isj.Network(Linear(1), mean=(0.5,), std=(0.25,))
        >>> float(network({"dense": {"kernel": jnp.asarray([[3.0]])}}, {}, jnp.ones((1, 1, 1, 1)))[0, 0])
        6.0
    """

    module: nn.Module
    method: str = "__call__"
    arguments: tuple[tuple[str, Hashable], ...] = (("train", False),)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    output: str | int | None = None
    pool: Pool | None = None

    def __call__(
        self, params: Params, frozen: Frozen, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch embedding"]:
        """Embed a batch of images with pixels in [0, 1].

        Raises:
            StructureError: If `frozen` holds parameters, which would replace the differentiated ones, or the method
                does not take one of `arguments`.
        """
        refuse_params_in(frozen)
        self._refuse_unknown_arguments()
        collections = {name: value for name, value in frozen.items() if name != "target"}
        apply: Callable[..., Any] = self.module.apply
        with canonical_convolutions():
            outputs = apply(
                {"params": params, **collections},
                self.standardise(images),
                method=self.method,
                **dict(self.arguments),
            )
        return select_embedding(
            outputs, self.output, self.pool, f"{type(self.module).__name__}.{self.method}", images.dtype
        )

    def _refuse_unknown_arguments(self) -> None:
        """Refuse keyword arguments that the method does not take.

        Raises:
            StructureError: If there is one; the message lists those that it takes.
        """
        known = inspect.signature(getattr(type(self.module), self.method)).parameters
        wrong = [name for name, _ in self.arguments if name not in known]
        if wrong and not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values()):
            raise StructureError(
                f"{type(self.module).__name__}.{self.method} takes no argument {wrong[0]!r}, but {', '.join(known)}. Pass "
                "the arguments that put it into evaluation mode, such as (('deterministic', True),), or () if it needs none."
            )

    def standardise(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Return `(images − mean) / std`, channel by channel."""
        return standardise_pixels(images, self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class NnxNetwork:
    """An nnx model in evaluation mode as a function of its parameters.

    The parameters are its `nnx.Param`s; all other state is in `frozen`.

    Attributes:
        graph: The model without its arrays.
        name: Name of the model's class, for errors.
        method: The method of the model to call.
        arguments: Keyword arguments of that method.
        mean: Mean of each channel, subtracted from pixels in [0, 1].
        std: Standard deviation of each channel, by which they are divided.
        output: Name or position of the embedding, if the method returns several outputs.
        pool: How features at several positions become one embedding.
    """

    graph: Any
    name: str
    method: str = "__call__"
    arguments: tuple[tuple[str, Hashable], ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    output: str | int | None = None
    pool: Pool | None = None

    def __call__(
        self, params: Params, frozen: Frozen, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch embedding"]:
        """Embed a batch of images with pixels in [0, 1].

        Raises:
            StructureError: If `frozen` holds parameters, which would replace the differentiated ones.
        """
        return self.evaluate(params, frozen, images)[0]

    def evaluate(
        self, params: Params, frozen: Frozen, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch embedding"], dict[str, Bool[Array, ""]]]:
        """Embed images; return also whether each state of the model changes.

        Parameters are not compared: SpectralNorm and WeightNorm write kernels into those of their copy. Neither are the
        counters of random streams, which count also where nothing is drawn.
        """
        refuse_params_in(frozen)
        keys = jax.tree.map(jax.random.wrap_key_data, frozen["keys"])
        merged = nnx.merge(self.graph, *(nnx.State(part) for part in (params, keys, frozen["state"])))
        model = with_canonical_convolutions(merged)
        nodes = [each for each in nnx.iter_graph(model) if isinstance(each[1], nnx.Variable)]
        state = [(path, node) for path, node in nodes if not isinstance(node, nnx.Param | nnx.RngState)]
        before = [jax.tree.leaves(node.get_raw_value()) for _, node in state]
        outputs = getattr(model, self.method)(standardise_pixels(images, self.mean, self.std), **dict(self.arguments))
        embedding = select_embedding(outputs, self.output, self.pool, f"{self.name}.{self.method}", images.dtype)
        after = [jax.tree.leaves(node.get_raw_value()) for _, node in state]
        changed = {
            "/".join(map(str, path)): jnp.any(jnp.stack([jnp.any(new != old) for new, old in pairs]))
            for (path, _), pairs in zip(state, map(list, map(zip, after, before)), strict=True)
            if pairs
        }
        return embedding, changed


@dataclasses.dataclass(frozen=True)
class FunctionNetwork:
    """A pure function `(params, images)` or `(params, frozen, images)` as a network.

    Attributes:
        function: The function.
        reads_frozen: Whether frozen state is its second argument.
        mean: Mean of each channel, subtracted from pixels in [0, 1].
        std: Standard deviation of each channel, by which they are divided.
        output: Name or position of the embedding, if the function returns several outputs.
        pool: How features at several positions become one embedding.
    """

    function: Callable[..., Any]
    reads_frozen: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    output: str | int | None = None
    pool: Pool | None = None

    def __call__(
        self, params: Params, frozen: Frozen, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch embedding"]:
        """Embed a batch of images with pixels in [0, 1]."""
        state = (frozen["state"],) if self.reads_frozen else ()
        outputs = self.function(params, *state, standardise_pixels(images, self.mean, self.std))
        name = getattr(self.function, "__qualname__", "The function")
        return select_embedding(outputs, self.output, self.pool, name, images.dtype)


@dataclasses.dataclass(frozen=True)
class PartlyTrained:
    """A network whose fixed parameters, in `frozen["fixed"]`, are not differentiated.

    Attributes:
        network: The network of all parameters.
    """

    network: EmbeddingFunction

    def __call__(
        self, params: Params, frozen: Frozen, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch embedding"]:
        """Embed a batch of images with pixels in [0, 1]."""
        fixed, rest = frozen[FIXED], {name: value for name, value in frozen.items() if name != FIXED}
        if isinstance(params, dict):  # heads that this network does not read may be fixed too
            fixed = {name: fixed[name] for name in params}
        return self.network(trees.merge(params, fixed), rest, images)


def refuse_params_in(frozen: Frozen) -> None:
    """Refuse frozen state that holds parameters.

    Raises:
        StructureError: If there is an entry "params".
    """
    if isinstance(frozen, Mapping) and "params" in frozen:
        raise StructureError(
            "frozen holds an entry 'params', which would replace the parameters that are scored. Pass only frozen state, "
            "such as {'batch_stats': …}; choose the parameters that are trained by trainable=."
        )
