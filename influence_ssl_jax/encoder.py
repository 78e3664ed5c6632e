"""Define encoders: pure functions from images to embeddings, and what they read."""

import dataclasses
import fnmatch
import hashlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import flax.core
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params

from influence_ssl_jax import checkpoint, configuration, provenance, randomness, trees
from influence_ssl_jax.augment.recipes import PRETRAINING
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.data.to_input import ToInput
from influence_ssl_jax.errors import InfluenceError, StructureError
from influence_ssl_jax.losses import TRAINING_LOSSES, Loss
from influence_ssl_jax.nets import architectures
from influence_ssl_jax.nets.heads import SelfSupervised
from influence_ssl_jax.nets.network import (
    FIXED,
    EmbeddingFunction,
    FunctionNetwork,
    Network,
    NnxNetwork,
    PartlyTrained,
    Pool,
    refuse_params_in,
)
from influence_ssl_jax.problem import Objective
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Frozen, Params, PyTree

Output: TypeAlias = Literal["encoder", "projector", "predictor"]
"""The embedding: the representation, the projector's output, or the predictor's output."""

METHODS: dict[Output, str] = {"encoder": "encode", "projector": "project", "predictor": "predict"}
"""The method of `SelfSupervised` that computes each output."""
PARTS: dict[Output, tuple[str, ...]] = {
    "encoder": ("backbone",),
    "projector": ("backbone", "projector"),
    "predictor": ("backbone", "projector", "predictor"),
}
"""The parameters that each output reads."""

EVALUATION: dict[str, bool] = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}
"""Known arguments that switch between training and evaluation, with their value in evaluation."""

FILE = "encoder"
"""The name, without suffix, of the two files in the folder of a saved encoder."""


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads and the loss that an encoder was pretrained with.

    Attributes:
        params: Parameters of `projector` and, if there is one, `predictor`; their frozen state is in that of the
            encoder.
        loss: The pretraining loss; None if it is not known.
        views: The views that the loss compared: a name in `augment.recipes.PRETRAINING`, or the views themselves; None
            if they are not known.
    """

    params: Params
    loss: Loss | None = None
    views: str | Views | None = None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A pure function `network(params, frozen, images) -> embeddings` [batch, width], with its inputs.

    Parameters that are not trained are in `frozen["fixed"]`: gradients, curvature, norms and damping are those of
    `params` only.

    Attributes:
        network: The function; hashable, so that a compiled program can be kept for it.
        params: Its trained parameters.
        frozen: All other arrays that it reads, such as running statistics.
        input: The transform of an image to pixels of the size that the network reads.
        name: Its name in reports.
        heads: Projector and predictor; None if there are none.
        trainable: The patterns that selected `params`; empty if all parameters are trained.
        notes: Its origin, as plain JSON that is kept in its file.

    Examples:
        The representation is the mean brightness of an image times a parameter.

        >>> import jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> def brightness(params, images):
        ...     return images.mean((1, 2)) * params["scale"]
        >>> params = {"scale": jnp.asarray(2.0)}
        >>> encoder = isj.Encoder.from_function(brightness, params, input=isj.ToInput(2, 2, 1))
        >>> encoder(jnp.full((1, 2, 2, 1), 0.25)).tolist(), encoder.name
        ([[0.5]], 'brightness')
    """

    network: EmbeddingFunction
    params: Params
    frozen: Frozen
    input: ToInput
    name: str
    heads: Heads | None = None
    trainable: tuple[str, ...] = ()
    notes: Mapping[str, configuration.Plain] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse frozen state that holds parameters."""
        refuse_params_in(self.frozen)

    @classmethod
    def from_linen(
        cls,
        module: nn.Module,
        variables: Mapping[str, PyTree],
        *,
        input: ToInput,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        method: str = "__call__",
        arguments: Mapping[str, Hashable] | None = None,
        output: str | int | None = None,
        pool: Pool | None = None,
        trainable: Sequence[str] = (),
        name: str | None = None,
    ) -> "Encoder":
        """Make an encoder from a linen module and its variables.

        Args:
            module: A module from standardised images to embeddings.
            variables: `{"params": …}` and other collections, as `module.init` returns them.
            input: Size and channels of the images, and how other images are brought to them.
            mean: Mean of each channel, subtracted from pixels in [0, 1].
            std: Standard deviation of each channel, by which they are divided.
            method: The method of the module.
            arguments: Keyword arguments of the method; those in `EVALUATION` are set automatically.
            output: Name or position of the embedding, if there are several outputs.
            pool: How features at several positions become one embedding.
            trainable: The parameters that are trained; see `with_trainable`.
            name: Its name in reports; None takes that of the module's class.

        Raises:
            StructureError: If the module needs an unknown argument, is in training mode, does not return one embedding
                for each image, or its embedding of an image depends on the other images of the batch; if the variables
                do not fit, or `mean` and `std` are not those of pixels in [0, 1].

        Examples:
            >>> import jax.numpy as jnp
            >>> import influence_ssl_jax as isj
            >>> from influence_ssl_jax.nets.linear import Linear
            >>> variables = {"params": {"dense": {"kernel": jnp.asarray([[1.0], [10.0]])}}}
            >>> encoder = isj.Encoder.from_linen(Linear(1), variables, input=isj.ToInput(1, 2, 1))
            >>> encoder(jnp.asarray([[[[0.25], [0.5]]]])).tolist()  # 1 · 0.25 + 10 · 0.5
            [[5.25]]
        """
        if not isinstance(module, nn.Module):
            raise StructureError(f"module must be a linen module, got {_kind(module)}.")
        if not isinstance(variables, Mapping):
            raise StructureError(f"variables must be the dict that init returned, got {_kind(variables)}.")
        if module.scope is not None:  # a module that `bind` returned
            module, _ = module.unbind()
        collections = dict(flax.core.unfreeze(nn.meta.unbox(variables)))
        if "params" not in collections:
            raise StructureError(
                f"variables holds {', '.join(collections) or 'nothing'}, no 'params'; pass the variables that init returned."
            )
        reserved = collections.keys() & {FIXED, "target"}
        if reserved:
            raise StructureError(
                f"The collection name {reserved.pop()!r} is used by this package; rename your collection."
            )
        params, class_name = collections.pop("params"), type(module).__name__
        call = _method(type(module), method, class_name)
        evaluation = evaluation_arguments(call, 2, arguments, f"{class_name}.{method}")
        network = Network(module, method, evaluation, mean, std, output, pool)
        return cls(network, params, collections, input, name or class_name).checked().with_trainable(trainable)

    @classmethod
    def from_nnx(
        cls,
        model: nnx.Module,
        *,
        input: ToInput,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        method: str = "__call__",
        arguments: Mapping[str, Hashable] | None = None,
        output: str | int | None = None,
        pool: Pool | None = None,
        trainable: Sequence[str] = (),
        name: str | None = None,
    ) -> "Encoder":
        """Make an encoder from an nnx model, which is not changed.

        Dropout and BatchNorm are put into evaluation mode in a copy. The `nnx.Param`s are the parameters. Arguments and
        errors are those of `from_linen`.

        Examples:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> import influence_ssl_jax as isj
            >>> class Brightness(nnx.Module):
            ...     def __init__(self):
            ...         self.scale = nnx.Param(jnp.asarray(2.0))
            ...     def __call__(self, images):
            ...         return images.mean((1, 2)) * self.scale
            >>> encoder = isj.Encoder.from_nnx(Brightness(), input=isj.ToInput(2, 2, 1))
            >>> encoder(jnp.full((1, 2, 2, 1), 0.25)).tolist()
            [[0.5]]
        """
        if not isinstance(model, nnx.Module):
            raise StructureError(f"model must be an nnx model, got {_kind(model)}.")
        copy = nnx.clone(model)
        copy.eval()
        graph, params, keys, state = nnx.split(copy, nnx.Param, nnx.RngKey, ...)
        class_name = type(model).__name__
        call = _method(model, method, class_name)
        evaluation = evaluation_arguments(call, 1, arguments, f"{class_name}.{method}")
        network = NnxNetwork(graph, class_name, method, evaluation, mean, std, output, pool)
        frozen = {
            "keys": jax.tree.map(jax.random.key_data, nnx.to_pure_dict(keys)),
            "state": nnx.to_pure_dict(state),
        }
        encoder = cls(network, nnx.to_pure_dict(params), frozen, input, name or class_name)
        return encoder.checked().with_trainable(trainable)

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        params: Params,
        frozen: Frozen | None = None,
        *,
        input: ToInput,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        output: str | int | None = None,
        pool: Pool | None = None,
        trainable: Sequence[str] = (),
        name: str | None = None,
    ) -> "Encoder":
        """Make an encoder from a pure function `(params, images)` or `(params, frozen, images)`.

        An equinox model becomes such a function by `params, rest = equinox.partition(model, equinox.is_inexact_array)`
        and `lambda params, images: jax.vmap(equinox.combine(params, rest))(images)`.

        Args:
            function: The function, in evaluation mode.
            params: A tree of arrays; entries that are not floating-point are fixed.
            frozen: A tree of arrays that the function reads too; None if it takes none.
            input: Size and channels of the images, and how other images are brought to them.
            mean: Mean of each channel, subtracted from pixels in [0, 1].
            std: Standard deviation of each channel, by which they are divided.
            output: Name or position of the embedding, if there are several outputs.
            pool: How features at several positions become one embedding.
            trainable: The parameters that are trained; see `with_trainable`.
            name: Its name in reports; None takes that of the function.

        Raises:
            StructureError: If a leaf is not an array, if the function does not take these arguments, draws random
                numbers, or does not return one embedding for each image, or if the embedding of an image depends on the
                other images of the batch.

        Examples:
            >>> import jax.numpy as jnp
            >>> import influence_ssl_jax as isj
            >>> def add(params, frozen, images):
            ...     return images.reshape(len(images), -1) * params + frozen
            >>> params, frozen = jnp.asarray(2.0), jnp.asarray(1.0)
            >>> encoder = isj.Encoder.from_function(add, params, frozen, input=isj.ToInput(1, 1, 1))
            >>> encoder(jnp.full((1, 1, 1, 1), 0.5)).tolist()  # 0.5 · 2 + 1
            [[2.0]]
        """
        name = name or str(getattr(function, "__qualname__", type(function).__name__))
        _refuse_other_arguments(function, frozen is not None, name)
        network = FunctionNetwork(function, frozen is not None, mean, std, output, pool)
        state = {} if frozen is None else {"state": frozen}
        encoder = cls(network, params, state, input, name)
        return encoder.checked().with_trainable(trainable)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embed images [batch, height, width, channels] with pixels in [0, 1]."""
        return self.network(self.params, self.frozen, images)

    def with_trainable(self, patterns: Sequence[str]) -> "Encoder":
        """Select the parameters that are trained; the others become frozen state.

        A pattern is a name, part of a path, or a glob: `blocks_11`, `attn/qkv`, `*/bias`. A pattern with `!` before it
        removes parameters (`!pos_embed`). If all patterns remove, the selection starts from all parameters; otherwise
        it starts from none.

        Args:
            patterns: The patterns, or a single one; if empty, all floating-point parameters are trained.

        Raises:
            StructureError: If a pattern matches no parameter, or no parameter is left.

        Examples:
            >>> import jax.numpy as jnp
            >>> import influence_ssl_jax as isj
            >>> def scale(params, images):
            ...     return images.reshape(len(images), -1) * params["a"] + params["b"]
            >>> params = {"a": jnp.asarray(2.0), "b": jnp.asarray(1.0)}
            >>> encoder = isj.Encoder.from_function(scale, params, input=isj.ToInput(1, 1, 1))
            >>> encoder.sizes(), encoder.with_trainable(["!b"]).sizes()
            ((2, 2), (1, 2))
        """
        patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        whole = self._whole()
        names = list(checkpoint.named(whole))
        for pattern in patterns:
            if not any(_matches(name, pattern.removeprefix("!")) for name in names):
                raise StructureError(
                    f"trainable={pattern!r} names no parameter. There are {', '.join(names[:8])}"
                    f"{f', … ({len(names)} in all)' if len(names) > 8 else ''}."
                )
        adding = [pattern for pattern in patterns if not pattern.startswith("!")]

        def chosen(name: str, leaf: Any) -> bool:
            kept = not adding
            for pattern in patterns:
                if _matches(name, pattern.removeprefix("!")):
                    kept = not pattern.startswith("!")
            return kept and bool(jnp.issubdtype(leaf.dtype, jnp.floating))

        params, fixed = trees.partition(whole, chosen)
        network = self.network.network if isinstance(self.network, PartlyTrained) else self.network
        frozen = {name: value for name, value in self.frozen.items() if name != FIXED}
        if jax.tree.leaves(fixed):
            network, frozen = PartlyTrained(network), {**frozen, FIXED: fixed}
        own, heads = params, self.heads
        if heads is not None:
            own = {name: params[name] for name in self.params}
            heads = dataclasses.replace(heads, params={name: params[name] for name in heads.params})
        if not jax.tree.leaves(own):
            raise StructureError(f"trainable={list(patterns)} leaves no parameter of the encoder to differentiate.")
        return dataclasses.replace(self, network=network, params=own, frozen=frozen, heads=heads, trainable=patterns)

    def at(self, output: Output) -> "Encoder":
        """Return the encoder with another output: the projector's or the predictor's.

        Raises:
            InfluenceError: If the encoder has no such head.
        """
        if self.heads is None and output == "encoder":
            return self
        parts = {**({} if self.heads is None else self.heads.params), **self.params}
        if output != "encoder" and output not in parts:
            loss = None if self.heads is None else self.heads.loss
            trained_by = "" if loss is None else f" trained by {type(loss).__name__}"
            outputs = ["encoder", *(name for name in ("projector", "predictor") if name in parts)]
            raise InfluenceError(f"{self.name}{trained_by} has no {output}; use {' or '.join(outputs)}.")
        params = {name: parts[name] for name in PARTS[output] if name in parts}
        return dataclasses.replace(self, network=self._at_method(METHODS[output]), params=params)

    def pretraining(self) -> tuple[Objective, Params]:
        """Return the pretraining loss as an objective, and the parameters it reads.

        Raises:
            InfluenceError: If the encoder has no heads, or its pretraining loss is not known.
        """
        if self.heads is None or self.heads.loss is None or self.heads.views is None:
            what = "heads" if self.heads is None else "known pretraining loss"
            raise InfluenceError(
                f"{self.name} has no {what}, so the curvature of the pretraining loss is not defined; use the curvature of "
                "the measurement (--curvature.objective measurement), or import the encoder again with --loss."
            )
        loss = self.heads.loss
        online = self.at("predictor" if loss.compares_with_target else "projector")
        target = None
        if loss.compares_with_target:
            same = self._at_method(METHODS["projector"])
            target = same if loss.target_is_online else self._without_fixed(same)
        views = PRETRAINING[self.heads.views] if isinstance(self.heads.views, str) else self.heads.views
        return Objective(online.network, views, loss, target), online.params

    def computing_in(self, dtype: jax.typing.DTypeLike | None) -> "Encoder":
        """Return the encoder with layers that compute in another type.

        Args:
            dtype: The type; None takes that of the parameters.

        Raises:
            StructureError: If the network is not a linen module, or has no field `dtype`.
        """
        inner = self._without_fixed(self.network)
        if not isinstance(inner, Network):
            raise StructureError(
                f"{self.name} is not a linen module, so the type of its layers cannot be changed. Build it with "
                "dtype=… yourself, and score with precision float32."
            )
        changed = dataclasses.replace(inner, module=architectures.computing_in(inner.module, dtype))
        return dataclasses.replace(self, network=self._with_fixed(changed))

    def sizes(self) -> tuple[int, int]:
        """Count the encoder's trained parameters without heads, and all its parameters."""
        whole = self._whole()
        own = {name: whole[name] for name in self.params} if self.heads is not None else whole
        return trees.size(self.params), trees.size(own)

    def variables(self) -> PyTree:
        """Return all parameters and frozen state, heads included: `{"params": …, "frozen": …}`.

        The result does not depend on which parameters are trained.
        """
        return {
            "params": self._whole(),
            "frozen": {name: value for name, value in self.frozen.items() if name != FIXED},
        }

    def digest(self) -> str:
        """Return the SHA-256 of `variables`.

        Two digests are equal if and only if the arrays are equal.
        """
        return provenance.tree_digest(self.variables())

    def describe(self) -> configuration.Plain:
        """Describe everything but the arrays, as JSON.

        A network that cannot be rebuilt is described by its name and the digest of its operations and constants.
        """
        inner = self._without_fixed(self.network)
        network = inner.name if isinstance(inner, NnxNetwork) else self.name
        if isinstance(inner, Network):
            try:
                module = architectures.describe(inner.module)
            except StructureError:  # a module of the user, or one with such a module inside
                module = type(inner.module).__name__
            network = {"module": module, **_options(inner), "method": inner.method, "arguments": dict(inner.arguments)}
        elif isinstance(inner, NnxNetwork | FunctionNetwork):
            network = {"module": network, **_options(inner)}
        if isinstance(network, dict) and isinstance(network["module"], str):
            network["program"] = self._program()
        heads = self.heads
        loss = None if heads is None or heads.loss is None else configuration.describe(heads.loss)
        views = None if heads is None else configuration.describe(heads.views)
        return {
            "name": self.name,
            "network": network,
            "input": configuration.describe(self.input),
            "heads": None if heads is None else {"loss": loss, "views": views},
            "trainable": list(self.trainable),
        }

    def _program(self) -> str:
        """Return the SHA-256 of the network's operations and constants.

        They are those with which it embeds an image.
        """
        dtype = next(x.dtype for x in jax.tree.leaves(self.params) if jnp.issubdtype(x.dtype, jnp.floating))
        image = jax.ShapeDtypeStruct((1, self.input.height, self.input.width, self.input.channels), dtype)
        variables = self.variables()
        traced = jax.make_jaxpr(self._without_fixed(self.network))(variables["params"], variables["frozen"], image)
        operations = re.sub(r" at 0x[0-9a-f]+", "", str(traced))  # addresses of functions
        constants = provenance.tree_digest([np.asarray(each) for each in _constants(traced)])
        return hashlib.sha256(f"{operations}\n{constants}".encode()).hexdigest()

    def save(self, folder: str | Path, storage: checkpoint.Storage = "float32") -> checkpoint.Files:
        """Write `encoder.npz` and `encoder.json` into a folder, without pickles.

        Args:
            folder: The folder; it is created.
            storage: The type of stored parameters; `checkpoint.save` says what float16 rounds.

        Raises:
            StructureError: If the network is not one of this package, so that a file could not say how to build it, or
                its views have no name.

        Examples:
            `load` inverts `save`.

            >>> import tempfile, jax.numpy as jnp
            >>> import influence_ssl_jax as isj
            >>> from influence_ssl_jax.nets.linear import Linear
            >>> variables = {"params": {"dense": {"kernel": jnp.ones((1, 1), jnp.float32)}}}
            >>> encoder = isj.Encoder.from_linen(Linear(1), variables, input=isj.ToInput(1, 1, 1))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     files = encoder.save(folder)
            ...     isj.Encoder.load(folder).digest() == encoder.digest()
            True
        """
        inner = self._without_fixed(self.network)
        if not isinstance(inner, Network):
            raise StructureError(
                f"{self.name} is your own function or model, so a file cannot say how to build it. Write a function that "
                "returns the encoder, and pass its name as package.module:function wherever an encoder is needed."
            )
        architectures.describe(inner.module)
        if self.heads is not None and not isinstance(self.heads.views, str | None):
            raise StructureError(
                f"The views of {self.name} are a {type(self.heads.views).__name__}; a file can record views by name only: "
                f"{', '.join(PRETRAINING)}."
            )
        description = {"encoder": self.describe(), "storage": storage, **self.notes}
        return checkpoint.save(Path(folder) / FILE, self.variables(), description, storage)

    @classmethod
    def load(cls, place: str | Path) -> "Encoder":
        """Load an encoder that `save` wrote, or that a named function returns.

        Args:
            place: A folder, one of the two files in it, or a function `package.module:function` that returns an
                encoder.

        Raises:
            CheckpointError: If a file is absent or damaged, or its arrays are not those of the network that it
                describes.
            InfluenceError: If there is no such function, or it does not return an encoder.
        """
        path = Path(place)
        if not path.exists() and ":" in str(place):
            return _call_named(str(place))
        if path.is_file() and path.suffix not in (".npz", ".json"):
            raise checkpoint.CheckpointError(
                f"{path} is not a saved encoder. A file of weights of another program is converted by `influence-ssl "
                "import`, or read by influence_ssl_jax.checkpoints.read(file).encoder."
            )
        path = path / FILE if path.is_dir() else path
        record = checkpoint.describe(path)
        description = record.get("encoder")
        if not isinstance(description, dict):
            raise checkpoint.CheckpointError(f"{path}.json describes no encoder; import or save it again.")
        try:
            network, heads = _network(description), description["heads"]
            to_input = configuration.restore(description["input"], [ToInput])
            name, trainable = str(description["name"]), tuple(description["trainable"])
            loss = heads and heads["loss"] and configuration.restore(heads["loss"], TRAINING_LOSSES)
            views = heads and heads["views"]
            _check_standardisation(network.mean, network.std, to_input.channels)
            shapes = variable_shapes(network, to_input, loss)
            if heads is not None and not isinstance(network.module, SelfSupervised):
                raise KeyError("heads of a network without any")
        except InfluenceError:
            raise
        except Exception as error:  # a network with impossible sizes can raise errors of any type
            raise checkpoint.CheckpointError(
                f"{path}.json describes its encoder wrongly ({type(error).__name__}: {error}); import or save it again."
            ) from error
        variables = checkpoint.load(path, shapes)
        notes = {key: value for key, value in record.items() if key not in ("format", "digest", "encoder", "storage")}
        params, own_heads = variables["params"], None
        if heads is not None:
            own_heads = Heads({part: params[part] for part in params if part != "backbone"}, loss, views)
            params = {"backbone": params["backbone"]}
        encoder = cls(network, params, variables["frozen"], to_input, name, own_heads, notes=notes)
        return encoder.with_trainable(trainable) if trainable else encoder

    def _whole(self) -> Params:
        """Return all parameters, trained or not, heads included."""
        params = self.params
        if self.heads is not None:
            params = {**params, **self.heads.params}
        return trees.merge(params, self.frozen[FIXED]) if FIXED in self.frozen else params

    def _at_method(self, method: str) -> EmbeddingFunction:
        """Return the network that computes another output."""
        inner = self._without_fixed(self.network)
        if not isinstance(inner, Network) or not isinstance(inner.module, SelfSupervised):
            raise InfluenceError(f"{self.name} has heads, but its network is not a SelfSupervised module.")
        return self._with_fixed(dataclasses.replace(inner, method=method))

    @staticmethod
    def _without_fixed(network: EmbeddingFunction) -> EmbeddingFunction:
        """Return the network of all parameters."""
        return network.network if isinstance(network, PartlyTrained) else network

    def _with_fixed(self, network: EmbeddingFunction) -> EmbeddingFunction:
        """Let a network read fixed parameters if this encoder has some."""
        return PartlyTrained(network) if isinstance(self.network, PartlyTrained) else network

    def checked(self) -> "Encoder":
        """Return the encoder if it embeds each image by itself, without chance.

        The network is traced, and tested with random images.

        Raises:
            StructureError: If the network is in training mode, draws random numbers, or does not return one embedding
                for each image; if an embedding depends on the other images of its batch or is not finite; if the
                variables do not fit, or mean and standard deviation are not those of pixels in [0, 1].
        """
        if not isinstance(self.input, ToInput):
            raise StructureError(f"input must be a ToInput, such as ToInput(224, 224); got {_kind(self.input)}.")
        _refuse_leaves(self.params, self.frozen, self.name)
        inner = self._without_fixed(self.network)
        if isinstance(inner, Network | NnxNetwork | FunctionNetwork):
            _check_standardisation(inner.mean, inner.std, self.input.channels)
        shape = (self.input.height, self.input.width, self.input.channels)
        dtype = next(x.dtype for x in jax.tree.leaves(self.params) if jnp.issubdtype(x.dtype, jnp.floating))
        pixels = randomness.generator(0, Stream.ENCODER_CHECK).uniform(size=(5, *shape)).astype(dtype)
        network = self._hashable()
        evaluate = jax.jit(network.evaluate if isinstance(network, NnxNetwork) else lambda *each: (network(*each), {}))
        try:
            traced = evaluate.trace(self.params, self.frozen, pixels[:3])
        except InfluenceError:
            raise
        except (flax.errors.ModifyScopeVariableError, flax.errors.InvalidRngError) as error:
            raise StructureError(
                f"{self.name} is in training mode: it draws random numbers or updates its statistics ({_brief(error)}). "
                "Pass the arguments that put it into evaluation mode as arguments={'name': value}."
            ) from error
        except flax.errors.FlaxError as error:
            raise StructureError(f"The variables do not fit {self.name}: {_brief(error)}.") from error
        except Exception as error:  # code of the user can raise errors of any type
            raise StructureError(
                f"{self.name} cannot embed 3 images [3, {', '.join(map(str, shape))}] with its parameters: "
                f"{type(error).__name__}: {_brief(error)}. It must be a function of jax.numpy that takes a batch of images "
                "of the size of input=."
            ) from error
        draw = _random_draw(traced.jaxpr.jaxpr)
        if draw is not None:
            raise StructureError(
                f"{self.name} draws random numbers ({draw}), as dropout and stochastic depth do in training. Put it into "
                "evaluation mode; numbers that are drawn once belong to its frozen arrays."
            )
        form, _ = traced.out_info
        if not jnp.issubdtype(form.dtype, jnp.floating) or form.shape[0] != 3 or not form.shape[1]:
            raise StructureError(
                f"{self.name} must return one floating-point embedding [width] for each image; for 3 images it returns "
                f"{form.dtype} {list(form.shape)}."
            )
        orders = ([0, 1, 2], [0, 3, 4], [3, 4, 0])
        evaluated = [evaluate(self.params, self.frozen, pixels[rows]) for rows in orders]
        changed = [name for name, has in evaluated[0][1].items() if has]
        if changed:
            raise StructureError(
                f"{self.name} changes its state {', '.join(changed)} while it embeds: it is in training mode, or counts. "
                "Pass the arguments for evaluation mode as arguments={'name': value}, or build it that way."
            )
        embedding, *others = (
            np.asarray(each[rows.index(0)], np.float64) for (each, _), rows in zip(evaluated, orders, strict=True)
        )
        if not np.isfinite(embedding).all():
            raise StructureError(
                f"{self.name} embeds an image of random pixels as NaN or infinity; check its parameters and std."
            )
        # In 16 bits, rounding depends on the place.
        for other, tolerance in zip(others, (1e-3, 2e-2), strict=True):
            if np.linalg.norm(embedding - other) > tolerance * np.linalg.norm(embedding):
                raise StructureError(
                    f"The embedding of an image by {self.name} depends on the other images of its batch, as with BatchNorm "
                    "in training mode, or on its place among them. Pass the arguments for evaluation mode as "
                    "arguments={'name': value}, or build it that way."
                )
        return self

    def _hashable(self) -> EmbeddingFunction:
        """Return the network if it has a hash.

        Its compiled program is kept with it.

        Raises:
            StructureError: If it has none.
        """
        try:
            hash(self.network)
        except TypeError as error:
            raise StructureError(
                f"{self.name} has no hash, with which its compiled program is kept ({_brief(error)}). Its fields must be "
                "numbers, texts, functions or tuples of these, not lists or arrays."
            ) from error
        return self.network


def evaluation_arguments(
    call: Callable[..., Any], leading: int, given: Mapping[str, Hashable] | None, name: str
) -> tuple[tuple[str, Hashable], ...]:
    """Collect the keyword arguments that put a network into evaluation mode.

    Args:
        call: The method.
        leading: Number of arguments before them: the images, and `self` if the method is not bound.
        given: Arguments that the user chose; they override `EVALUATION`.
        name: Name of the method, for errors.

    Raises:
        StructureError: If the method needs an argument that is neither given nor known, or does not have a given one.
    """
    given, evaluation = dict(given or {}), {}
    parameters = list(inspect.signature(call).parameters.values())[leading:]
    kinds = inspect.Parameter
    for parameter in parameters:
        chosen = parameter.name in EVALUATION or parameter.name in given or parameter.default is kinds.empty
        if parameter.kind is kinds.POSITIONAL_ONLY and chosen:
            raise StructureError(
                f"{name} takes {parameter.name!r} by position only, and arguments are passed by name. Add a method that "
                "takes it by name or sets it, and pass method='name of it'."
            )
    for parameter in parameters:
        if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) or parameter.name in given:
            continue
        if parameter.name in EVALUATION:
            evaluation[parameter.name] = EVALUATION[parameter.name]
        elif parameter.default is kinds.empty:
            raise StructureError(
                f"{name} needs the argument {parameter.name!r}, whose value in evaluation is not known; pass "
                f"arguments={{{parameter.name!r}: value}}."
            )
    names = {parameter.name for parameter in parameters}
    if not any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters) and given.keys() - names:
        raise StructureError(
            f"{name} has no argument {sorted(given.keys() - names)[0]!r}; it has {', '.join(sorted(names)) or 'none'}."
        )
    return tuple(sorted({**evaluation, **given}.items()))


def _method(owner: Any, method: str, name: str) -> Callable[..., Any]:
    """Return a method of a module or model.

    Raises:
        StructureError: If there is none of this name.
    """
    call = getattr(owner, method, None) if isinstance(method, str) else None
    if not callable(call):
        raise StructureError(f"{name} has no method {method!r}; pass the name of one that takes images.")
    return call


def _refuse_other_arguments(function: Callable[..., Any], reads_frozen: bool, name: str) -> None:
    """Refuse a function that does not take the arguments of an encoder.

    Raises:
        StructureError: If it does not.
    """
    if not callable(function):
        raise StructureError(f"function must be a function, got {_kind(function)}.")
    names = ("params", "frozen", "images") if reads_frozen else ("params", "images")
    try:
        inspect.signature(function).bind(*names)
    except TypeError as error:
        raise StructureError(
            f"{name} is called as {name}({', '.join(names)}), and takes {inspect.signature(function)}. Its second argument "
            f"is frozen state if frozen= is given; here it is {'' if reads_frozen else 'not '}given."
        ) from error
    except ValueError:  # functions written in C have no signature
        return


def _refuse_leaves(params: Params, frozen: Frozen, name: str) -> None:
    """Refuse parameters and frozen state that are not arrays of numbers.

    Raises:
        StructureError: If a leaf is none, or no parameter is floating-point.
    """
    for leaf_name, leaf in checkpoint.named({"params": params, "frozen": frozen}).items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise StructureError(
                f"{leaf_name} is a {type(leaf).__name__}, not an array. Parameters and frozen state are trees of "
                "arrays: keep functions and settings inside the function (equinox: partition with is_array)."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != np.bool_:
            raise StructureError(f"{leaf_name} is an array of {leaf.dtype}, not of numbers; remove it.")
        if leaf_name.startswith("params") and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise StructureError(
                f"{leaf_name} is complex, and parameters are real: pass its real and imaginary parts as two arrays."
            )
        if leaf_name.startswith("params") and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
            raise StructureError(
                f"{leaf_name} is {leaf.dtype}, and gradients and their curvature need 32 bits: convert the parameters to "
                "float32. The layers can still compute in 16 bits (dtype= of flax's layers)."
            )
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params)):
        raise StructureError(f"{name} has no floating-point parameters, so there is nothing to differentiate.")


def _check_standardisation(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Check mean and standard deviation of pixels in [0, 1].

    Raises:
        StructureError: If they are not one number, or one for each channel, in their range.
    """
    for name, values in (("mean", mean), ("std", std)):
        whole = isinstance(values, tuple) and all(isinstance(value, int | float) for value in values)
        if not whole or len(values) not in (1, channels):
            raise StructureError(
                f"{name} must be a tuple with a number for each of {channels} channels; got {values!r}."
            )
        usable = all(0 <= value <= 1 for value in values) and (name == "mean" or 0 not in values)
        if not usable:
            limits = "from 0 to 1" if name == "mean" else "above 0 and at most 1"
            raise StructureError(
                f"{name} is that of pixels in [0, 1], {limits}; got {values!r}. Divide numbers for pixels 0…255 by 255."
            )


RANDOM = frozenset({"random_bits", "random_gamma", "threefry2x32", "rng_bit_generator", "rng_uniform"})
"""The operations of JAX that draw random numbers."""


def _random_draw(jaxpr: Any) -> str | None:
    """Return the name of an operation that draws random numbers, or None."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in RANDOM:
            return equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            draw = _random_draw(inner)
            if draw is not None:
                return draw
    return None


def _constants(program: Any) -> Iterator[Any]:
    """Iterate over the constants of a traced function and its parts."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
    inner = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    for equation in inner.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda each: isinstance(each, ClosedJaxpr | Jaxpr)):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield from _constants(value)


def variable_shapes(network: Network, to_input: ToInput, loss: Loss | None) -> PyTree:
    """Return the shapes of `Encoder.variables` of a network of this package."""
    images = jax.ShapeDtypeStruct((2, to_input.height, to_input.width, to_input.channels), jnp.float32)
    arguments: dict[str, Any] = {"train": False}
    frozen = dict(jax.eval_shape(lambda x: network.module.init(jax.random.key(0), x, **arguments), images))
    params = frozen.pop("params")
    if loss is not None and loss.compares_with_target and not loss.target_is_online:
        parts = PARTS["projector"]
        state = {name: _select(value, parts) for name, value in frozen.items()}
        frozen = {**frozen, "target": {"params": _select(params, parts), **state}}
    return {"params": params, "frozen": frozen}


def _select(tree: dict[str, PyTree], parts: Sequence[str]) -> dict[str, PyTree]:
    """Select the named parts of a tree."""
    return {name: tree[name] for name in parts if name in tree}


def _network(description: Mapping[str, Any]) -> Network:
    """Build the network that an encoder's description names."""
    network = description["network"]
    mean, std = (tuple(float(value) for value in network[name]) for name in ("mean", "std"))
    arguments = tuple(sorted(network["arguments"].items()))
    module = architectures.build(network["module"])
    _method(type(module), network["method"], type(module).__name__)
    return Network(module, network["method"], arguments, mean, std, network["output"], network["pool"])


def _options(network: Network | NnxNetwork | FunctionNetwork) -> dict[str, configuration.Plain]:
    """Describe the standardisation and the choice of the output."""
    return {
        "mean": list(network.mean),
        "std": list(network.std),
        "output": network.output,
        "pool": network.pool,
    }


def _call_named(place: str) -> Encoder:
    """Call a named function of an installed package or the working folder."""
    module, _, function = place.partition(":")
    if not all(module.split(".")) or not function:
        raise InfluenceError(f"{place} is neither a file nor package.module:function; check the path or the name.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # at the end, so that installed packages take precedence
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InfluenceError(
            f"{place} is neither a file nor package.module:function: {error}. Check the path or the name."
        ) from error
    except InfluenceError:
        raise
    except Exception as error:  # the user's module can raise errors of any type
        raise InfluenceError(f"{module} cannot be imported: {_place_of(error)}.") from error
    if not hasattr(imported, function):
        raise InfluenceError(f"{module} has no {function!r}; name a function in it that returns an Encoder.")
    named = getattr(imported, function)
    if inspect.isfunction(named):
        asked = [each.name for each in inspect.signature(named).parameters.values() if _must_be_given(each)]
        if asked:
            raise InfluenceError(
                f"{place} asks for arguments ({', '.join(asked)}); name a function without any that returns an Encoder."
            )
    try:
        encoder = named() if callable(named) and not isinstance(named, Encoder) else named
    except InfluenceError:
        raise
    except Exception as error:  # so can the function
        raise InfluenceError(f"{place} failed: {_place_of(error)}.") from error
    if not isinstance(encoder, Encoder):
        raise InfluenceError(f"{place} must be or return an Encoder, got a {type(encoder).__name__}.")
    return encoder


def _place_of(error: Exception) -> str:
    """Describe an error by its type, message and line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {_brief(error)} ({frame.filename}, line {frame.lineno})"


def _must_be_given(parameter: inspect.Parameter) -> bool:
    """Test whether a function needs a value for a parameter."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in several


def _matches(name: str, pattern: str) -> bool:
    """Test whether a pattern is a sequence of a name's whole parts."""
    padded, wanted = f"/{name}/", f"/{pattern.strip('/')}/"
    return fnmatch.fnmatchcase(padded, f"*{wanted}*")


def _kind(value: Any) -> str:
    """Describe a value by its type, for errors."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _brief(error: Exception) -> str:
    """Return the first line of an error's message, without flax's link."""
    lines = str(error).split(" (https://", 1)[0].splitlines()
    return lines[0].rstrip(".") if lines else "no message"
